from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent.config import AgentConfig, MountedConfig
from mesh.errors import ConfigError
from mesh.spiffe import ServiceAccount, SpiffeId
from remora.cli import app as remora
from tests.pki import make_root


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "root-cert.pem").write_bytes(make_root().pem)
    return {
        "--ca-address": "127.0.0.1:15012",
        "--ca-root-cert": str(tmp_path / "root-cert.pem"),
        "--token-file": str(tmp_path / "token"),
        "--socket": str(tmp_path / "agent.sock"),
    }


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[AgentConfig]:
    configs: list[AgentConfig] = []

    def run_program(main: Any) -> None:
        configs.append(main.args[0])

    monkeypatch.setattr("remora.program.run_program", run_program)
    # The process's logging is other tests' too.
    monkeypatch.setattr("remora.commands.agent.configure_logging", lambda *_: None)
    return configs


def invoke(flags: dict[str, str]) -> Any:
    arguments = [part for flag in flags.items() for part in flag]
    return CliRunner().invoke(remora, ["agent", "run", *arguments])


def test_defaults(flags: dict[str, str], ran: list[AgentConfig]) -> None:
    assert invoke(flags).exit_code == 0
    [config] = ran
    assert config.ca_name == SpiffeId.parse("spiffe://cluster.local/ns/istio-system/sa/istiod")
    assert config.account is None
    assert config.secret_ttl.total_seconds() == 86400
    assert config.allow_uids == ()


def test_every_flag(flags: dict[str, str], ran: list[AgentConfig]) -> None:
    more = {
        "--trust-domain": "example.org",
        "--service-account": "foo/httpbin",
        "--secret-ttl": "1h30m",
        "--ca-name": "istiod.istio-system.svc",
        "--allow-uid": "1337",
        "--log-format": "json",
        "--log-level": "error",
    }
    assert invoke(flags | more).exit_code == 0
    [config] = ran
    assert str(config.trust_domain) == "example.org"
    assert config.account == ServiceAccount("foo", "httpbin")
    assert config.secret_ttl.total_seconds() == 5400
    assert config.ca_name == "istiod.istio-system.svc"
    assert config.allow_uids == (1337,)


def test_a_whole_node(flags: dict[str, str], ran: list[AgentConfig]) -> None:
    assert invoke(flags | {"--registration": "entries.yaml"}).exit_code == 0
    assert ran[0].registration == Path("entries.yaml")


def test_the_rest_of_the_flags(
    flags: dict[str, str], ran: list[AgentConfig], tmp_path: Path
) -> None:
    more = {
        "--output-certs": str(tmp_path / "out"),
        "--prov-cert": str(tmp_path / "in"),
        "--status-listen": "127.0.0.1:15020",
    }
    assert invoke(flags | more).exit_code == 0
    [config] = ran
    assert config.output_certs == tmp_path / "out"
    assert config.prov_cert == tmp_path / "in"
    assert str(config.status_listen) == "127.0.0.1:15020"


def test_files_need_no_ca(ran: list[Any], tmp_path: Path) -> None:
    flags = {"--socket": str(tmp_path / "s"), "--file-mounted-certs": "/etc/certs"}
    assert invoke(flags).exit_code == 0
    assert isinstance(ran[0], MountedConfig)
    assert ran[0].directory == Path("/etc/certs")


@pytest.mark.parametrize("flag", ["--ca-address", "--ca-root-cert", "--token-file"])
def test_without_files_the_ca_is_needed(
    flags: dict[str, str], ran: list[AgentConfig], flag: str
) -> None:
    del flags[flag]
    result = invoke(flags)
    assert isinstance(result.exception, ConfigError)
    assert f"give {flag}" in str(result.exception)


@pytest.mark.parametrize(
    "flag", [("--allow-uid", "5"), ("--service-account", "foo/httpbin"), ("--output-certs", "d")]
)
def test_entries_leave_nothing_to_flags(
    flags: dict[str, str], ran: list[AgentConfig], flag: tuple[str, str]
) -> None:
    result = invoke(flags | {"--registration": "entries.yaml", flag[0]: flag[1]})
    assert isinstance(result.exception, ConfigError)
    assert not ran


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--ca-address", "nowhere:at:all"),
        ("--ca-root-cert", "/nowhere/root-cert.pem"),
        ("--trust-domain", "Upper"),
        ("--service-account", "httpbin"),
        ("--secret-ttl", "soon"),
        ("--secret-ttl", "0s"),
        ("--ca-name", "spiffe://"),
        ("--allow-uid", "-5"),
    ],
)
def test_malformed_flag(
    flags: dict[str, str], ran: list[AgentConfig], flag: str, value: str
) -> None:
    result = invoke(flags | {flag: value})
    assert isinstance(result.exception, ConfigError)
    assert "\n" not in str(result.exception)
    assert not ran
