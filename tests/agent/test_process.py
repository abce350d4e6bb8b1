"""Attestation of real processes by the kernel."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
import trio
import trio.testing

from agent.attested import AttestedStream, attesting_gate
from agent.caller import Facts
from agent.entitlement import AttestedPeer
from agent.errors import AttestationFailed, CallerRefused
from agent.process import Process
from agent.selector import KINDS
from mesh.unix_socket import PeerCredentials, peer_credentials, unix_listener
from tests.agent.callers import PYTHON, calling, copy_of_python

NOBODY = 65534

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs to act as another user")


@pytest.fixture
def path() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="remora-") as name:
        Path(name).chmod(0o711)
        yield Path(name) / "s"


async def accept(listener: trio.SocketListener) -> trio.SocketStream:
    with trio.fail_after(10):
        return await listener.accept()


async def facts_of(path: Path, **how: object) -> Facts:
    """Attest one process, started as `calling` has it."""
    async with unix_listener(path, 0o666) as listener:
        with calling(path, **how):  # type: ignore[arg-type]
            stream = await accept(listener)
            process = Process.of(stream, peer_credentials(stream))
            try:
                return await process.facts(KINDS)
            finally:
                process.close()
                await stream.aclose()


async def test_what_the_kernel_tells(path: Path) -> None:
    facts = await facts_of(path)
    assert (facts.uid, facts.gid) == (os.geteuid(), os.getegid())
    assert facts.path == PYTHON
    assert facts.sha256 == hashlib.sha256(Path(PYTHON).read_bytes()).hexdigest()
    assert facts.user == ("root" if os.geteuid() == 0 else facts.user)


@root_only
async def test_another_user(path: Path) -> None:
    facts = await facts_of(path, user=NOBODY, groups=[4, 27])
    assert (facts.uid, facts.gid) == (NOBODY, NOBODY)
    assert facts.supplementary_gids == (4, 27)
    assert facts.user == "nobody"
    assert set(facts.supplementary_groups) >= {"adm"}


async def test_the_executable_not_its_name_on_the_command_line(path: Path) -> None:
    made = copy_of_python(path.parent)
    facts = await facts_of(path, python=made)
    assert facts.path == made


async def test_only_what_is_asked_for_is_found_out(path: Path) -> None:
    async with unix_listener(path) as listener:
        with calling(path):
            stream = await accept(listener)
            process = Process.of(stream, peer_credentials(stream))
            facts = await process.facts({"unix:uid"})
            assert (facts.path, facts.sha256, facts.user) == (None, None, None)
            process.close()
            await stream.aclose()


@root_only
async def test_a_path_of_another_mount_namespace_does_not_count(path: Path) -> None:
    """Any user may put a file of his own over any path, where only he sees it."""
    made = copy_of_python(path.parent)
    other = path.parent / "innocent"
    other.write_bytes(b"#!/bin/sh\n")
    other.chmod(0o755)
    cover = f'mount --bind {made} {other} && exec "$0" "$@"'
    prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", cover]
    facts = await facts_of(path, python=str(other), prefix=prefix)
    assert facts.path is None
    assert facts.sha256 == hashlib.sha256(Path(made).read_bytes()).hexdigest()


async def test_a_caller_that_is_gone_before_it_is_accepted(path: Path) -> None:
    async with unix_listener(path) as listener:
        with calling(path, stay=False):
            stream = await accept(listener)
            with pytest.raises(AttestationFailed, match="is gone"):
                Process.of(stream, peer_credentials(stream))
            await stream.aclose()


async def test_a_process_id_that_was_given_to_another_is_of_no_use(path: Path) -> None:
    """The connection's process has ended; its id, as far as the agent can tell, lives on."""
    async with unix_listener(path) as listener:
        with calling(path, stay=False):
            stream = await accept(listener)
            known = peer_credentials(stream)
            reused = PeerCredentials(pid=os.getpid(), uid=known.uid, gid=known.gid)
            with pytest.raises(AttestationFailed, match="is gone"):
                Process.of(stream, reused)
            await stream.aclose()


async def test_a_process_that_ends_while_it_is_looked_at(path: Path) -> None:
    async with unix_listener(path) as listener:
        with calling(path) as caller:
            stream = await accept(listener)
            process = Process.of(stream, peer_credentials(stream))
            assert process.alive()
            caller.end()
            assert not process.alive()
            with pytest.raises(AttestationFailed):
                await process.facts(KINDS)
            process.close()
            await stream.aclose()


@root_only
async def test_a_process_that_became_another_user_since(path: Path) -> None:
    async with unix_listener(path, 0o666) as listener:
        with calling(path, user=NOBODY):
            stream = await accept(listener)
            credentials = peer_credentials(stream)
            changed = PeerCredentials(pid=credentials.pid, uid=0, gid=0)
            process = Process.of(stream, changed)
            with pytest.raises(AttestationFailed, match="connected as user 0"):
                await process.facts(KINDS)
            process.close()
            await stream.aclose()


async def test_without_the_newer_kernels_handle(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.unix_socket.SO_PEERPIDFD", 9999)
    facts = await facts_of(path)
    assert facts.path == PYTHON


async def test_handles_are_closed_when_the_last_user_is_done(path: Path) -> None:
    async with unix_listener(path) as listener:
        with calling(path):
            stream = await accept(listener)
            before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
            process = Process.of(stream, peer_credentials(stream))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.wait_end)
                await trio.testing.wait_all_tasks_blocked()
                process.close()
                assert process.alive(), "somebody still waits for its end"
                nursery.cancel_scope.cancel()
            assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
            with pytest.raises(AttestationFailed):
                await process.facts(KINDS)
            await stream.aclose()


async def test_a_connection_ends_with_its_caller_whoever_holds_it(
    path: Path, nursery: trio.Nursery
) -> None:
    async with unix_listener(path) as listener:
        with calling(path) as caller:
            stream, peer = await attesting_gate(nursery)(await accept(listener))
            assert isinstance(stream, AttestedStream)
            assert isinstance(peer, AttestedPeer)
            assert peer.process.credentials.pid == caller.pid
            await caller.stream.send_all(b"hello")
            assert await stream.receive_some(5) == b"hello"
            caller.end()
            with trio.fail_after(10):
                assert await caller.stream.receive_some(1) == b"", "our copy is of no use any more"


async def test_a_connection_that_is_closed_is_not_watched_any_more(path: Path) -> None:
    async with unix_listener(path) as listener:
        with calling(path):
            async with trio.open_nursery() as nursery:
                stream, _peer = await attesting_gate(nursery)(await accept(listener))
                await trio.testing.wait_all_tasks_blocked()
                await stream.aclose()
                await stream.aclose()


async def test_no_user_takes_the_places_of_all_others(
    path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.attested.MAX_CONNECTIONS", 2)
    gate = attesting_gate(nursery)
    async with unix_listener(path) as listener:
        with calling(path), calling(path), calling(path):
            sockets = [await accept(listener) for _ in range(3)]
            streams = [(await gate(socket))[0] for socket in sockets[:2]]
            with pytest.raises(CallerRefused, match="2 connections open already"):
                await gate(sockets[2])
            await streams[0].aclose()
            streams.append((await gate(sockets[2]))[0])
            for stream in streams:
                await stream.aclose()


async def test_a_process_out_of_sight_is_refused(
    path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = PeerCredentials(pid=0, uid=0, gid=0)
    monkeypatch.setattr("agent.attested.peer_credentials", lambda _: nowhere)
    near, far = socket.socketpair()
    with near, far:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
        with pytest.raises(CallerRefused, match="PID namespace"):
            await attesting_gate(nursery)(stream)
