"""Handshakes: who is admitted, whom we believe, and which certificate is shown."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from mesh.bundle import TrustBundle
from mesh.spiffe import SpiffeId, TrustDomain
from proxy.errors import (
    ConnectionFailed,
    NoIdentityYet,
    PeerClosed,
    RefusedByPeer,
    UntrustedPeer,
    WrongIdentity,
    WrongTrustDomain,
)
from proxy.handshake import SecureLeg, describe_roots, only_identities, only_trust_domains
from tests.pki import Authority, make_root
from tests.proxy.network import CLIENT_ID, SERVER_ID, reset_now, tcp_pair
from tests.proxy.rig import Mesh

LOCAL = TrustDomain("cluster.local")
OTHER = SpiffeId.parse("spiffe://other.example/ns/foo/sa/sleep")


@pytest.fixture(scope="module")
def root() -> Authority:
    return make_root()


def test_trust_domains_are_admitted_by_equality() -> None:
    only_trust_domains([LOCAL])(CLIENT_ID)
    only_trust_domains([LOCAL, OTHER.trust_domain])(OTHER)
    for stranger in (OTHER, SpiffeId.parse("spiffe://cluster.local.evil/ns/foo/sa/sleep")):
        with pytest.raises(WrongTrustDomain, match=r"admits only cluster\.local"):
            only_trust_domains([LOCAL])(stranger)


def test_identities_are_expected_exactly() -> None:
    only_identities([str(SERVER_ID), str(CLIENT_ID)])(SERVER_ID)
    for stranger in (f"{SERVER_ID}/x", f"{SERVER_ID}x", "spiffe://cluster.local/ns/foo/sa/HTTPBIN"):
        with pytest.raises(WrongIdentity, match="secure naming: expected"):
            only_identities([str(SERVER_ID)])(SpiffeId.parse(stranger))


def test_expecting_nobody_accepts_nobody() -> None:
    with pytest.raises(WrongIdentity):
        only_identities([])(SERVER_ID)


def test_roots_are_described_with_their_trust_domain(root: Authority) -> None:
    assert describe_roots(root.bundle()) == "O=root for cluster.local"
    assert describe_roots({}) == "no roots"
    assert describe_roots({LOCAL: TrustBundle.of(LOCAL, [])}) == "no roots"


async def shake(
    client: Mesh, server: Mesh, expected: SpiffeId = SERVER_ID
) -> tuple[SecureLeg | ConnectionFailed, SecureLeg | ConnectionFailed]:
    """Let a client and a server meet; return what each got."""
    near, far = await tcp_pair()
    outcomes: dict[str, SecureLeg | ConnectionFailed] = {}

    async def connect() -> None:
        try:
            outcomes["client"] = await client.tls.connect(
                near, server_name="x", expected=[str(expected)], peer="the server"
            )
        except ConnectionFailed as failure:
            outcomes["client"] = failure
            assert near.socket.fileno() == -1

    async def accept() -> None:
        try:
            outcomes["server"] = await server.tls.accept(far, peer="the client")
        except ConnectionFailed as failure:
            outcomes["server"] = failure
            assert far.socket.fileno() == -1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        nursery.start_soon(accept)
    return outcomes["client"], outcomes["server"]


async def test_both_sides_prove_who_they_are(root: Authority) -> None:
    client, server = await shake(Mesh(root, CLIENT_ID), Mesh(root, SERVER_ID))
    assert not isinstance(client, ConnectionFailed)
    assert not isinstance(server, ConnectionFailed)
    assert client.session.peer_id == SERVER_ID
    assert server.session.peer_id == CLIENT_ID
    for leg in (client, server):
        assert isinstance(leg.transport, trio.SocketStream)
        reset_now(leg.transport)


async def test_a_client_refuses_and_the_server_is_told(root: Authority) -> None:
    client, server = await shake(Mesh(root, CLIENT_ID), Mesh(root, SERVER_ID), expected=CLIENT_ID)
    assert isinstance(client, WrongIdentity)
    assert isinstance(server, RefusedByPeer)
    assert "peer the client: the peer refused us" in str(server)


async def test_strangers_refuse_each_other(root: Authority) -> None:
    client, server = await shake(Mesh(root, CLIENT_ID), Mesh(make_root("evil"), SERVER_ID))
    assert isinstance(client, UntrustedPeer)
    assert "we trust O=root for cluster.local" in str(client)
    assert isinstance(server, RefusedByPeer)


async def test_the_contexts_are_kept_until_the_identity_changes(
    root: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = Mesh(root, SERVER_ID)
    first = mesh.tls._contexts()
    assert mesh.tls._contexts() is first
    mesh.current = mesh.identity(CLIENT_ID)
    assert mesh.tls._contexts() is not first
    assert mesh.tls.own_id == CLIENT_ID


async def test_without_an_identity_there_is_no_handshake(root: Authority) -> None:
    mesh = Mesh(root, SERVER_ID)
    mesh.current = None
    with pytest.raises(NoIdentityYet):
        _ = mesh.tls.own_id


async def test_a_peer_that_vanishes_is_a_failure_and_leaves_nothing_open(root: Authority) -> None:
    near, far = await tcp_pair()
    reset_now(near)
    with pytest.raises(PeerClosed):
        await Mesh(root, SERVER_ID).tls.accept(far, peer="the client")
    assert far.socket.fileno() == -1


async def test_a_cancelled_handshake_resets(root: Authority) -> None:
    near, far = await tcp_pair()
    async with near, trio.open_nursery() as nursery:

        async def accept() -> None:
            await Mesh(root, SERVER_ID).tls.accept(far, peer="the client")

        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert far.socket.fileno() == -1
