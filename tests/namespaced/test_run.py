"""`remora run` in a namespace that stands for a machine: real processes, real rules."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.namespaced.pods import APP, HERE, PORT, Pod, Program, city
from tests.namespaces import needs_namespaces

pytestmark = [needs_namespaces, pytest.mark.e2e, pytest.mark.timeout(180)]

NONE = ("--capture=none", "--port=8443:8080")
OBEY = "trap 'echo got it; exit 9' TERM; echo app ready; while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def machine() -> Iterator[Pod]:
    """A machine with a CA that it can reach."""
    with city() as made:
        pod = made.pod("machine", 0)
        made.prepare(pod)
        pod.space.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        yield pod


def command(machine: Pod, *flags: str, app: tuple[str, ...]) -> list[str]:
    directory = machine.directory
    return machine.space.command(
        *(sys.executable, "-m", "remora", "run", "--mtls-mode=STRICT"),
        *("--ca-address=10.77.99.2:15012", f"--ca-root-cert={directory / 'root-cert.pem'}"),
        f"--token-file={directory / 'token'}",
        *flags,
        "--",
        *app,
    )


def start(machine: Pod, *flags: str, app: tuple[str, ...]) -> Program:
    return machine.city.program(command(machine, *flags, app=app))


def shell(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


@pytest.mark.parametrize("capture", ["none", "own"])
def test_the_app_runs_when_the_sidecar_is_ready_and_its_code_is_ours(
    machine: Pod, capture: str
) -> None:
    before = machine.space.state()
    run = start(
        machine,
        f"--capture={capture}",
        "--port=8443:8080",
        app=shell("echo it ran; exit 7"),
    )
    run.wait_for("it ran")
    assert run.end(0) == 7
    order = [
        next(n for n, line in enumerate(run.lines) if text in line)
        for text in ("agent ready", "proxy ready", "it ran")
    ]
    assert order == sorted(order)
    assert machine.space.state() == before
    assert "remora" not in machine.space.ip("-brief", "link")


@pytest.mark.parametrize("capture", ["none", "own"])
def test_signals_are_the_apps_and_its_answer_is_ours(machine: Pod, capture: str) -> None:
    run = start(machine, f"--capture={capture}", "--port=8443:8080", app=shell(OBEY))
    run.wait_for("app ready")
    assert run.end(signal.SIGTERM) == 9
    assert "got it" in run.lines


def test_an_app_that_a_signal_ends_gives_the_shells_code(machine: Pod) -> None:
    run = start(machine, *NONE, app=shell("kill -KILL $$"))
    assert run.end(0) == 137


def test_a_signal_before_the_app_has_started_ends_it_all(machine: Pod) -> None:
    run = start(machine, *NONE, "--agent-socket=/nowhere/sds.sock", app=shell("echo it ran"))
    run.wait_for("waiting for a certificate")
    assert run.end(signal.SIGTERM) == 143
    assert "it ran" not in run.lines


def test_without_its_sidecar_the_app_does_not_go_on(machine: Pod) -> None:
    run = start(machine, *NONE, app=shell("echo app ready; exec sleep 60"))
    run.wait_for("app ready")
    machine.space.run("pkill", "-P", str(run.pid), "-f", "proxy run")
    assert run.end(0) == 1
    assert any("proxy ended with code" in line for line in run.lines)


def test_an_app_that_does_not_exist_is_one_clear_line(machine: Pod) -> None:
    run = start(machine, *NONE, app=("/no/such/app",))
    run.wait_for("remora: cannot run /no/such/app: No such file or directory")
    assert run.end(0) == 1


def test_two_apps_in_namespaces_of_their_own_speak_mutual_tls(machine: Pod) -> None:
    server = start(
        machine,
        *("--capture=own", f"--port={PORT}"),
        app=(*APP, sys.executable, str(HERE / "app.py"), str(PORT)),
    )
    server.wait_for("app ready")
    address = server.wait_for("network namespace made").split("address=")[1].split()[0]
    identity = machine.identity
    client = start(
        machine,
        *("--capture=own", f"--destination={address}:{PORT}@{identity}"),
        app=(sys.executable, "-S", str(HERE / "dial.py"), address, str(PORT), "who"),
    )
    client.wait_for("127.0.0.6")
    assert client.end(0) == 0
    server.wait_for("direction=inbound", "transport=mtls", f"peer_id={identity}")
    # Neither the machine itself nor the port that it publishes lead round the sidecar.
    assert machine.dial(address, "who") == "reset"
    assert machine.dial(machine.ip, "who") == "reset"
    server.end()


def test_capture_needs_root_and_says_so(machine: Pod) -> None:
    done = machine.space.run(
        *APP,
        *command(machine, "--capture=own", app=shell("echo it ran"))[4:],
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "remora: --capture own needs root: without it, --capture none\n"


def test_here_is_for_namespaces_that_are_there_already(machine: Pod, tmp_path: Path) -> None:
    before = machine.space.state()
    script = "nft list table inet remora-nat >/dev/null && echo rules are there"
    run = start(machine, "--capture=here", app=shell(script))
    run.wait_for("rules are there")
    assert run.end(0) == 0
    assert machine.space.state() == before
