"""A running mesh of ours under traffic while its root is replaced, or a workload is revoked."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import trio

from ca.errors import RotationTooEarly
from ca.material import load_own_root
from ca.operations import (
    activate_root,
    prepare_root,
    retire_root,
    revoke_identity,
    root_status,
)
from ca.rotation import RotationStatus
from mesh.clock import system_now
from mesh.spiffe import SpiffeId
from tests.interop.mesh import LocalMesh, echo, exchange, serve_app, way_in, way_out
from tests.proxy.rig import echo as patient_echo

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120), pytest.mark.usefixtures("quick")]

SERVER, CLIENT, OTHER = "foo/server", "foo/client", "foo/other"
SERVER_ID = "spiffe://cluster.local/ns/foo/sa/server"
CLIENT_ID = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/client")

HOUR = timedelta(hours=1)
LIFE = timedelta(seconds=12)
"""Of certificates in the rotation: the last step has to wait until half of it has passed."""

Step = Callable[[Path, datetime], RotationStatus]


class Crowd:
    """Clients that connect again and again, and one that stays."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections = 0
        self.chunks = 0
        self.stop = trio.Event()

    async def come_and_go(self) -> None:
        while not self.stop.is_set():
            words = b"%d" % self.connections
            assert await exchange(self.port, words) == words
            self.connections += 1

    async def stay(self) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            while not self.stop.is_set():
                words = b"%d" % self.chunks
                await stream.send_all(words)
                assert await stream.receive_some() == words
                self.chunks += 1
                await trio.sleep(0.02)


async def take(mesh: LocalMesh, step: Step) -> int:
    """Take a step as soon as it is safe; return how often it was refused before."""
    refused = 0
    while True:
        try:
            await trio.to_thread.run_sync(step, mesh.state, system_now())
        except RotationTooEarly:
            refused += 1
            await trio.sleep(0.1)
        else:
            return refused


async def test_the_root_is_replaced_with_not_one_failed_connection(
    mesh: LocalMesh, nursery: trio.Nursery
) -> None:
    app = await serve_app(nursery, echo)
    servers = await mesh.start_agent(SERVER, secret_ttl=LIFE)
    clients = await mesh.start_agent(CLIENT, secret_ttl=LIFE)
    far = await mesh.start_proxy(servers, inbound=way_in(app))
    near = await mesh.start_proxy(clients, outbound=way_out(far.inbound[0].port, SERVER_ID))
    crowd = Crowd(near.outbound[0].port)
    old = load_own_root(mesh.state, mesh.trust_domain, system_now()).signer.certificate
    async with trio.open_nursery() as crowds:
        crowds.start_soon(crowd.stay)
        for _ in range(3):
            crowds.start_soon(crowd.come_and_go)
        await take(mesh, prepare_root)
        assert await take(mesh, activate_root) > 0, "not before the agents have the new root"
        assert await take(mesh, retire_root) > 0, "not while certificates of the old one are used"
        await trio.sleep(2.5)  # until every agent has dropped the old root
        before = crowd.connections
        await trio.sleep(0.5)
        crowd.stop.set()
    assert crowd.connections > before > 50
    assert crowd.chunks > 50
    own = load_own_root(mesh.state, mesh.trust_domain, system_now())
    assert old not in own.roots.authorities
    assert root_status(mesh.state, system_now()).phase == "steady"


async def test_a_long_lived_certificate_does_not_make_the_new_root_wait(
    mesh: LocalMesh, nursery: trio.Nursery
) -> None:
    """Agents fetch another certificate when they see the new root, and so confirm it."""
    await mesh.start_agent(CLIENT, secret_ttl=HOUR)
    await certificates(mesh, 1)
    await take(mesh, prepare_root)
    with trio.fail_after(20):
        assert await take(mesh, activate_root) > 0


async def certificates(mesh: LocalMesh, count: int) -> None:
    """Wait until so many certificates were issued."""
    log = mesh.state / "issued.jsonl"
    with trio.fail_after(10):
        while log.read_bytes().count(b"\n") < count:  # noqa: ASYNC110 - a file
            await trio.sleep(0.02)


async def test_a_revoked_workload_is_cut_off_and_others_are_not(
    mesh: LocalMesh, nursery: trio.Nursery
) -> None:
    app = await serve_app(nursery, patient_echo)
    far = await mesh.start_proxy(await mesh.start_agent(SERVER), inbound=way_in(app))
    ways: list[int] = []
    for account in (CLIENT, OTHER):
        socket = await mesh.start_agent(account)
        near = await mesh.start_proxy(socket, outbound=way_out(far.inbound[0].port, SERVER_ID))
        ways.append(near.outbound[0].port)
    revoked, kept = [await trio.open_tcp_stream("127.0.0.1", port) for port in ways]
    for stream in (revoked, kept):
        await stream.send_all(b"before")
        assert await stream.receive_some() == b"before"
    await trio.to_thread.run_sync(revoke_identity, mesh.state, CLIENT_ID, system_now())
    with trio.fail_after(15):
        with pytest.raises(trio.BrokenResourceError):
            await revoked.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await exchange_once(ways[0])
    await kept.send_all(b"after")
    assert await kept.receive_some() == b"after"
    assert await exchange(ways[1], b"hello") == b"hello"
    await trio.aclose_forcefully(revoked)
    await kept.aclose()


async def exchange_once(port: int) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"hello")
        await stream.receive_some()
