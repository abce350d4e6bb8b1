from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from mesh.bundle import TrustBundle
from mesh.resources.mesh_config import MeshConfig
from mesh.svid import X509Svid
from mesh.tls import TlsContext
from mesh.tls_errors import TlsError
from mesh.tls_stream import TlsStream
from proxy.handshake import MeshTls
from proxy.identity import Identity, IdentityStore
from proxy.mode import MtlsMode
from tests.mesh.test_revocation import revocation_list
from tests.pki import NOW, make_root
from tests.proxy.network import CLIENT_ID, SERVER_ID, connect
from tests.proxy.rig import Mesh, app_on, client, dial_tls, door, inbound, outbound

STRICT = MtlsMode.STRICT
CLOSED = (trio.BrokenResourceError, TlsError)


@pytest.fixture
def mesh() -> Mesh:
    return Mesh(make_root(), SERVER_ID)


def revoke(mesh: Mesh, *svids: X509Svid) -> None:
    """Let the agent deliver the same certificate with a new revocation list."""
    assert mesh.current is not None
    revoked = revocation_list(mesh.root, *(svid.serial for svid in svids))
    bundles = {
        domain: TrustBundle.of(domain, bundle.authorities, [revoked])
        for domain, bundle in mesh.current.bundles.items()
    }
    mesh.current = Identity(svid=mesh.current.svid, bundles=bundles)
    mesh.tls.open.judge()


async def is_refused(port: int, context: TlsContext) -> None:
    """Fail to connect: with TLS 1.3 the client learns it when it reads."""
    transport = await connect(port)
    stream = TlsStream(transport, context.session(NOW, server_name="app.test"))
    try:
        with pytest.raises(CLOSED):
            await _handshake_and_read(stream)
    finally:
        await trio.aclose_forcefully(stream)


async def _handshake_and_read(stream: TlsStream) -> None:
    await stream.do_handshake()
    await stream.receive_some()


async def says_back(stream: trio.abc.Stream, words: bytes) -> None:
    await stream.send_all(words)
    assert await stream.receive_some() == words


async def test_a_revoked_client_loses_its_open_connection_and_others_keep_theirs(
    mesh: Mesh,
) -> None:
    bad, good = (mesh.root.issue(str(CLIENT_ID)) for _ in range(2))
    async with app_on() as app, door(inbound(mesh, STRICT, app)) as way:
        revoked = await dial_tls(way.port, client(mesh.root, svid=bad))
        kept = await dial_tls(way.port, client(mesh.root, svid=good))
        await says_back(revoked, b"before")
        await says_back(kept, b"before")
        revoke(mesh, bad)
        with pytest.raises(CLOSED):
            await revoked.receive_some()
        await trio.aclose_forcefully(revoked)
        line = await way.line()
        assert line["reason"] == "peer_revoked_meanwhile"
        assert f"{bad.serial:x} was revoked" in line["detail"]
        await says_back(kept, b"after")
        await kept.aclose()


async def test_a_revoked_client_gets_no_new_connection(mesh: Mesh) -> None:
    bad, good = (mesh.root.issue(str(CLIENT_ID)) for _ in range(2))
    revoke(mesh, bad)
    async with app_on() as app, door(inbound(mesh, STRICT, app)) as way:
        await is_refused(way.port, client(mesh.root, svid=bad))
        assert (await way.line())["reason"] == "peer_revoked"
        stream = await dial_tls(way.port, client(mesh.root, svid=good))
        await says_back(stream, b"hello")
        await stream.aclose()


async def test_a_revoked_server_loses_its_open_connections(mesh: Mesh) -> None:
    """Two proxies, one on either side."""
    assert mesh.current is not None
    far = Mesh(mesh.root, SERVER_ID)
    mesh.current = mesh.identity(CLIENT_ID)
    assert far.current is not None
    async with (
        app_on() as app,
        door(inbound(far, STRICT, app)) as server,
        door(outbound(mesh, server.port, SERVER_ID)) as way,
        await connect(way.port) as stream,
    ):
        await says_back(stream, b"before")
        revoke(mesh, far.current.svid)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await way.ended.wait()
        assert "peer_revoked_meanwhile" in [line.get("reason") for line in way.lines]


async def test_plaintext_is_nobodys_and_stays(mesh: Mesh) -> None:
    async with (
        app_on() as app,
        door(inbound(mesh, MtlsMode.PERMISSIVE, app)) as way,
        await connect(way.port) as stream,
    ):
        await says_back(stream, b"before")
        revoke(mesh, mesh.root.issue(str(CLIENT_ID)))
        await says_back(stream, b"after")


async def test_an_alias_of_the_trust_domain_is_held_to_the_same_lists() -> None:
    root = make_root()
    bad = root.issue("spiffe://old.name/ns/foo/sa/client")
    mesh = Mesh(root, SERVER_ID)
    assert mesh.current is not None
    (own,) = mesh.current.bundles.values()
    bundle = replace(own, revoked=(revocation_list(root, bad.serial),))
    mesh.current = Identity(svid=mesh.current.svid, bundles={own.trust_domain: bundle})
    config = MeshConfig(trust_domain_aliases=("old.name",))
    mesh.tls = MeshTls(lambda: mesh.current, lambda: mesh.time, mesh_config=lambda: config)
    async with app_on() as app, door(inbound(mesh, STRICT, app)) as way:
        await is_refused(way.port, client(root, svid=bad))
        assert (await way.line())["reason"] == "peer_revoked"


def test_every_publication_is_told() -> None:
    store, told = IdentityStore(), []
    store.on_publish(lambda: told.append(store.current))
    identity = Mesh(make_root(), SERVER_ID).current
    assert identity is not None
    store.publish(identity)
    assert told == [identity]
