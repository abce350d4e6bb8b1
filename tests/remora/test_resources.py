"""`remora apply`, `get` and `delete` as an operator meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ca.store.edit import plan_apply, plan_delete
from ca.store.errors import ResourceConflict, ResourceNotFound, ResourcesInvalid
from ca.store.lock import JOURNAL, write_together, writing
from ca.store.memory import MEMORY_FILE, Memory
from ca.store.store import PUT
from mesh.errors import ConfigError, RemoraError
from mesh.resources.loader import load_resources
from remora.cli import app
from tests.pki import NOW

DENY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: foo}
spec: {action: DENY, rules: [{}]}
"""
STRICT = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
"""
WRONG = DENY.replace("DENY", "DENI").replace("name: deny", "name: wrong")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state" / "ca" / "resources").mkdir(parents=True)
    return tmp_path / "state" / "ca" / "resources"


def run(*arguments: str | Path, stdin: str | None = None) -> str:
    """Run a command in this process; its foreseen errors come out as they are."""
    result = CliRunner().invoke(app, [str(one) for one in arguments], input=stdin)
    if isinstance(result.exception, RemoraError):
        raise result.exception
    assert result.exception is None, result.exception
    return result.stdout


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*.yaml"))}


def objects(kind: str = "all") -> list[Mapping[str, object]]:
    items: list[Mapping[str, object]] = json.loads(run("get", kind, "-o", "json"))["items"]
    return items


def test_apply_says_what_kubectl_says(root: Path, tmp_path: Path) -> None:
    both = write(tmp_path / "both.yaml", f"{DENY}---\n{STRICT}")
    assert run("apply", "-f", both, "-n", "bar", "--dry-run") == (
        "authorizationpolicy.security.istio.io/deny created (dry run)\n"
        "peerauthentication.security.istio.io/default created (dry run)\n"
    )
    assert tree(root) == {}
    assert "default created" in run("apply", "-f", both, "-n", "bar")
    assert set(tree(root)) == {
        "foo/authorizationpolicy.deny.yaml",
        "bar/peerauthentication.default.yaml",
    }
    assert run("apply", "-f", both, "-n", "bar").count("unchanged") == 2
    write(both, f"{DENY.replace('[{}]', '[{}, {}]')}---\n{STRICT}")
    assert run("apply", "-f", both, "-n", "bar") == (
        "authorizationpolicy.security.istio.io/deny configured\n"
        "peerauthentication.security.istio.io/default unchanged\n"
    )


def test_apply_takes_directories_and_standard_input(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "dir" / "a.yaml", DENY)
    write(tmp_path / "dir" / "sub" / "b.json", json.dumps(yaml.safe_load(STRICT)))
    write(tmp_path / "dir" / "notes.txt", "no")
    assert run("apply", "-f", tmp_path / "dir").count("created") == 2
    assert run("apply", "-f", "-", stdin=DENY).count("unchanged") == 1


def test_apply_warns_of_what_proxies_do_not_enforce_yet(root: Path) -> None:
    custom = DENY.replace("action: DENY", "action: CUSTOM, provider: {name: opa}")
    tokens = """---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: foo}
spec: {jwtRules: [{issuer: i}]}
"""
    result = CliRunner().invoke(app, ["apply", "-f", "-"], input=f"{custom}{tokens}---\n{STRICT}")
    assert result.exit_code == 0
    assert result.stdout.count("created") == 3
    assert "warning: AuthorizationPolicy foo/deny: proxies ask no external" in result.stderr
    assert "warning: RequestAuthentication foo/jwt: proxies do not look at it yet" in result.stderr
    assert "PeerAuthentication" not in result.stderr


def test_apply_passes_over_kinds_that_are_not_read_if_told_so(root: Path) -> None:
    both = f"{DENY}---\napiVersion: v1\nkind: Service\nmetadata: {{name: x}}\n"
    with pytest.raises(ResourcesInvalid, match="Service"):
        run("apply", "-f", "-", stdin=both)
    result = CliRunner().invoke(app, ["apply", "-f", "-", "--skip-unknown-kinds"], input=both)
    assert result.stdout == "authorizationpolicy.security.istio.io/deny created\n"
    assert result.stderr.startswith("passed over: <stdin>:7: Service default/x")
    wrong = f"{WRONG}---\n{both}"
    with pytest.raises(ResourcesInvalid, match=r"spec\.action"):
        run("apply", "-f", "-", "--skip-unknown-kinds", stdin=wrong)


ENTRY = """\
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: w, namespace: foo}
spec: {address: 10.0.0.1}
"""


def test_get_shows_who_has_registered_and_says_so(root: Path) -> None:
    run("apply", "-f", "-", stdin=ENTRY)
    [mine] = load_resources(ENTRY).resources
    [other] = load_resources(ENTRY.replace("name: w", "name: registered-1")).resources
    kept = {PUT + "foo/w": [mine], PUT + "foo/registered-1": [other], "gone.yaml": [other]}
    Memory(root.parent / MEMORY_FILE).write(kept, "")
    head, first, second = (line.split() for line in run("get", "we").splitlines())
    assert head == ["NAMESPACE", "NAME", "ADDRESS", "SOURCE", "AGE"]
    assert first[:4] == ["foo", "registered-1", "10.0.0.1", "registered"]
    assert second[:4] == ["foo", "w", "10.0.0.1", "file"]
    assert len(objects("we")) == 2
    assert len(objects("all")) == 1, "to be applied again: a registration is no file"


def test_one_wrong_document_and_nothing_is_applied(root: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", f"{DENY}---\n{WRONG}")
    with pytest.raises(ResourcesInvalid) as caught:
        run("apply", "-f", file)
    assert str(caught.value).startswith(
        f"{file}:9: AuthorizationPolicy foo/wrong: spec.action: must be one of ALLOW, DENY"
    )
    assert tree(root) == {}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(["apply"], "nothing to apply", id="no-file"),
        pytest.param(["apply", "-f", "none.yaml"], "cannot read resource file", id="no-such-file"),
        pytest.param(["apply", "-f", "empty.yaml"], "no resources in empty.yaml", id="empty"),
        pytest.param(["get", "authorizationpolice"], "did you mean", id="kind"),
        pytest.param(["get", "pods"], "no kind 'pods'", id="foreign-kind"),
        pytest.param(["get", "NONSENSE"], r"workloadgroups \(wg\), and all", id="kinds-there-are"),
        pytest.param(["delete", "all", "x"], "name the kind", id="delete-all"),
        pytest.param(["delete", "ap"], "say what to delete", id="delete-nothing"),
        pytest.param(
            ["get", "ap", "--state-dir", "none"], "Start the control plane", id="no-state"
        ),
    ],
)
def test_what_cannot_work_is_said(
    root: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    write(tmp_path / "empty.yaml", "# nothing\n")
    with pytest.raises(ConfigError, match=sentence):
        run(*arguments)


def test_the_same_name_twice_is_refused(root: Path, tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        write(tmp_path / "dir" / name, DENY)
    with pytest.raises(ResourcesInvalid, match=r"is given in .*a\.yaml too"):
        run("apply", "-f", tmp_path / "dir")


def test_a_resource_is_changed_where_it_stands(root: Path, tmp_path: Path) -> None:
    """Comments and documents around it stay, byte for byte."""
    head, tail = "# ours\n" + STRICT, STRICT.replace("name: default", "name: other")
    write(root / "mine.yaml", f"{head}---\n{DENY}---\n{tail}")
    assert "configured" in run("apply", "-f", "-", stdin=DENY.replace("[{}]", "[{}, {}]"))
    [text] = tree(root).values()
    assert text.startswith(f"{head}---\n")
    assert text.endswith(f"---\n{tail}")
    assert len(objects()) == 3
    run("delete", "ap", "deny", "-n", "foo")
    assert tree(root) == {"mine.yaml": f"{head}---\n{tail}"}


def test_a_broken_document_is_mended_where_it_stands(root: Path) -> None:
    write(root / "mine.yaml", f"{WRONG}---\n{STRICT}")
    fixed = WRONG.replace("DENI", "DENY")
    assert "wrong configured" in run("apply", "-f", "-", stdin=fixed)
    assert list(tree(root)) == ["mine.yaml"]
    assert len(objects("ap")) == 1


def test_a_list_is_left_to_its_owner(root: Path) -> None:
    items = [yaml.safe_load(DENY), yaml.safe_load(STRICT)]
    write(root / "list.yaml", yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}))
    with pytest.raises(RemoraError, match="stands in a list together with others"):
        run("apply", "-f", "-", stdin=DENY.replace("[{}]", "[{}, {}]"))
    assert "unchanged" in run("apply", "-f", "-", stdin=DENY)


def test_get_prints_tables_names_and_data(root: Path, tmp_path: Path) -> None:
    run("apply", "-f", "-", stdin=f"{DENY}---\n{STRICT}")
    assert run("get", "ap").splitlines()[0].split() == ["NAMESPACE", "NAME", "ACTION", "AGE"]
    assert run("get", "ap").splitlines()[1].split()[:3] == ["foo", "deny", "DENY"]
    assert run("get", "all", "-o", "name") == (
        "authorizationpolicy.security.istio.io/deny\npeerauthentication.security.istio.io/default\n"
    )
    shown = yaml.safe_load(run("get", "authorizationpolicies", "deny", "-o", "yaml"))
    assert shown["spec"] == {"action": "DENY", "rules": [{}]}
    assert shown["metadata"]["resourceVersion"]
    assert objects("ra") == []
    assert run("get", "ap", "-n", "bar", "-o", "name") == ""
    with pytest.raises(ResourceNotFound, match="no ap none in any namespace"):
        run("get", "ap", "none")


def test_what_get_prints_can_be_applied_again(root: Path, tmp_path: Path) -> None:
    run("apply", "-f", "-", stdin=f"{DENY}---\n{STRICT}")
    printed = run("get", "all", "-o", "yaml")
    assert run("apply", "-f", "-", stdin=printed).count("unchanged") == 2


def test_delete_by_file_and_of_what_is_not_there(root: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", f"{DENY}---\n{STRICT}")
    run("apply", "-f", file)
    assert run("delete", "-f", file, "--dry-run").count("deleted (dry run)") == 2
    run("delete", "pa", "default")
    with pytest.raises(ResourceNotFound, match="no PeerAuthentication default/default"):
        run("delete", "-f", file)
    assert len(objects()) == 1, "nothing is deleted when one is missing"


def test_a_change_made_to_an_old_version_is_refused(root: Path) -> None:
    run("apply", "-f", "-", stdin=DENY)
    mine = run("get", "ap", "deny", "-o", "yaml")
    run("apply", "-f", "-", stdin=DENY.replace("[{}]", "[{}, {}]"))
    with pytest.raises(ResourceConflict, match="somebody else has changed it meanwhile"):
        run("apply", "-f", "-", stdin=mine)
    run("delete", "ap", "deny", "-n", "foo")
    with pytest.raises(ResourceConflict, match="but it is not there"):
        run("apply", "-f", "-", stdin=mine)


def test_a_name_made_again_never_has_an_old_version() -> None:
    [resource] = load_resources(DENY).resources
    first = plan_apply({}, [resource], NOW)
    texts = {path: text or "" for path, text in first.files.items()}
    made = first.outcomes[0].resource
    assert made is not None
    changed = load_resources(DENY.replace("[{}]", "[{}, {}]")).resources
    second = plan_apply(texts, changed, NOW).outcomes[0].resource
    assert second is not None
    assert int(second.metadata.resource_version) > int(made.metadata.resource_version)
    assert second.metadata.creation_timestamp == made.metadata.creation_timestamp == NOW


def test_a_name_that_stands_twice_is_deleted_altogether() -> None:
    plan = plan_delete({"a.yaml": DENY, "b.yaml": DENY}, [("AuthorizationPolicy", "foo/deny")])
    assert plan.files == {"a.yaml": None, "b.yaml": None}


def test_whoever_comes_after_an_interrupted_writer_finishes_its_work(root: Path) -> None:
    write(root / JOURNAL, json.dumps({"foo/a.yaml": DENY, "b.yaml": None}))
    write(root / "b.yaml", STRICT)
    assert len(objects()) == 1
    assert tree(root) == {"foo/a.yaml": DENY}
    assert not (root / JOURNAL).exists()


def test_a_file_behind_a_symlink_is_written_where_it_is(root: Path, tmp_path: Path) -> None:
    real = write(tmp_path / "real.yaml", DENY)
    (root / "a.yaml").symlink_to(real)
    with writing(root):
        write_together(root, {"a.yaml": STRICT})
    assert (root / "a.yaml").is_symlink()
    assert real.read_text() == STRICT


@pytest.mark.e2e
def test_many_who_apply_at_once_lose_nothing(root: Path, tmp_path: Path) -> None:
    """Five processes write into the same file."""
    write(root / "mine.yaml", STRICT)
    commands = []
    for number in range(5):
        text = DENY.replace("name: deny", "name: default")
        file = write(tmp_path / f"{number}.yaml", text.replace("foo", f"ns{number}"))
        commands.append([sys.executable, "-m", "remora", "apply", "-f", str(file)])
    running = [subprocess.Popen(command, cwd=tmp_path, env=os.environ) for command in commands]
    assert [one.wait(30) for one in running] == [0] * 5
    assert len(objects()) == 6
    assert not (root / JOURNAL).exists()
