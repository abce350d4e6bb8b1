"""The demo's own TLS clients, against a server of the test's making."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
import trio

from ca.material import load_or_create
from ca.template import LeafNames, leaf_certificate, leaf_validity
from mesh.bundle import Bundles
from mesh.clock import system_now
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.svid import X509Svid
from mesh.tls import server_context
from mesh.tls_stream import TlsStream
from mesh.verify import PeerRejected
from remora.demo.errors import ProbeFailed
from remora.demo.handshakes import call_as, serial_shown
from remora.demo.story import CLIENT_ID, SERVER_ID, STRAY_ID, TRUST_DOMAIN
from tests.pki import make_root, new_key, real_now
from tests.proxy.network import port_of, tcp_listener

DOMAIN = TrustDomain(TRUST_DOMAIN)


@dataclass(kw_only=True)
class Server:
    """A TLS server that notes who called, and answers over HTTP."""

    svid: X509Svid
    bundles: Bundles
    callers: list[str] = field(default_factory=list)
    refusals: list[PeerRejected] = field(default_factory=list)

    async def handle(self, stream: trio.SocketStream) -> None:
        context = server_context(self.svid, self.bundles)
        async with TlsStream(stream, context.session(system_now())) as tls:
            try:
                await tls.do_handshake()
                self.callers.append(str(tls.session.peer_id))
                if await tls.receive_some():
                    await tls.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            except PeerRejected as refusal:
                self.refusals.append(refusal)
            except (trio.BrokenResourceError, OSError):
                return


@asynccontextmanager
async def listening(server: Server) -> AsyncGenerator[str]:
    async with await tcp_listener() as listener, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.handle, [listener])  # noqa: ASYNC113
        with trio.fail_after(5):  # noqa: ASYNC100
            yield f"127.0.0.1:{port_of(listener)}"
        nursery.cancel_scope.cancel()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state directory of a CA."""
    tmp_path.chmod(0o700)
    return tmp_path


def genuine(state: Path) -> Server:
    """A server with a certificate of the CA in `state`."""
    material = load_or_create(state, DOMAIN, system_now())
    key, identity = new_key(), SpiffeId.parse(SERVER_ID)
    validity = leaf_validity(system_now(), timedelta(minutes=5), [material.signer.certificate])
    names = LeafNames(identity=identity)
    leaf = leaf_certificate(names, key.public_key(), validity, material.signer)
    svid = X509Svid(id=identity, chain=(leaf,), key=key)
    return Server(svid=svid, bundles={DOMAIN: material.roots})


async def test_the_serial_number_that_a_new_connection_is_shown(state: Path) -> None:
    server = genuine(state)
    async with listening(server) as address:
        assert await serial_shown(address, state, system_now) == server.svid.serial
    assert server.callers == []


async def test_a_server_of_another_ca_is_no_source_of_serial_numbers(state: Path) -> None:
    server = genuine(state)
    server.svid = make_root(now=real_now()).issue(SERVER_ID)
    async with listening(server) as address:
        with pytest.raises(ProbeFailed, match="not trusted"):
            await serial_shown(address, state, system_now)


async def test_a_forged_certificate_is_good_for_everybody_who_looks_at_the_root_alone(
    state: Path,
) -> None:
    """Or the refusal that the demo shows would prove nothing about trust domains."""
    server = genuine(state)
    async with listening(server) as address:
        assert await call_as(CLIENT_ID, address, state, system_now) == "204"
    assert server.callers == [CLIENT_ID]


async def test_a_refused_certificate_is_000(state: Path) -> None:
    server = genuine(state)
    async with listening(server) as address:
        assert await call_as(STRAY_ID, address, state, system_now) == "000"
    (refusal,) = server.refusals
    assert "other.domain" in str(refusal)


async def test_an_end_without_an_answer_is_000(state: Path) -> None:
    async def close(stream: trio.SocketStream) -> None:
        await trio.aclose_forcefully(stream)

    genuine(state)
    async with await tcp_listener() as listener, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, close, [listener])
        address = f"127.0.0.1:{port_of(listener)}"
        with trio.fail_after(5):
            assert await call_as(STRAY_ID, address, state, system_now) == "000"
        nursery.cancel_scope.cancel()
