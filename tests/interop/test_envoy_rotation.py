"""A real Envoy under traffic while its certificate, and then the root of the mesh, are replaced."""

from __future__ import annotations

import hashlib
import json
import random
from datetime import timedelta

import pytest
import trio

from ca.errors import RotationTooEarly
from ca.operations import activate_root, prepare_root, retire_root, root_status
from mesh.clock import system_now
from tests.interop.envoy import Envoy, Sidecar, running
from tests.interop.mesh import LocalMesh, echo, exchange, serve_app, way_out
from tests.interop.test_envoy import CLIENT, CLIENT_ID, SERVER, SERVER_ID, folder_for, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

LIFE = timedelta(seconds=8)
"""Of certificates: renewed every four seconds, and dead soon enough for a step of the rotation."""


class Traffic:
    """One long transfer, in small steps, and one new connection after the other."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections = 0
        self.stop = trio.Event()
        self.sent, self.received = hashlib.sha256(), hashlib.sha256()
        self.bytes = 0

    async def long_transfer(self) -> None:
        chunks = random.Random(1)
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            while not self.stop.is_set():
                chunk = chunks.randbytes(16 * 1024)
                self.sent.update(chunk)
                await stream.send_all(chunk)
                left = len(chunk)
                while left:
                    data = await stream.receive_some(left)
                    assert data, "the long transfer was cut"
                    self.received.update(data)
                    left -= len(data)
                self.bytes += len(chunk)
                await trio.sleep(0.05)

    async def new_connections(self) -> None:
        while not self.stop.is_set():
            word = b"%d" % self.connections
            assert await exchange(self.port, word) == word
            self.connections += 1
            await trio.sleep(0.05)


async def step(mesh: LocalMesh, change: object) -> None:
    """Take one step of the root's rotation as soon as the CA lets us."""
    while True:
        try:
            await trio.to_thread.run_sync(change, mesh.state, system_now())  # type: ignore[arg-type]
        except RotationTooEarly:
            await trio.sleep(0.5)
        else:
            return


async def shown(envoy: Envoy) -> tuple[str, frozenset[str]]:
    """Return the serial numbers of Envoy's certificate and of its roots."""
    [entry] = json.loads(await envoy.get("/certs"))["certificates"][:1]
    roots = frozenset(root["serial_number"] for root in entry["ca_cert"])
    return entry["cert_chain"][0]["serial_number"], roots


async def test_certificate_and_root_are_replaced_under_traffic(
    mesh: LocalMesh, nursery: trio.Nursery
) -> None:
    app = await serve_app(nursery, echo)
    sidecar = Sidecar(
        listen=free_port(),
        forward=("127.0.0.1", app),
        sds_socket=await mesh.start_agent(SERVER, secret_ttl=LIFE),
        peer=CLIENT_ID,
        server=True,
    )
    agent = await mesh.start_agent(CLIENT, secret_ttl=LIFE)
    async with running(sidecar, folder_for(mesh)) as envoy:
        ours = await mesh.start_proxy(agent, outbound=way_out(sidecar.listen, SERVER_ID))
        traffic = Traffic(ours.outbound[0].port)
        before = await shown(envoy)
        async with trio.open_nursery() as clients:
            clients.start_soon(traffic.long_transfer)
            clients.start_soon(traffic.new_connections)
            for change in (prepare_root, activate_root, retire_root):
                await step(mesh, change)
            await renewed(envoy, before)
            traffic.stop.set()
        after = await shown(envoy)
        assert after[0] != before[0]
        assert not after[1] & before[1], "no old root is trusted any more"
        assert traffic.sent.digest() == traffic.received.digest()
        assert traffic.connections > 50
        prefix = f"listener.127.0.0.1_{sidecar.listen}.ssl"
        names = ("connection_error", "fail_verify_error", "fail_verify_san", "fail_verify_no_cert")
        assert set((await envoy.stats(*(f"{prefix}.{name}" for name in names))).values()) == {0}
        assert (await envoy.stats(f"{prefix}.handshake"))[f"{prefix}.handshake"] > 50
    final = await trio.to_thread.run_sync(root_status, mesh.state, system_now())
    assert final.phase == "steady"


async def renewed(envoy: Envoy, before: tuple[str, frozenset[str]]) -> None:
    """Wait until Envoy has no root that it had before."""
    with trio.fail_after(60):
        while (await shown(envoy))[1] & before[1]:  # noqa: ASYNC110 - a foreign server
            await trio.sleep(0.2)
