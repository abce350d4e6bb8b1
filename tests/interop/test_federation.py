"""Two meshes with roots of their own: their members talk where the other trust domain is named."""

from __future__ import annotations

import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from ca.federation import Federation, parse_federation
from mesh.address import Address
from mesh.bundle_document import parse_bundle
from mesh.spiffe import TrustDomain
from tests.interop.mesh import LocalMesh, echo, serve_app, way_in, way_out
from tests.interop.test_envoy import SECRET, exchange_or_reset, free_port

pytestmark = pytest.mark.e2e

EAST, WEST = TrustDomain("east.test"), TrustDomain("west.test")


@dataclass
class Pair:
    """Two meshes that fetch each other's bundles."""

    east: LocalMesh
    west: LocalMesh
    west_endpoint: Address


def federation(
    listen: int, folder: Path, own: TrustDomain, other: TrustDomain, at: int
) -> Federation:
    text = f"""
bundleEndpoint: {{listen: "127.0.0.1:{listen}"}}
federatesWith:
- trustDomain: {other}
  url: https://127.0.0.1:{at}/
  profile: https_spiffe
  endpointSpiffeId: spiffe://{other}/ns/istio-system/sa/istiod
  trustBundle: {other}.pem
"""
    return parse_federation(text.encode(), folder / "federation.yaml", own)


@pytest.fixture
async def pair(nursery: trio.Nursery) -> AsyncIterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="remora-") as name:
        folders = {domain: Path(name) / domain.name for domain in (EAST, WEST)}
        ports = {domain: free_port() for domain in (EAST, WEST)}
        meshes: dict[TrustDomain, LocalMesh] = {}
        for domain, folder in folders.items():
            folder.mkdir(mode=0o700)
            meshes[domain] = LocalMesh(nursery, folder, domain.name)
            meshes[domain].token("make/root")
        for own, other in ((EAST, WEST), (WEST, EAST)):
            first = folders[own] / f"{other}.pem"
            first.write_bytes(meshes[other].root_file.read_bytes())
            config = federation(ports[own], folders[own], own, other, ports[other])
            await meshes[own].start_ca(federation=config)
        yield Pair(meshes[EAST], meshes[WEST], Address("127.0.0.1", ports[WEST]))
        nursery.cancel_scope.cancel()


async def reached(pair: Pair, *, server_names: bool, client_names: bool) -> bytes:
    """Call an app in the west from the east; each side's proxy may name the other trust domain."""
    async with trio.open_nursery() as nursery:
        app = await serve_app(nursery, echo)
        server = await pair.west.start_proxy(
            await pair.west.start_agent("foo/httpbin"),
            inbound=way_in(app),
            federated_trust_domains=frozenset({EAST} if server_names else ()),
        )
        client = await pair.east.start_proxy(
            await pair.east.start_agent("foo/sleep"),
            outbound=way_out(server.inbound[0].port, "spiffe://west.test/ns/foo/sa/httpbin"),
            federated_trust_domains=frozenset({WEST} if client_names else ()),
        )
        await trio.lowlevel.checkpoint()
        answer = b""
        with trio.move_on_after(20 if server_names and client_names else 2):
            while not answer:  # bundles may be on their way
                answer = await exchange_or_reset(client.outbound[0].port)
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    return answer


async def test_two_meshes_talk_where_both_name_the_other(pair: Pair) -> None:
    assert await reached(pair, server_names=True, client_names=True) == SECRET


@pytest.mark.parametrize(("server", "client"), [(True, False), (False, True), (False, False)])
async def test_and_do_not_where_one_does_not(pair: Pair, server: bool, client: bool) -> None:
    assert await reached(pair, server_names=server, client_names=client) == b""


async def test_the_bundle_endpoint_answers_anybody(pair: Pair, tmp_path: Path) -> None:
    def fetch() -> bytes:
        context = ssl.create_default_context(cadata=pair.west.root_file.read_text())
        connection = HTTPSConnection("localhost", pair.west_endpoint.port, context=context)
        connection.request("GET", "/")
        body = connection.getresponse().read()
        connection.close()
        return body

    body = await trio.to_thread.run_sync(fetch)
    document = parse_bundle(WEST, body)
    assert document.roots.pem() == pair.west.root_file.read_bytes()
    assert len(document.jwt_keys) == 1
    assert {key["use"] for key in json.loads(body)["keys"]} == {"x509-svid", "jwt-svid"}
