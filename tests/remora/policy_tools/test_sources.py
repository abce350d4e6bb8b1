"""What is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.errors import ConfigError
from remora.policy_tools.sources import Given, gather, read_texts
from tests.remora.policy_tools.shop import ALLOW_WEB, REGISTRY, STRICT, text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "a.yaml").write_text(STRICT)
    (tmp_path / "b" / "b.yml").write_text(ALLOW_WEB)
    (tmp_path / "readme.md").write_text("- [")
    (tmp_path / ".git" / "x.yaml").write_text("- [")
    return tmp_path


def names(given: Given) -> list[str]:
    return sorted(f"{type(one).__name__} {one.key}" for one in gather(given).resources)


def test_a_folder_is_read_whole_but_for_what_is_hidden_or_of_another_kind(folder: Path) -> None:
    assert names(Given(paths=(folder,))) == [
        "AuthorizationPolicy shop/catalog",
        "PeerAuthentication istio-system/default",
    ]
    assert gather(Given(paths=(folder,))).problems == ()


def test_a_file_named_twice_is_read_once(folder: Path) -> None:
    given = Given(paths=(folder, folder / "a.yaml"))
    assert gather(given).problems == ()


def test_a_resource_in_two_files_is_a_problem(folder: Path) -> None:
    (folder / "c.yaml").write_text(STRICT)
    (problem,) = gather(Given(paths=(folder,))).problems
    assert problem.file == str(folder / "c.yaml")
    assert problem.resource == "PeerAuthentication istio-system/default"


def test_a_state_directory_holds_resources(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "resources").mkdir(parents=True)
    (state / "resources" / "r.yaml").write_text(REGISTRY)
    assert len(gather(Given(state_dir=state)).resources) == 4


def test_mesh_settings_are_found_in_the_folder_or_named(folder: Path, tmp_path: Path) -> None:
    assert gather(Given(paths=(folder,))).config.trust_domain == "cluster.local"
    (folder / "mesh.yaml").write_text("trustDomain: a.b")
    held = gather(Given(paths=(folder,)))
    assert held.config.trust_domain == "a.b"
    assert held.problems == ()
    named = tmp_path / "other"
    named.write_text("trustDomain: c.d")
    with pytest.raises(ConfigError, match="several"):
        gather(Given(paths=(folder,), mesh_config=named))
    only = Given(paths=(folder / "a.yaml",), mesh_config=named)
    assert gather(only).config.trust_domain == "c.d"
    named.write_text("trustDomian: c.d")
    with pytest.raises(ConfigError, match="did you mean trustDomain"):
        gather(only)


def test_files_of_cases_beside_the_resources_are_no_resources(folder: Path) -> None:
    cases = folder / "cases.yaml"
    cases.write_text("cases: []")
    assert gather(Given(paths=(folder,))).problems != ()
    assert gather(Given(paths=(folder,), besides=(cases,))).problems == ()


def test_unknown_kinds_are_passed_over_only_on_request(folder: Path) -> None:
    (folder / "d.yaml").write_text(text("apiVersion: v1\nkind: Service\nmetadata: {name: x}"))
    assert len(gather(Given(paths=(folder,))).problems) == 1
    held = gather(Given(paths=(folder,), skip_unknown_kinds=True))
    assert held.problems == ()
    assert len(held.skipped) == 1


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="-f"):
        read_texts(Given())
    with pytest.raises(ConfigError, match="No such file"):
        read_texts(Given(paths=(tmp_path / "x.yaml",)))
    (tmp_path / "y.yaml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_texts(Given(paths=(tmp_path,)))
