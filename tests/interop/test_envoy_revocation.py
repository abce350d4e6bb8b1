"""A real Envoy honours our revocation lists, which come to it with the roots."""

from __future__ import annotations

import pytest
import trio

from ca.operations import revoke_identity
from mesh.clock import system_now
from mesh.spiffe import SpiffeId
from tests.interop.envoy import running
from tests.interop.mesh import LocalMesh, exchange, serve_app, way_out
from tests.interop.test_envoy import (
    CLIENT,
    CLIENT_ID,
    SERVER_ID,
    envoy_server,
    exchange_or_reset,
    folder_for,
)
from tests.proxy.rig import echo

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120), pytest.mark.usefixtures("quick")]


async def test_an_envoy_refuses_a_revoked_workload_and_takes_others(
    mesh: LocalMesh, nursery: trio.Nursery
) -> None:
    sidecar = await envoy_server(mesh, CLIENT_ID, await serve_app(nursery, echo))
    async with running(sidecar, folder_for(mesh)) as envoy:
        ours = await mesh.start_proxy(
            await mesh.start_agent(CLIENT), outbound=way_out(sidecar.listen, SERVER_ID)
        )
        port = ours.outbound[0].port
        assert await exchange(port, b"hello") == b"hello"
        # A list is there now, and names somebody else: Envoy must go on with whoever is not in it.
        other = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/other")
        await trio.to_thread.run_sync(revoke_identity, mesh.state, other, system_now())
        await trio.sleep(3)
        assert await exchange(port, b"hello") == b"hello"
        await trio.to_thread.run_sync(
            revoke_identity, mesh.state, SpiffeId.parse(CLIENT_ID), system_now()
        )
        with trio.fail_after(20):
            while await exchange_or_reset(port):  # noqa: ASYNC110 - a foreign server
                await trio.sleep(0.1)
        name = f"listener.127.0.0.1_{sidecar.listen}.ssl.fail_verify_error"
        assert (await envoy.stats(name))[name] >= 1
