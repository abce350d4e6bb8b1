"""Bundles and JWT-SVIDs from the CA: what is taken over, and what is not."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from random import Random
from typing import cast

import pytest
import structlog.testing
import trio
import trio.testing
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle_answer import federated_bundle, own_bundle
from agent.bundles import BundleFollower
from agent.ca_client import CaClient
from agent.errors import AnswerRefused, CaLacksMethod, CaUnreachable, JwtUnavailable
from agent.jwt_source import JwtSource
from agent.store import SecretStore
from mesh.grpc import Status
from mesh.jwt_svid import sign_jwt_svid
from mesh.protos.spire_server_pb2 import Bundle, JWTKey, X509Certificate
from mesh.spiffe import SpiffeId, TrustDomain
from tests.mesh.test_revocation import revocation_list
from tests.pki import NOW, Authority, make_root, new_key

OWN, FRIEND = TrustDomain("cluster.local"), TrustDomain("friend")
WEB = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/web")
ROOT = make_root()

Clock = trio.testing.MockClock


def pkix(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(
        Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def bundle(
    domain: str = "cluster.local",
    *roots: Authority,
    hint: int = 60,
    **keys: ec.EllipticCurvePrivateKey,
) -> Bundle:
    return Bundle(
        trust_domain=domain,
        x509_authorities=[
            X509Certificate(asn1=root.certificate.public_bytes(Encoding.DER)) for root in roots
        ],
        jwt_authorities=[JWTKey(key_id=kid, public_key=pkix(key)) for kid, key in keys.items()],
        refresh_hint=hint,
        sequence_number=7,
    )


def test_revocation_lists_come_with_it() -> None:
    revoked = revocation_list(ROOT, 7)
    message = bundle("cluster.local", ROOT)
    message.crls.append(revoked.der)
    assert own_bundle(message, OWN).roots.revoked == (revoked,)
    message.crls.append(b"junk")
    with pytest.raises(AnswerRefused):
        own_bundle(message, OWN)


def test_a_bundle_is_read_whole() -> None:
    key = new_key()
    document = own_bundle(bundle("cluster.local", ROOT, k=key), OWN)
    assert document.roots.authorities == (ROOT.certificate,)
    assert document.jwt_keys == {"k": key.public_key()}
    assert document.sequence == 7
    assert document.refresh_hint == timedelta(seconds=60)


@pytest.mark.parametrize(
    "odd",
    [
        bundle("other", ROOT),
        bundle("cluster.local"),
        bundle("", ROOT),
        Bundle(trust_domain="cluster.local", x509_authorities=[X509Certificate(asn1=b"junk")]),
        Bundle(
            trust_domain="cluster.local", jwt_authorities=[JWTKey(key_id="k", public_key=b"junk")]
        ),
        Bundle(
            trust_domain="cluster.local",
            jwt_authorities=[JWTKey(key_id="", public_key=pkix(new_key()))],
        ),
        Bundle(
            trust_domain="cluster.local",
            jwt_authorities=[
                JWTKey(key_id="k", public_key=pkix(ed25519.Ed25519PrivateKey.generate()))
            ],
        ),
        Bundle(trust_domain="cluster.local", x509_authorities=[X509Certificate()] * 1001),
    ],
    ids=["domain", "empty", "nameless", "root", "key", "kid", "kind", "many"],
)
def test_odd_bundles_are_refused(odd: Bundle) -> None:
    with pytest.raises(AnswerRefused):
        own_bundle(odd, OWN)


def test_our_own_roots_never_come_as_those_of_others() -> None:
    with pytest.raises(AnswerRefused):
        federated_bundle(bundle("cluster.local", ROOT), OWN)
    assert federated_bundle(bundle("friend"), OWN).roots.authorities == ()


@given(st.binary(max_size=200), st.text(max_size=20))
def test_any_bytes_are_a_bundle_or_refused(data: bytes, name: str) -> None:
    odd = Bundle(
        trust_domain=name.encode("utf-8", "ignore").decode(),
        x509_authorities=[X509Certificate(asn1=data)],
        jwt_authorities=[JWTKey(key_id="k", public_key=data)],
    )
    with pytest.raises(AnswerRefused):
        own_bundle(odd, OWN)


class Ca:
    """What the CA answers, to be changed by a test. Stands in for the client of it."""

    def __init__(self) -> None:
        self.own = bundle("cluster.local", ROOT)
        self.foreign: list[Bundle] = []
        self.failure: Exception | None = None
        self.looks: list[float] = []
        self.key = new_key()
        self.kid = "k"
        self.whose: SpiffeId | None = None
        self.minted = 0

    async def bundles(self) -> tuple[Bundle, Sequence[Bundle]]:
        self.looks.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        return self.own, self.foreign

    async def mint_jwt_svid(self, identity: SpiffeId, audiences: Sequence[str]) -> str:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        self.minted += 1
        svid = sign_jwt_svid(
            self.key,
            self.kid,
            identity=self.whose or identity,
            audiences=audiences,
            ttl=timedelta(minutes=5),
            now=NOW,
        )
        return svid.token


class Bench:
    def __init__(self) -> None:
        self.ca = Ca()
        self.store = SecretStore()
        self.time = NOW
        client = cast("CaClient", self.ca)
        self.follower = BundleFollower(client, self.store, OWN, Random(1))
        self.jwt = JwtSource(
            lambda identity: client if identity == WEB else None,
            self.follower,
            self.store,
            self.now,
        )

    def now(self) -> datetime:
        return self.time

    @property
    def domains(self) -> set[str]:
        return {domain.name for domain in self.store.holdings.roots}


async def test_bundles_come_change_and_go(nursery: trio.Nursery, autojump_clock: Clock) -> None:
    bench = Bench()
    nursery.start_soon(bench.follower.run)
    bench.ca.foreign = [bundle("friend", make_root("friend"))]
    await trio.sleep(1)
    assert bench.domains == {"cluster.local", "friend"}
    bench.ca.own = bundle("cluster.local", ROOT, make_root("next"))
    bench.ca.foreign = []
    await trio.sleep(70)
    assert len(bench.store.holdings.roots[OWN].bundle.authorities) == 2
    assert bench.domains == {"cluster.local"}


async def test_what_is_known_stays_while_the_ca_is_down(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    bench = Bench()
    nursery.start_soon(bench.follower.run)
    bench.ca.foreign = [bundle("friend", make_root("friend"))]
    await trio.sleep(1)
    bench.ca.failure = CaUnreachable("down")
    await trio.sleep(3600)
    assert bench.domains == {"cluster.local", "friend"}
    assert len(bench.ca.looks) > 5


async def test_one_odd_bundle_harms_no_other(nursery: trio.Nursery, autojump_clock: Clock) -> None:
    bench = Bench()
    friend = bundle("friend", make_root("friend"))
    bench.ca.foreign = [friend, bundle("peer", make_root("peer"))]
    nursery.start_soon(bench.follower.run)
    await trio.sleep(1)
    odd = Bundle(trust_domain="friend", x509_authorities=[X509Certificate(asn1=b"junk")])
    bench.ca.foreign = [odd, bundle("peer", make_root("peer 2")), bundle("")]
    with structlog.testing.capture_logs() as logs:
        await trio.sleep(70)
    assert bench.domains == {"cluster.local", "friend", "peer"}, "the good one before is kept"
    assert [line["reason"] for line in logs if "not taken over" in line["event"]] == [
        "answer_unreadable"
    ] * 2


@pytest.mark.parametrize(
    ("hint", "least", "most"), [(1, 9, 11), (10**6, 3240, 3960), (0, 270, 330)]
)
async def test_a_hint_is_advice(
    nursery: trio.Nursery, autojump_clock: Clock, hint: int, least: int, most: int
) -> None:
    bench = Bench()
    bench.ca.own = bundle("cluster.local", ROOT, hint=hint)
    nursery.start_soon(bench.follower.run)
    await trio.sleep(8000)
    first, second, *_ = bench.ca.looks
    assert least <= second - first <= most


async def test_a_ca_without_bundles_is_no_trouble(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    bench = Bench()
    bench.ca.failure = CaLacksMethod("no such method")
    with structlog.testing.capture_logs() as logs:
        nursery.start_soon(bench.follower.run)
        await trio.sleep(3600)
    assert [line["log_level"] for line in logs] == ["info"]
    assert bench.follower.unsupported


async def test_tokens_are_kept_for_half_their_lives() -> None:
    bench = Bench()
    bench.ca.own = bundle("cluster.local", ROOT, k=bench.ca.key)
    first = await bench.jwt.fetch(WEB, ("a", "b"))
    bench.time += timedelta(seconds=149)
    assert await bench.jwt.fetch(WEB, ("b", "a")) is first, "order means nothing"
    await bench.jwt.fetch(WEB, ("a",))
    assert bench.ca.minted == 2
    bench.time += timedelta(seconds=1)
    await bench.jwt.fetch(WEB, ("a", "b"))
    assert bench.ca.minted == 3


async def test_a_new_key_is_looked_up_at_once() -> None:
    bench = Bench()
    bench.ca.own = bundle("cluster.local", ROOT, k=bench.ca.key)
    await bench.jwt.fetch(WEB, ("a",))
    bench.ca.key, bench.ca.kid = new_key(), "k2"
    bench.ca.own = bundle("cluster.local", ROOT, k2=bench.ca.key)
    assert (await bench.jwt.fetch(WEB, ("b",))).id == WEB


@pytest.mark.parametrize("fault", ["unpublished key", "another identity", "down", "no method"])
async def test_tokens_that_are_not_passed_on(fault: str) -> None:
    bench = Bench()
    bench.ca.own = bundle("cluster.local", ROOT, k=bench.ca.key)
    status = Status.UNAVAILABLE
    if fault == "unpublished key":
        bench.ca.key = new_key()
    elif fault == "another identity":
        bench.ca.whose = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/admin")
    elif fault == "down":
        bench.ca.failure = CaUnreachable("down")
    else:
        bench.ca.failure, status = CaLacksMethod("no"), Status.UNIMPLEMENTED
    with pytest.raises(JwtUnavailable) as caught:
        await bench.jwt.fetch(WEB, ("a",))
    assert caught.value.status is status


async def test_nobody_asks_in_the_name_of_an_identity_that_is_not_here() -> None:
    with pytest.raises(JwtUnavailable) as caught:
        await Bench().jwt.fetch(SpiffeId.parse("spiffe://cluster.local/x"), ("a",))
    assert caught.value.status is Status.PERMISSION_DENIED
