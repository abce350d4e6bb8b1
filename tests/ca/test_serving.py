from __future__ import annotations

import contextlib
from datetime import timedelta

import pytest
import trio
import trio.testing
from cryptography import x509
from structlog.testing import capture_logs

from ca.authority import Authority, TtlLimits
from ca.serving import ServingCertificate
from mesh.bundle import TrustBundle
from mesh.clock import trio_now
from mesh.spiffe import SpiffeId
from mesh.tls import TlsSession, client_context
from mesh.tls_errors import TlsError
from mesh.tls_stream import TlsStream
from mesh.verify import PeerNotTrusted
from tests.ca.workshop import make_authority
from tests.pki import NOW

ISTIOD = SpiffeId.parse("spiffe://cluster.local/ns/istio-system/sa/istiod")
NAMES = (x509.DNSName("localhost"),)
HOUR = 3600


def hourly(life: timedelta = timedelta(days=3650)) -> Authority:
    hour = timedelta(hours=1)
    return make_authority(limits=TtlLimits(default=hour, maximum=hour), life=life)


class Serving:
    """A serving certificate under trio's clock, and what agents see of it."""

    def __init__(self, authority: Authority) -> None:
        self.now = trio_now(NOW)
        self.roots = authority.roots
        self.certificate = ServingCertificate(lambda: authority, ISTIOD, NAMES, self.now)

    async def seen(self, roots: TrustBundle | None = None) -> TlsSession:
        """Connect as an agent does, and return its side."""
        trusted = roots or self.roots
        near, far = trio.testing.memory_stream_pair()
        context = client_context({trusted.trust_domain: trusted}, alpn=[b"h2", b"http/1.1"])
        client = TlsStream(far, context.session(self.now()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_answer, TlsStream(near, self.certificate.session()))
            await client.do_handshake()
        return client.session

    async def leaf(self) -> x509.Certificate:
        return (await self.seen()).peer_chain[0]


async def _answer(server: TlsStream) -> None:
    with contextlib.suppress(TlsError):  # the refusals are told by the client's side
        await server.do_handshake()


async def test_agents_see_the_cas_identity_its_names_and_h2() -> None:
    session = await Serving(hourly()).seen()
    assert session.peer_id == ISTIOD
    assert session.alpn == b"h2"
    leaf = session.peer_chain[0]
    sans = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert sans.get_values_for_type(x509.DNSName) == ["localhost"]


async def test_agents_of_another_root_refuse_it() -> None:
    with pytest.RaisesGroup(PeerNotTrusted):
        await Serving(hourly()).seen(make_authority().roots)


async def test_it_is_renewed_at_half_life(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    serving = Serving(hourly())
    nursery.start_soon(serving.certificate.keep_renewing)
    serials: set[int] = set()
    await trio.sleep(0.5)
    for _ in range(4):
        first = await serving.leaf()
        await trio.sleep(HOUR / 2 - 1)
        assert await serving.leaf() == first, "not before half its life"
        await trio.sleep(1)
        serials.add(first.serial_number)
    assert len(serials) == 4
    nursery.cancel_scope.cancel()


async def test_a_connection_outlives_a_renewal(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    serving = Serving(hourly())
    nursery.start_soon(serving.certificate.keep_renewing)
    near, far = trio.testing.memory_stream_pair()
    context = client_context({serving.roots.trust_domain: serving.roots}, alpn=[b"h2"])
    client = TlsStream(far, context.session(NOW))
    server = TlsStream(near, serving.certificate.session())
    async with trio.open_nursery() as both:
        both.start_soon(server.do_handshake)
        both.start_soon(client.do_handshake)
    await trio.sleep(3 * HOUR)
    async with trio.open_nursery() as both:
        both.start_soon(client.send_all, b"still here")
        assert await server.receive_some(10) == b"still here"
    nursery.cancel_scope.cancel()


async def test_a_key_is_used_for_one_certificate_only(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    serving = Serving(hourly())
    nursery.start_soon(serving.certificate.keep_renewing)
    first = await serving.leaf()
    await trio.sleep(HOUR)
    assert first.public_key() != (await serving.leaf()).public_key()
    nursery.cancel_scope.cancel()


async def test_near_the_roots_end_it_neither_spins_nor_dies(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    authority = hourly(life=timedelta(seconds=10))
    with capture_logs() as logs:
        serving = ServingCertificate(lambda: authority, ISTIOD, NAMES, trio_now(NOW))
        nursery.start_soon(serving.keep_renewing)
        await trio.sleep(300)
    events = [line["event"] for line in logs]
    assert events.count("serving certificate issued") <= 11
    assert 3 <= events.count("serving certificate not renewed") <= 6, "once a minute"
    assert logs[-1]["reason"] == "signer_not_valid"
    nursery.cancel_scope.cancel()
