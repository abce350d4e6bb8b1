"""The Workload API over gRPC on memory streams: what each call answers to whom."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
import trio
import trio.testing
from cryptography import x509
from google.protobuf.message import Message

from agent.answer import Issued
from agent.entitlement import Session
from agent.errors import AttestationFailed, JwtUnavailable, NoIdentity
from agent.grants import Grant, Grants
from agent.store import SecretStore
from agent.workload_api import WorkloadApi
from mesh.api import (
    FETCH_JWT_BUNDLES,
    FETCH_JWT_SVID,
    FETCH_X509_BUNDLES,
    FETCH_X509_SVID,
    VALIDATE_JWT_SVID,
)
from mesh.bundle import TrustBundle
from mesh.bundle_document import BundleDocument, parse_bundle
from mesh.grpc import (
    Channel,
    ClientCall,
    GrpcError,
    GrpcServer,
    Method,
    Peer,
    Service,
    Status,
    accept_plain,
    open_channel,
)
from mesh.grpc.limits import DEFAULT_LIMITS
from mesh.jwt_svid import JwtSvid, sign_jwt_svid
from mesh.protos.workload_pb2 import (
    JWTBundlesRequest,
    JWTSVIDRequest,
    ValidateJWTSVIDRequest,
    X509BundlesRequest,
    X509SVIDRequest,
    X509SVIDResponse,
)
from mesh.spiffe import SpiffeId, TrustDomain
from tests.pki import NOW, make_root, new_key

HTTPBIN = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/httpbin")
SLEEP = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/sleep")
OWN, FRIEND, STRANGER = TrustDomain("cluster.local"), TrustDomain("friend"), TrustDomain("stranger")
HEADER = [("workload.spiffe.io", "true")]
JWT_KEY = new_key()

Clock = trio.testing.MockClock


class Workshop:
    """A Workload API for one caller, whose grants a test may change."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.time = NOW
        self.root = make_root()
        self.store = SecretStore()
        self.nursery = nursery
        self.answer: Grants | Exception | None = self.grants(HTTPBIN)
        self.asked: list[tuple[SpiffeId, tuple[str, ...]]] = []
        self.jwt_failure: JwtUnavailable | None = None
        service = Service()
        WorkloadApi(
            store=self.store,
            open_session=lambda _peer: self.session(),
            trust_domain=OWN,
            jwt_issuer=self,
            now=self.now,
        ).register(service)
        self._server = GrpcServer(service, accept_plain, DEFAULT_LIMITS)

    def now(self) -> datetime:
        return self.time

    def grants(self, *identities: SpiffeId) -> Grants:
        friends = frozenset({FRIEND})
        return Grants(
            tuple(
                Grant(identity=one, federates_with=friends, hint=one.path[-5:])
                for one in identities
            )
        )

    def session(self) -> Session:
        workshop = self

        class Fixed:
            async def grants(self) -> Grants | None:
                await trio.lowlevel.checkpoint()
                if isinstance(workshop.answer, Exception):
                    raise workshop.answer
                return workshop.answer

        return Fixed()

    async def fetch(self, identity: SpiffeId, audiences: tuple[str, ...]) -> JwtSvid:
        self.asked.append((identity, audiences))
        await trio.lowlevel.checkpoint()
        if self.jwt_failure is not None:
            raise self.jwt_failure
        return sign_jwt_svid(
            JWT_KEY, "k", identity=identity, audiences=audiences, ttl=timedelta(300), now=self.time
        )

    def issue(self, *identities: SpiffeId) -> None:
        bundle = TrustBundle.of(OWN, [self.root.certificate])
        for identity in identities:
            svid = self.root.issue(str(identity), not_after=self.time + timedelta(hours=1))
            self.store.put(Issued(svid=svid, bundle=bundle, created=self.time))

    def federate(self, domain: TrustDomain) -> BundleDocument:
        roots = TrustBundle.of(domain, [make_root(domain.name).certificate])
        document = BundleDocument(roots=roots, jwt_keys={"f": new_key().public_key()})
        self.store.put_bundle(document)
        return document

    def publish_keys(self) -> None:
        roots = TrustBundle.of(OWN, [self.root.certificate])
        self.store.put_bundle(BundleDocument(roots=roots, jwt_keys={"k": JWT_KEY.public_key()}))

    async def connect(self) -> trio.abc.Stream:
        client, server = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self._server.serve_stream, server, Peer(address="memory"))
        await trio.lowlevel.checkpoint()
        return client

    @asynccontextmanager
    async def channel(self) -> AsyncGenerator[Channel]:
        async with open_channel(self.connect) as channel:
            yield channel

    @asynccontextmanager
    async def watch(
        self, method: Method[Any, Any], request: Message
    ) -> AsyncGenerator[ClientCall[Any, Any]]:
        async with self.channel() as channel, channel.stream(method, metadata=HEADER) as call:
            await call.send(request)
            await call.done_sending()
            yield call

    async def unary(self, method: Method[Any, Any], request: Message) -> Any:
        async with self.channel() as channel:
            return await channel.unary(method, request, metadata=HEADER, timeout=5)


@pytest.fixture
def workshop(nursery: trio.Nursery) -> Workshop:
    return Workshop(nursery)


async def reply(call: ClientCall[Any, Any]) -> Any:
    with trio.fail_after(5):
        return await anext(call)


async def silent(call: ClientCall[Any, Any], seconds: float = 5) -> bool:
    with trio.move_on_after(seconds) as scope:
        await anext(call)
    return scope.cancelled_caught


def identities(response: X509SVIDResponse) -> list[str]:
    return [svid.spiffe_id for svid in response.svids]


async def test_certificates_with_their_bundle(workshop: Workshop, autojump_clock: Clock) -> None:
    workshop.answer = workshop.grants(SLEEP, HTTPBIN)
    workshop.issue(HTTPBIN, SLEEP)
    friend = workshop.federate(FRIEND)
    workshop.federate(STRANGER)
    async with workshop.watch(FETCH_X509_SVID, X509SVIDRequest()) as call:
        response = await reply(call)
    assert identities(response) == [str(SLEEP), str(HTTPBIN)], "the default identity comes first"
    first = response.svids[0]
    assert first.hint == "sleep"
    leaf = x509.load_der_x509_certificate(first.x509_svid)
    assert leaf == workshop.store.holdings.svids[SLEEP].issued.svid.leaf
    assert x509.load_der_x509_certificate(first.bundle) == workshop.root.certificate
    assert set(response.federated_bundles) == {FRIEND.id}, "strangers are not for this caller"
    foreign = x509.load_der_x509_certificate(response.federated_bundles[FRIEND.id])
    assert (foreign,) == friend.roots.authorities


async def test_each_change_is_the_full_state_and_others_send_nothing(
    workshop: Workshop, autojump_clock: Clock
) -> None:
    workshop.answer = workshop.grants(HTTPBIN, SLEEP)
    async with workshop.watch(FETCH_X509_SVID, X509SVIDRequest()) as call:
        assert await silent(call), "a certificate that is not there yet is waited for"
        workshop.issue(HTTPBIN)
        assert identities(await reply(call)) == [str(HTTPBIN)]
        workshop.issue(SLEEP)
        assert identities(await reply(call)) == [str(HTTPBIN), str(SLEEP)]
        workshop.federate(STRANGER)
        workshop.publish_keys()
        assert await silent(call)
        workshop.federate(FRIEND)
        assert set((await reply(call)).federated_bundles) == {FRIEND.id}
        workshop.store.drop_bundle(FRIEND)
        assert set((await reply(call)).federated_bundles) == set()


async def test_a_caller_that_loses_its_identity_loses_its_stream(
    workshop: Workshop, autojump_clock: Clock
) -> None:
    workshop.issue(HTTPBIN)
    async with workshop.watch(FETCH_X509_SVID, X509SVIDRequest()) as call:
        await reply(call)
        workshop.answer = NoIdentity("no more")
        workshop.store.announce()
        with pytest.raises(GrpcError) as caught:
            await reply(call)
    assert caught.value.code is Status.PERMISSION_DENIED
    assert caught.value.message == "no identity issued"


async def test_expired_certificates_are_not_sent(workshop: Workshop, autojump_clock: Clock) -> None:
    workshop.issue(HTTPBIN)
    workshop.time += timedelta(hours=1)
    async with workshop.watch(FETCH_X509_SVID, X509SVIDRequest()) as call:
        assert await silent(call)
        workshop.issue(HTTPBIN)
        assert identities(await reply(call)) == [str(HTTPBIN)]


async def test_x509_bundles(workshop: Workshop, autojump_clock: Clock) -> None:
    workshop.issue(HTTPBIN)
    workshop.federate(STRANGER)
    async with workshop.watch(FETCH_X509_BUNDLES, X509BundlesRequest()) as call:
        assert set((await reply(call)).bundles) == {OWN.id}
        workshop.federate(FRIEND)
        assert set((await reply(call)).bundles) == {OWN.id, FRIEND.id}
        workshop.issue(HTTPBIN)
        assert await silent(call), "a renewed certificate changes no bundle"


async def test_jwt_bundles(workshop: Workshop, autojump_clock: Clock) -> None:
    async with workshop.watch(FETCH_JWT_BUNDLES, JWTBundlesRequest()) as call:
        assert await silent(call)
        workshop.publish_keys()
        response = await reply(call)
        assert set(response.bundles) == {OWN.id}
        document = parse_bundle(OWN, response.bundles[OWN.id])
        assert document.jwt_keys == {"k": JWT_KEY.public_key()}
        assert document.roots.authorities == ()
        workshop.federate(FRIEND)
        assert set((await reply(call)).bundles) == {OWN.id, FRIEND.id}


async def test_jwt_svid_for_each_identity(workshop: Workshop, autojump_clock: Clock) -> None:
    workshop.answer = workshop.grants(HTTPBIN, SLEEP)
    response = await workshop.unary(FETCH_JWT_SVID, JWTSVIDRequest(audience=["a", "b", "a"]))
    assert [svid.spiffe_id for svid in response.svids] == [str(HTTPBIN), str(SLEEP)]
    assert [svid.hint for svid in response.svids] == ["tpbin", "sleep"]
    assert workshop.asked == [(HTTPBIN, ("a", "b")), (SLEEP, ("a", "b"))]


async def test_jwt_svid_for_one_identity(workshop: Workshop, autojump_clock: Clock) -> None:
    workshop.answer = workshop.grants(HTTPBIN, SLEEP)
    request = JWTSVIDRequest(audience=["a"], spiffe_id=str(SLEEP))
    response = await workshop.unary(FETCH_JWT_SVID, request)
    assert [svid.spiffe_id for svid in response.svids] == [str(SLEEP)]


@pytest.mark.parametrize(
    ("audience", "spiffe_id", "code"),
    [
        ([], "", Status.INVALID_ARGUMENT),
        ([""], "", Status.INVALID_ARGUMENT),
        (["a", ""], "", Status.INVALID_ARGUMENT),
        (["a" * 1025], "", Status.INVALID_ARGUMENT),
        ([str(n) for n in range(33)], "", Status.INVALID_ARGUMENT),
        (["a"], "not an id", Status.INVALID_ARGUMENT),
        (["a"], str(SLEEP), Status.PERMISSION_DENIED),
    ],
)
async def test_jwt_svid_that_is_refused(
    workshop: Workshop,
    autojump_clock: Clock,
    audience: Sequence[str],
    spiffe_id: str,
    code: Status,
) -> None:
    with pytest.raises(GrpcError) as caught:
        await workshop.unary(FETCH_JWT_SVID, JWTSVIDRequest(audience=audience, spiffe_id=spiffe_id))
    assert caught.value.code is code
    assert workshop.asked == []


@pytest.mark.parametrize("code", [Status.UNAVAILABLE, Status.UNIMPLEMENTED])
async def test_jwt_svid_that_the_ca_does_not_give(
    workshop: Workshop, autojump_clock: Clock, code: Status
) -> None:
    workshop.jwt_failure = JwtUnavailable(code, "secret detail")
    with pytest.raises(GrpcError) as caught:
        await workshop.unary(FETCH_JWT_SVID, JWTSVIDRequest(audience=["a"]))
    assert caught.value.code is code
    assert "secret" not in caught.value.message


async def test_validate(workshop: Workshop, autojump_clock: Clock) -> None:
    workshop.publish_keys()
    svid = await workshop.fetch(SLEEP, ("a",))
    request = ValidateJWTSVIDRequest(audience="a", svid=svid.token)
    response = await workshop.unary(VALIDATE_JWT_SVID, request)
    assert response.spiffe_id == str(SLEEP)
    assert list(response.claims["aud"]) == ["a"]
    assert response.claims["sub"] == str(SLEEP)


@pytest.mark.parametrize(
    ("audience", "spoil"),
    [("", ""), ("b", ""), ("a", "x"), ("a", "BAD")],
)
async def test_validate_refuses(
    workshop: Workshop, autojump_clock: Clock, audience: str, spoil: str
) -> None:
    workshop.publish_keys()
    token = "BAD" if spoil == "BAD" else (await workshop.fetch(SLEEP, ("a",))).token + spoil
    with pytest.raises(GrpcError) as caught:
        await workshop.unary(
            VALIDATE_JWT_SVID, ValidateJWTSVIDRequest(audience=audience, svid=token)
        )
    assert caught.value.code is Status.INVALID_ARGUMENT


async def test_tokens_of_strangers_are_not_judged(
    workshop: Workshop, autojump_clock: Clock
) -> None:
    workshop.publish_keys()
    key, foreign = new_key(), SpiffeId.parse("spiffe://stranger/x")
    roots = TrustBundle.of(STRANGER, [make_root().certificate])
    workshop.store.put_bundle(BundleDocument(roots=roots, jwt_keys={"s": key.public_key()}))
    svid = sign_jwt_svid(
        key, "s", identity=foreign, audiences=["a"], ttl=timedelta(300), now=workshop.time
    )
    request = ValidateJWTSVIDRequest(audience="a", svid=svid.token)
    with pytest.raises(GrpcError, match="no keys of trust domain stranger"):
        await workshop.unary(VALIDATE_JWT_SVID, request)


EVERY_CALL: list[tuple[Method[Any, Any], Message]] = [
    (FETCH_X509_SVID, X509SVIDRequest()),
    (FETCH_X509_BUNDLES, X509BundlesRequest()),
    (FETCH_JWT_BUNDLES, JWTBundlesRequest()),
    (FETCH_JWT_SVID, JWTSVIDRequest(audience=["a"])),
    (VALIDATE_JWT_SVID, ValidateJWTSVIDRequest(audience="a", svid="x")),
]

every_call = pytest.mark.parametrize(
    ("method", "request_"), EVERY_CALL, ids=[method.path[19:] for method, _ in EVERY_CALL]
)


@every_call
@pytest.mark.parametrize("values", [[], ["false"], ["True"], ["true", "true"], [""]])
async def test_the_security_header_is_demanded(
    workshop: Workshop,
    autojump_clock: Clock,
    method: Method[Any, Any],
    request_: Message,
    values: list[str],
) -> None:
    workshop.issue(HTTPBIN)
    metadata = [("workload.spiffe.io", value) for value in values]
    async with workshop.channel() as channel, channel.stream(method, metadata=metadata) as call:
        await call.send(request_)
        await call.done_sending()
        with pytest.raises(GrpcError) as caught:
            await reply(call)
    assert caught.value.code is Status.INVALID_ARGUMENT
    assert "workload.spiffe.io" in caught.value.message


@every_call
@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (NoIdentity("pid 5"), Status.PERMISSION_DENIED, "no identity issued"),
        (AttestationFailed("pid 5"), Status.UNAVAILABLE, "workload attestation failed"),
    ],
)
async def test_callers_that_get_nothing(
    workshop: Workshop,
    autojump_clock: Clock,
    method: Method[Any, Any],
    request_: Message,
    failure: Exception,
    code: Status,
    message: str,
) -> None:
    workshop.issue(HTTPBIN)
    workshop.answer = failure
    async with workshop.watch(method, request_) as call:
        with pytest.raises(GrpcError) as caught:
            await reply(call)
    assert caught.value.code is code
    assert caught.value.message == message


async def test_before_the_identity_is_known(workshop: Workshop, autojump_clock: Clock) -> None:
    workshop.answer = None
    async with workshop.watch(FETCH_X509_SVID, X509SVIDRequest()) as call:
        assert await silent(call)
    with pytest.raises(GrpcError) as caught:
        await workshop.unary(FETCH_JWT_SVID, JWTSVIDRequest(audience=["a"]))
    assert caught.value.code is Status.UNAVAILABLE


@pytest.mark.parametrize("name", ["FetchWITSVID", "FetchWITBundles", "Nonsense"])
async def test_what_is_not_there(workshop: Workshop, autojump_clock: Clock, name: str) -> None:
    method = Method(f"/SpiffeWorkloadAPI/{name}", X509SVIDRequest, X509SVIDResponse)
    with pytest.raises(GrpcError) as caught:
        await workshop.unary(method, X509SVIDRequest())
    assert caught.value.code is Status.UNIMPLEMENTED
