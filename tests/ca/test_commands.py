"""`remora ca serve` and `remora token create` as an operator meets them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ca.errors import NothingToRevoke, RotationTooEarly
from ca.issued_log import IssuedLog
from ca.join_tokens import JOIN_TOKENS
from ca.ledger import IssuedRecord, anchor_id
from ca.material import load_or_create, load_own_root, load_token_key
from ca.state import ROOT_CERT, TOKEN_KEY
from ca.tokens import JOIN_ISSUER, own_issuer, verify_join_token, verify_token
from mesh.errors import ConfigError
from mesh.spiffe import ServiceAccount
from remora.commands import ca, token
from tests.ca.workshop import CLUSTER
from tests.pki import real_now

APP = typer.Typer(rich_markup_mode=None)  # as the real one
APP.add_typer(ca.app, name="ca")
APP.add_typer(token.app, name="token")

PROGRAM = """
import sys
from mesh.errors import ConfigError
from remora.program import complain
from tests.ca.test_commands import APP
try:
    APP()
except ConfigError as error:
    complain(error)
    sys.exit(2)
"""


def run(*arguments: str | Path) -> str:
    """Run a command in this process; its foreseen errors come out as they are."""
    result = CliRunner().invoke(APP, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture
def state(tmp_path: Path) -> Path:
    load_or_create(tmp_path / "state", CLUSTER, real_now())
    return tmp_path / "state"


def test_a_token_is_one_line_that_the_ca_believes(state: Path) -> None:
    printed = run("token", "create", "--state-dir", state, "--service-account", "foo/web")
    assert printed.count("\n") == 1
    trusted = own_issuer(load_token_key(state).public_key(), ["istio-ca"])
    account = ServiceAccount("foo", "web")
    assert verify_token(printed.strip(), trusted, real_now()) == account
    assert verify_token(printed.strip(), trusted, real_now() + timedelta(minutes=59)) == account


def test_life_and_audience_of_a_token_may_be_chosen(state: Path) -> None:
    printed = run(
        "token", "create", "--state-dir", state, "--service-account", "foo/web",
        "--ttl", "24h", "--audience", "vault",
    )  # fmt: skip
    trusted = own_issuer(load_token_key(state).public_key(), ["vault"])
    verify_token(printed.strip(), trusted, real_now() + timedelta(hours=23))


def test_a_join_token_is_another_kind_of_token_and_is_remembered(state: Path) -> None:
    printed = run("token", "create", "--join", "--state-dir", state, "--service-account", "foo/web")
    key = load_token_key(state).public_key()
    trusted = own_issuer(key, ["istio-ca"], JOIN_ISSUER)
    account, token_id = verify_join_token(printed.strip(), trusted, real_now())
    assert account == ServiceAccount("foo", "web")
    assert [path.name for path in (state / JOIN_TOKENS).iterdir()] == [token_id]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(["--service-account", "web"], "NAMESPACE/NAME", id="no-namespace"),
        pytest.param(["--service-account", "Foo/web"], "as Kubernetes has them", id="capital"),
        pytest.param(["--service-account", "a/b", "--ttl", "0s"], "--ttl 0s", id="no-life"),
        pytest.param(["--service-account", "a/b", "--ttl", "x"], "not a duration", id="ttl"),
        pytest.param(["--service-account", "a/b", "--audience", ""], "--audience", id="audience"),
    ],
)
def test_token_flags_that_cannot_work(state: Path, arguments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        run("token", "create", "--state-dir", state, *arguments)


def test_a_token_before_the_ca_was_started_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start the CA once"):
        run("token", "create", "--state-dir", tmp_path, "--service-account", "a/b")
    assert not (tmp_path / TOKEN_KEY).exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(["--listen", "15012"], "not an address", id="listen"),
        pytest.param(["--trust-domain", "Upper"], "--trust-domain", id="trust-domain"),
        pytest.param(["--workload-cert-ttl", "1 day"], "not a duration", id="ttl"),
        pytest.param(["--workload-cert-ttl", "0s"], "--workload-cert-ttl", id="no-life"),
        pytest.param(["--max-workload-cert-ttl", "1h"], "longer than", id="max-ttl"),
        pytest.param(["--dns-name", "a b"], "--dns-name", id="dns-name"),
        pytest.param(["--jwks-issuer", "x"], "--jwks", id="issuer-alone"),
        pytest.param(["--jwks", "http://keys.test/"], "https://", id="jwks-plain"),
        pytest.param(["--oidc-issuer", "http://keys.test/"], "https://", id="oidc-plain"),
        pytest.param(["--issuer-ca", "x"], "--oidc-issuer", id="issuer-ca-alone"),
        pytest.param(["--token-audience", ""], "--token-audience", id="audience"),
    ],
)
def test_ca_flags_that_cannot_work(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        run("ca", "serve", "--state-dir", tmp_path / "state", *arguments)
    assert not (tmp_path / "state").exists()


def status(state: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        run("ca", "root", "status", "--state-dir", state, "-o", "json")
    )
    return found


def test_a_root_is_replaced_in_three_commands(state: Path) -> None:
    IssuedLog(state).close()
    assert status(state)["phase"] == "steady"
    for command, phase, following in (
        ("prepare", "prepared", "activate"),
        ("activate", "activated", "retire"),
        ("retire", "steady", "prepare"),
    ):
        printed = run("ca", "root", command, "--state-dir", state)
        assert printed.splitlines()[0] == f"rotation  {phase}"
        assert printed.splitlines()[-1] == f"ready for remora ca root {following}"
        assert status(state)["next"] == following


def issue(state: Path, serial: int) -> None:
    log = IssuedLog(state)
    log.add(
        IssuedRecord(
            serial=serial,
            identity="spiffe://cluster.local/ns/foo/sa/web",
            issued_at=real_now(),
            not_after=real_now() + timedelta(hours=1),
            signer=anchor_id(load_own_root(state, CLUSTER, real_now()).signer.certificate),
            roots=frozenset(),
        )
    )
    log.close()


def test_a_command_that_comes_too_early_says_what_it_waits_for(state: Path) -> None:
    issue(state, 0xABC)
    run("ca", "root", "prepare", "--state-dir", state)
    with pytest.raises(RotationTooEarly, match="sa/web"):
        run("ca", "root", "activate", "--state-dir", state)
    printed = run("ca", "root", "status", "--state-dir", state)
    assert "activate waits for 1 certificates" in printed
    assert "spiffe://cluster.local/ns/foo/sa/web  abc  until " in printed
    found = status(state)
    assert not found["ready"]
    assert [one["serial"] for one in found["waitingFor"]] == ["abc"]


def test_revoking_by_command(state: Path) -> None:
    issue(state, 0xABC)
    issue(state, 0xDEF)
    identity = "spiffe://cluster.local/ns/foo/sa/web"
    by = ("ca", "revoke", "--state-dir", state)
    assert run(*by, "--serial", "ABC") == f"revoked abc of {identity}\n"
    assert run(*by, "--identity", identity) == f"revoked def of {identity}\n"
    assert "gets none from now on" in run(*by, "--identity", identity)
    assert "may have certificates again" in run(*by, "--undo", "--identity", identity)
    for wrong in ([], ["--serial", "1", "--identity", identity], ["--undo", "--serial", "1"]):
        with pytest.raises(ConfigError, match="either --serial or --identity"):
            run(*by, *wrong)
    with pytest.raises(ConfigError, match="--identity"):
        run(*by, "--identity", "web")
    with pytest.raises(NothingToRevoke):
        run(*by, "--serial", "123")


@contextmanager
def process(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM, *(str(argument) for argument in arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as ca:
        try:
            yield ca
        finally:
            ca.kill()


@pytest.mark.e2e
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_real_ca_starts_says_where_and_stops_when_asked(tmp_path: Path, stop: int) -> None:
    state = tmp_path / "state"
    with process("ca", "serve", "--state-dir", state, "--listen", "127.0.0.1:0") as running:
        assert running.stderr is not None
        lines = []
        for line in running.stderr:
            lines.append(line)
            if "ca ready" in line:
                break
        assert re.search(r"127\.0\.0\.1:[1-9]", lines[-1]), lines
        assert (state / ROOT_CERT).exists()
        running.send_signal(stop)
        assert running.wait(10) == 0
        assert "Traceback" not in "".join(lines) + running.stderr.read()


@pytest.mark.e2e
def test_a_real_ca_that_cannot_start_says_why_in_one_line(state: Path) -> None:
    (state / TOKEN_KEY).write_text("junk")
    with process("ca", "serve", "--state-dir", state, "--listen", "127.0.0.1:0") as failing:
        _, complaint = failing.communicate(timeout=20)
        assert failing.returncode == 2
        assert complaint.count("\n") == 1
        assert complaint.startswith(f"remora: {state / TOKEN_KEY} is not an unencrypted PEM")
