from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from mesh.errors import ConfigError
from remora.attach.plan import NETWORKS, Cable, Capture, Port, RunOptions, exit_code

SOCKET = Path("/run/remora/sds.sock")


def options(capture: Capture, *ports: Port) -> RunOptions:
    return RunOptions(
        command=("app",),
        capture=capture,
        ports=ports,
        agent_socket=None,
        agent_flags=("--ca-address=ca:15012",),
        proxy_flags=("--label=app=web",),
    )


def test_ports_are_written_as_docker_writes_them() -> None:
    assert Port.parse("8080") == Port(listen=8080, app=8080)
    assert Port.parse("8443:8080") == Port(listen=8443, app=8080)


@pytest.mark.parametrize("text", ["", "0", "65536", ":", "a:1", "1:b", "1:2:3", "-1"])
def test_other_ports_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write PORT, or LISTEN:PORT"):
        Port.parse(text)


def test_without_capture_the_sidecar_stands_before_each_port() -> None:
    plan = options(Capture.NONE, Port.parse("8443:8080"))
    arguments = plan.proxy_arguments(SOCKET)
    assert "--inbound=0.0.0.0:8443=127.0.0.1:8080" in arguments
    assert "--label=app=web" in arguments
    assert not any("--capture" in one for one in arguments)
    assert "--allow-uid" not in plan.agent_arguments(SOCKET)


def test_with_capture_no_port_is_named_and_the_agent_serves_the_sidecars_user() -> None:
    plan = options(Capture.HERE, Port.parse("8080"))
    assert "--capture=REDIRECT" in plan.proxy_arguments(SOCKET)
    assert not any("--inbound" in one for one in plan.proxy_arguments(SOCKET))
    assert plan.agent_arguments(SOCKET)[-4:-2] == ["--allow-uid", "1337"]


def test_without_capture_app_and_sidecar_cannot_have_the_same_port() -> None:
    with pytest.raises(ConfigError, match="write --port LISTEN:8080"):
        options(Capture.NONE, Port.parse("8080"))


def test_without_capture_some_port_must_be_named() -> None:
    with pytest.raises(ConfigError, match="give --port or --outbound"):
        options(Capture.NONE)
    assert options(Capture.OWN).captured


def test_without_a_command_there_is_nothing_to_run() -> None:
    with pytest.raises(ConfigError, match="no app to run"):
        RunOptions(
            command=(),
            capture=Capture.NONE,
            ports=(),
            agent_socket=None,
            agent_flags=(),
            proxy_flags=(),
        )


@pytest.mark.parametrize(("code", "shell"), [(0, 0), (7, 7), (-15, 143), (-9, 137)])
def test_a_signal_becomes_the_shells_code(code: int, shell: int) -> None:
    assert exit_code(code) == shell


def test_cables_never_share_an_address_and_stay_in_the_carriers_range() -> None:
    cables = [Cable(number=number, holder=1) for number in (1, 2, NETWORKS - 1)]
    ends = [end for cable in cables for end in (cable.outside, cable.inside)]
    assert len(set(ends)) == len(ends)
    assert all(end in IPv4Network("100.64.0.0/10") for end in ends)
    assert cables[0].outside == IPv4Address("100.64.0.5")
    assert all(len(cable.device) <= 15 for cable in cables)


def test_published_ports_lead_to_the_app_but_not_from_loopback() -> None:
    rules = Cable(number=1, holder=1).rules([Port.parse("80:8080")])
    assert rules.count("tcp dport 80 dnat to 100.64.0.6:8080") == 2
    assert rules.count("ip daddr != 127.0.0.0/8") == 2
