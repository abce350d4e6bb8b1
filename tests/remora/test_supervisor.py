"""Several workers behind one port, real processes: shared work, restarts, and an orderly end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.errors import ConfigError
from proxy.config import Discovery, ProxyConfig, parse_inbound
from proxy.mode import MtlsMode

pytestmark = pytest.mark.e2e

PROGRAM = """
import functools, os, signal, sys
import trio
from mesh.errors import ConfigError
from mesh.log import configure_logging
from proxy.listener import open_listeners
from mesh.address import Address
from remora.program import run_program
from remora.supervisor import supervise, until_orphaned

configure_logging()
port = int(sys.argv[1])

async def serve(number):
    if port == 1:
        raise ConfigError("nothing will do")

    async def answer(stream):
        async with stream:
            await stream.send_all(f"{number} {os.getpid()}".encode())

    listeners = await open_listeners(Address("127.0.0.1", port), shared=True)
    await trio.serve_listeners(answer, listeners)

def work(number, lifeline):
    run_program(functools.partial(until_orphaned, functools.partial(serve, number), lifeline))

supervise(3, work)
"""


@contextlib.contextmanager
def supervised(port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(port)], stderr=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def ask(port: int) -> tuple[int, int]:
    """Return which worker answers, and its process."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as sock:
                number, pid = sock.recv(100).split()
                return int(number), int(pid)
        except (OSError, ValueError):
            if time.monotonic() > deadline:
                raise


def until_all_answer(port: int) -> dict[int, int]:
    """Ask until each of the three workers has answered; return their processes."""
    found: dict[int, int] = {}
    deadline = time.monotonic() + 20
    while len(found) < 3:
        assert time.monotonic() < deadline, found
        number, pid = ask(port)
        found[number] = pid
    return found


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its supervisor"


def test_new_connections_are_dealt_out_and_a_signal_ends_all(tmp_path: Path) -> None:
    port = free_port()
    with supervised(port, tmp_path / "log") as process:
        pids = until_all_answer(port)
        shares = Counter(ask(port)[0] for _ in range(300))
        assert min(shares.values()) > 50
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        wait_gone(list(pids.values()))


def test_a_worker_that_falls_is_started_again(tmp_path: Path) -> None:
    port = free_port()
    with supervised(port, tmp_path / "log") as process:
        before = until_all_answer(port)
        os.kill(before[1], signal.SIGKILL)
        wait_gone([before[1]])
        after = until_all_answer(port)
        assert after[1] != before[1]
        assert after[0] == before[0]
        assert process.poll() is None
    assert b"started again" in (tmp_path / "log").read_bytes()


def test_workers_do_not_outlive_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    port = free_port()
    with supervised(port, tmp_path / "log") as process:
        pids = until_all_answer(port)
        process.kill()
        process.wait()
        wait_gone(list(pids.values()))


def test_a_configuration_that_no_worker_can_use_ends_all(tmp_path: Path) -> None:
    with supervised(1, tmp_path / "log") as process:
        assert process.wait(20) == 2
    assert b"nothing will do" in (tmp_path / "log").read_bytes()


def test_workers_cannot_share_what_each_would_have_alone(tmp_path: Path) -> None:
    ways_in = parse_inbound(["127.0.0.1:0=127.0.0.1:80"], MtlsMode.DISABLE, {})
    with pytest.raises(ConfigError, match="name the ports"):
        ProxyConfig(agent_socket=tmp_path, inbound=ways_in, shared_ports=True)
    ways_in = parse_inbound(["127.0.0.1:15006=127.0.0.1:80"], None, {})
    with pytest.raises(ConfigError, match="leave out --workers"):
        ProxyConfig(
            agent_socket=tmp_path,
            inbound=ways_in,
            discovery=Discovery(name="a", state_dir=tmp_path),
            shared_ports=True,
        )
