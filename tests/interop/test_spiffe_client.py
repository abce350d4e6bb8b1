"""The PyPI package `spiffe`, somebody else's Workload API client, against our CA and agent."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding
from spiffe import (
    JwtSource,
    JwtSvid,
    SpiffeId,
    TrustDomain,
    WorkloadApiClient,
    X509Source,
)
from spiffe.workloadapi.errors import FetchJwtSvidError, FetchX509SvidError, ValidateJwtSvidError

from mesh.spiffe import ServiceAccount
from tests.interop.mesh import LocalMesh

pytestmark = pytest.mark.e2e

HTTPBIN = "spiffe://cluster.local/ns/foo/sa/httpbin"
PATIENCE = 20.0

T = TypeVar("T")


@pytest.fixture
async def socket(mesh: LocalMesh) -> Path:
    made = await mesh.start_agent("foo/httpbin")
    await ask(made, lambda client: client.fetch_x509_svid())  # waits until there is one
    return made


@contextmanager
def client_of(socket: Path) -> Iterator[WorkloadApiClient]:
    with WorkloadApiClient(f"unix://{socket}", default_timeout=PATIENCE) as client:
        yield client


async def ask(socket: Path, what: Callable[[WorkloadApiClient], T]) -> T:
    """Run a whole conversation of the synchronous client in a thread."""

    def run() -> T:
        with client_of(socket) as client:
            return what(client)

    return await trio.to_thread.run_sync(run)


async def test_x509_svid_and_bundles(mesh: LocalMesh, socket: Path) -> None:
    context = await ask(socket, lambda client: client.fetch_x509_context())
    svid = context.default_svid
    assert str(svid.spiffe_id) == HTTPBIN
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(TrustDomain("cluster.local"))
    assert bundle is not None
    pem = b"".join(root.public_bytes(Encoding.PEM) for root in bundle.x509_authorities)
    assert pem == mesh.root_file.read_bytes()
    bundles = await ask(socket, lambda client: client.fetch_x509_bundles())
    assert bundles.get_bundle_for_trust_domain(TrustDomain("cluster.local")) == bundle


async def test_a_source_that_follows_a_rotation(mesh: LocalMesh) -> None:
    socket = await mesh.start_agent("foo/httpbin", secret_ttl=timedelta(seconds=6))

    def run() -> tuple[int, int]:
        changed = threading.Event()
        source = X509Source(socket_path=f"unix://{socket}", timeout_in_seconds=PATIENCE)
        with source:
            before = source.get_x509_context().default_svid.leaf.serial_number
            source.subscribe_for_updates(changed.set)
            assert changed.wait(PATIENCE)
            return before, source.get_x509_context().default_svid.leaf.serial_number

    before, after = await trio.to_thread.run_sync(run)
    assert before != after


async def test_jwt_svid(socket: Path) -> None:
    def run(client: WorkloadApiClient) -> None:
        svid = client.fetch_jwt_svid(audience={"a", "b"})
        assert str(svid.spiffe_id) == HTTPBIN
        assert set(svid.audience) == {"a", "b"}
        named = client.fetch_jwt_svid(audience={"a"}, subject=SpiffeId(HTTPBIN))
        assert str(named.spiffe_id) == HTTPBIN
        seen = client.validate_jwt_svid(svid.token, "a")
        assert str(seen.spiffe_id) == HTTPBIN
        with pytest.raises(ValidateJwtSvidError):
            client.validate_jwt_svid(svid.token, "c")

    await ask(socket, run)


async def test_jwt_svid_judged_by_the_package_itself(socket: Path) -> None:
    def run() -> None:
        with JwtSource(socket_path=f"unix://{socket}", timeout_in_seconds=PATIENCE) as source:
            svid = source.fetch_svid(audience={"a"})
            bundle = source.get_bundle_for_trust_domain(TrustDomain("cluster.local"))
            assert bundle is not None
            judged = JwtSvid.parse_and_validate(svid.token, bundle, {"a"})
            assert str(judged.spiffe_id) == HTTPBIN

    await trio.to_thread.run_sync(run)


async def test_jwt_svid_of_somebody_else(socket: Path) -> None:
    def run(client: WorkloadApiClient) -> None:
        other = SpiffeId("spiffe://cluster.local/ns/foo/sa/other")
        with pytest.raises(FetchJwtSvidError, match="no identity issued"):
            client.fetch_jwt_svid(audience={"a"}, subject=other)

    await ask(socket, run)


async def test_a_caller_without_an_entry(mesh: LocalMesh) -> None:
    file = mesh.folder / "registration.yaml"
    file.write_text(f"entries:\n- spiffeId: {HTTPBIN}\n  selectors: ['unix:uid:12345']\n")
    socket = await mesh.start_agent("foo/node", registration=file)

    def run(client: WorkloadApiClient) -> None:
        with pytest.raises(FetchX509SvidError, match="no identity issued"):
            client.fetch_x509_svid()

    await ask(socket, run)


async def test_a_node_that_acts_for_its_workloads() -> None:
    """Without a token of its own an identity is asked for with the node's, which the CA trusts."""
    node = ServiceAccount("kube-system", "node")
    with tempfile.TemporaryDirectory(prefix="remora-") as folder:
        async with trio.open_nursery() as nursery:
            mesh = LocalMesh(nursery, Path(folder))
            await mesh.start_ca(trusted_nodes=(node,))
            file = mesh.folder / "registration.yaml"
            selectors = f"['unix:uid:{os.geteuid()}']"
            file.write_text(f"entries:\n- spiffeId: {HTTPBIN}\n  selectors: {selectors}\n")
            socket = await mesh.start_agent(str(node), registration=file)

            def run(client: WorkloadApiClient) -> None:
                assert str(client.fetch_x509_svid().spiffe_id) == HTTPBIN
                assert str(client.fetch_jwt_svid(audience={"a"}).spiffe_id) == HTTPBIN

            await ask(socket, run)
            nursery.cancel_scope.cancel()


async def test_a_caller_of_two_identities(mesh: LocalMesh) -> None:
    file = mesh.folder / "registration.yaml"
    names = ("httpbin", "sleep")
    lines = ["entries:"]
    for name in names:
        (mesh.folder / f"{name}.jwt").write_text(mesh.token(f"foo/{name}"))
        lines += [
            f"- spiffeId: spiffe://cluster.local/ns/foo/sa/{name}",
            f"  selectors: ['unix:uid:{os.geteuid()}']",
            f"  tokenFile: {name}.jwt",
        ]
    file.write_text("\n".join(lines))
    socket = await mesh.start_agent("foo/node", registration=file)

    def run(client: WorkloadApiClient) -> None:
        svids, deadline = client.fetch_x509_svids(), time.monotonic() + PATIENCE
        while len(svids) < 2 and time.monotonic() < deadline:
            svids = client.fetch_x509_svids()
        assert [svid.spiffe_id.path.rpartition("/")[2] for svid in svids] == list(names)
        tokens = client.fetch_jwt_svids(audience={"a"})
        assert [token.spiffe_id.path.rpartition("/")[2] for token in tokens] == list(names)

    await ask(socket, run)
