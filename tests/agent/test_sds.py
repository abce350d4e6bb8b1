from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import pytest
import structlog.testing
import trio
import trio.testing

from agent.answer import Issued
from agent.entitlement import SingleIdentity
from agent.sds import SecretService
from agent.store import SecretStore
from mesh.api import DELTA_SECRETS, FETCH_SECRETS, SECRET_TYPE_URL, STREAM_SECRETS
from mesh.bundle import TrustBundle
from mesh.bundle_document import BundleDocument
from mesh.grpc import (
    Channel,
    ClientCall,
    GrpcError,
    GrpcServer,
    Peer,
    Service,
    Status,
    accept_plain,
    open_channel,
)
from mesh.grpc.limits import DEFAULT_LIMITS
from mesh.protos.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
    ErrorDetail,
    Node,
)
from mesh.protos.secret_pb2 import Secret, SPIFFECertValidatorConfig
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.svid import X509Svid, parse_certificates_pem
from tests.pki import NOW, Authority, make_root

IDENTITY = "spiffe://cluster.local/ns/foo/sa/httpbin"
DOMAIN = TrustDomain("cluster.local")

Clock = trio.testing.MockClock


class Workshop:
    """An SDS server on memory streams, and a CA to fill its store from."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.time = NOW
        self.root = make_root()
        self.store = SecretStore()
        self.nursery = nursery
        service = Service()
        SecretService(
            store=self.store,
            open_session=SingleIdentity(lambda: SpiffeId.parse(IDENTITY)),
            trust_domain=DOMAIN,
            now=self.now,
        ).register(service)
        self._server = GrpcServer(service, accept_plain, DEFAULT_LIMITS)

    def now(self) -> datetime:
        return self.time

    def issue(self, *more: Authority) -> X509Svid:
        svid = self.root.issue(IDENTITY, not_after=self.time + timedelta(hours=1))
        roots = [authority.certificate for authority in (self.root, *more)]
        bundle = TrustBundle.of(DOMAIN, roots)
        self.store.put(Issued(svid=svid, bundle=bundle, created=self.time))
        return svid

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
    async def client(self) -> AsyncGenerator[Client]:
        async with self.channel() as channel, channel.stream(STREAM_SECRETS) as call:
            yield Client(call)


class Client:
    """Speaks SDS as Envoy does."""

    def __init__(self, call: ClientCall[DiscoveryRequest, DiscoveryResponse]) -> None:
        self.call = call
        self.nonce = ""
        self.version = ""
        self.replies = 0

    async def ask(
        self, *names: str, node: str = "sidecar~1", error: str = "", type_url: str = SECRET_TYPE_URL
    ) -> None:
        """Subscribe, or answer the latest reply."""
        request = DiscoveryRequest(
            node=Node(id=node),
            resource_names=names,
            type_url=type_url,
            response_nonce=self.nonce,
            version_info=self.version,
        )
        if error:
            request.error_detail.CopyFrom(ErrorDetail(code=13, message=error))
        await self.call.send(request)

    async def reply(self) -> dict[str, Secret]:
        with trio.fail_after(5):
            response = await anext(self.call)
        assert response.type_url == SECRET_TYPE_URL
        assert response.nonce not in {"", self.nonce}
        assert {resource.type_url for resource in response.resources} == {SECRET_TYPE_URL}
        self.nonce, self.version = response.nonce, response.version_info
        self.replies += 1
        secrets = [Secret.FromString(resource.value) for resource in response.resources]
        return {secret.name: secret for secret in secrets}

    async def silence(self, seconds: float = 1.0) -> bool:
        """Tell whether no reply comes for a while. A reply that does come is an error."""
        with trio.move_on_after(seconds) as scope:
            await anext(self.call)
        return scope.cancelled_caught


@pytest.fixture
def workshop(nursery: trio.Nursery) -> Workshop:
    return Workshop(nursery)


def loaded(secret: Secret) -> X509Svid:
    certificate = secret.tls_certificate
    return X509Svid.parse_pem(
        certificate.certificate_chain.inline_bytes, certificate.private_key.inline_bytes
    )


async def test_own_certificate(workshop: Workshop, autojump_clock: Clock) -> None:
    svid = workshop.issue()
    async with workshop.client() as client:
        await client.ask("default")
        secrets = await client.reply()
        assert list(secrets) == ["default"]
        assert loaded(secrets["default"]).chain == svid.chain
        assert client.version == "2026-06-01T12:00:00Z/1"
        await client.ask("default")
        assert await client.silence()


async def test_roots(workshop: Workshop, autojump_clock: Clock) -> None:
    other = make_root("other")
    workshop.issue(other)
    async with workshop.client() as client:
        await client.ask("ROOTCA")
        secrets = await client.reply()
        pem = secrets["ROOTCA"].validation_context.trusted_ca.inline_bytes
        served = set(parse_certificates_pem(pem))
        assert served == {workshop.root.certificate, other.certificate}


async def test_chain_is_leaf_and_intermediates_without_the_root(
    workshop: Workshop, autojump_clock: Clock
) -> None:
    middle = workshop.root.intermediate("middle")
    bundle = TrustBundle.of(DOMAIN, [workshop.root.certificate])
    workshop.store.put(Issued(svid=middle.issue(IDENTITY), bundle=bundle, created=NOW))
    async with workshop.client() as client:
        await client.ask("default")
        chain = loaded((await client.reply())["default"]).chain
        assert [c.subject.rfc4514_string() for c in chain] == ["", "O=middle"]


async def test_both_on_one_stream(workshop: Workshop, autojump_clock: Clock) -> None:
    workshop.issue()
    async with workshop.client() as client:
        await client.ask("default", "ROOTCA")
        assert set(await client.reply()) == {"default", "ROOTCA"}
        await client.ask("default", "ROOTCA")
        assert await client.silence()


async def test_reply_is_held_until_there_is_a_certificate(
    workshop: Workshop, autojump_clock: Clock
) -> None:
    async with workshop.client() as client:
        await client.ask("default")
        assert await client.silence(3600)
        svid = workshop.issue()
        assert loaded((await client.reply())["default"]).chain == svid.chain
        await client.ask("default")
        assert await client.silence()


async def test_each_renewal_is_pushed_once_to_those_who_asked(
    workshop: Workshop, autojump_clock: Clock
) -> None:
    workshop.issue()
    async with workshop.client() as mine, workshop.client() as roots:
        await mine.ask("default")
        await mine.reply()
        await mine.ask("default")
        await roots.ask("ROOTCA")
        await roots.reply()
        await roots.ask("ROOTCA")
        for _ in range(3):
            svid = workshop.issue()
            assert loaded((await mine.reply())["default"]).chain == svid.chain
            await mine.ask("default")
            assert await mine.silence()
        assert await roots.silence()
        workshop.issue(make_root("other"))
        assert list(await roots.reply()) == ["ROOTCA"]
        assert list(await mine.reply()) == ["default"]
        assert await roots.silence()


async def test_many_streams_are_all_served(workshop: Workshop, autojump_clock: Clock) -> None:
    workshop.issue()
    async with workshop.channel() as channel, trio.open_nursery() as nursery:
        served: list[int] = []

        async def one() -> None:
            async with channel.stream(STREAM_SECRETS) as call:
                client = Client(call)
                await client.ask("default")
                await client.reply()
                served.append(1)
                await client.reply()
                served.append(2)

        for _ in range(20):
            nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(served) == [1] * 20
        workshop.issue()
    assert sorted(served) == [1] * 20 + [2] * 20


async def test_changes_that_come_fast_are_joined(workshop: Workshop, autojump_clock: Clock) -> None:
    workshop.issue()
    async with workshop.client() as client:
        await client.ask("default")
        await client.reply()
        svid = [workshop.issue() for _ in range(5)][-1]
        assert loaded((await client.reply())["default"]).chain == svid.chain
        assert await client.silence()


async def test_nack_is_logged_and_not_answered(workshop: Workshop, autojump_clock: Clock) -> None:
    workshop.issue()
    async with workshop.client() as client:
        await client.ask("default")
        await client.reply()
        with structlog.testing.capture_logs() as logs:
            await client.ask("default", error="unsupported key")
            assert await client.silence()
        [line] = [line for line in logs if line["event"] == "client refused a secret"]
        assert line["error"] == "unsupported key"
        assert line["node"] == "sidecar~1"
        workshop.issue()
        assert list(await client.reply()) == ["default"]


async def test_stale_answer_is_ignored(workshop: Workshop, autojump_clock: Clock) -> None:
    workshop.issue()
    async with workshop.client() as client:
        await client.ask("default")
        await client.reply()
        old = client.nonce
        workshop.issue()
        await client.reply()
        client.nonce, new = old, client.nonce
        await client.ask("default", "ROOTCA")
        assert await client.silence()
        client.nonce = new
        await client.ask("default", "ROOTCA")
        assert list(await client.reply()) == ["ROOTCA"]


async def test_unsubscribed_stream_is_left_alone(workshop: Workshop, autojump_clock: Clock) -> None:
    workshop.issue()
    async with workshop.client() as client:
        await client.ask("default")
        await client.reply()
        await client.ask()
        await trio.testing.wait_all_tasks_blocked()
        workshop.issue()
        assert await client.silence()
        await client.ask("default")
        assert list(await client.reply()) == ["default"]


@pytest.mark.parametrize("names", [["nobody"], ["default", "file-cert:/etc/shadow~/etc/shadow"]])
async def test_unknown_secret_ends_the_stream(
    workshop: Workshop, autojump_clock: Clock, names: Sequence[str]
) -> None:
    workshop.issue()
    async with workshop.client() as client:
        await client.ask(*names)
        with pytest.raises(GrpcError, match="only default, ROOTCA") as caught:
            await client.reply()
        assert caught.value.code is Status.INVALID_ARGUMENT


async def test_stream_without_a_node(workshop: Workshop, autojump_clock: Clock) -> None:
    async with workshop.client() as client:
        await client.ask("default", node="")
        with pytest.raises(GrpcError, match=r"node\.id") as caught:
            await client.reply()
        assert caught.value.code is Status.INVALID_ARGUMENT


async def test_expired_certificate_is_not_served(workshop: Workshop, autojump_clock: Clock) -> None:
    workshop.issue()
    workshop.time += timedelta(hours=1)
    async with workshop.client() as client:
        await client.ask("default", "ROOTCA")
        assert list(await client.reply()) == ["ROOTCA"]
        await client.ask("default", "ROOTCA")
        assert await client.silence()
        workshop.issue()
        assert list(await client.reply()) == ["default"]


async def test_client_that_ends_its_side_gets_ok(workshop: Workshop, autojump_clock: Clock) -> None:
    async with workshop.client() as client:
        await client.ask("default")
        await client.call.done_sending()
        with trio.fail_after(5):
            assert [response async for response in client.call] == []


async def test_client_that_goes_away_is_forgotten(
    workshop: Workshop, autojump_clock: Clock
) -> None:
    workshop.issue()
    async with workshop.client() as client:
        await client.ask("default")
        await client.reply()
        assert len(workshop.store._subscribers) == 1
    await trio.testing.wait_all_tasks_blocked()
    assert not workshop.store._subscribers
    workshop.issue()


async def fetch(workshop: Workshop, *names: str, node: str = "sidecar~1") -> dict[str, Secret]:
    request = DiscoveryRequest(node=Node(id=node), resource_names=names, response_nonce="odd")
    async with workshop.channel() as channel:
        response = await channel.unary(FETCH_SECRETS, request, timeout=5)
    secrets = [Secret.FromString(resource.value) for resource in response.resources]
    return {secret.name: secret for secret in secrets}


async def test_fetch(workshop: Workshop, autojump_clock: Clock) -> None:
    svid = workshop.issue()
    fetched = await fetch(workshop, "default", DOMAIN.id)
    assert set(fetched) == {"default", DOMAIN.id}
    assert loaded(fetched["default"]).chain == svid.chain
    assert set(await fetch(workshop)) == {"default", "ROOTCA"}


@pytest.mark.parametrize(
    ("names", "node", "code"),
    [
        (["default"], "sidecar~1", Status.UNAVAILABLE),
        (["default"], "", Status.INVALID_ARGUMENT),
        (["nobody"], "sidecar~1", Status.INVALID_ARGUMENT),
    ],
)
async def test_fetch_that_cannot_be_answered(
    workshop: Workshop, autojump_clock: Clock, names: list[str], node: str, code: Status
) -> None:
    with pytest.raises(GrpcError) as caught:
        await fetch(workshop, *names, node=node)
    assert caught.value.code is code


async def test_a_secret_by_its_spiffe_id(workshop: Workshop, autojump_clock: Clock) -> None:
    svid = workshop.issue()
    async with workshop.client() as client:
        await client.ask(IDENTITY)
        secrets = await client.reply()
        assert loaded(secrets[IDENTITY]).chain == svid.chain
        await client.ask(IDENTITY)
        renewed = workshop.issue()
        assert loaded((await client.reply())[IDENTITY]).chain == renewed.chain


async def test_all_roots_as_the_spiffe_validator_takes_them(
    workshop: Workshop, autojump_clock: Clock
) -> None:
    workshop.issue()
    foreign = make_root("foreign")
    bundle = TrustBundle.of(TrustDomain("foreign"), [foreign.certificate])
    async with workshop.client() as client:
        await client.ask("ALL")
        await client.reply()
        await client.ask("ALL")
        workshop.store.put_bundle(BundleDocument(roots=bundle, jwt_keys={}))
        context = (await client.reply())["ALL"].validation_context
    assert context.custom_validator_config.name == "envoy.tls.cert_validator.spiffe"
    config = SPIFFECertValidatorConfig()
    assert context.custom_validator_config.typed_config.Unpack(config)
    roots = {td.name: td.trust_bundle.inline_bytes for td in config.trust_domains}
    assert roots == {"cluster.local": workshop.root.pem, "foreign": foreign.pem}


class DeltaClient:
    """Speaks incremental SDS as Envoy does."""

    def __init__(self, call: ClientCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]) -> None:
        self.call = call
        self.nonce = ""

    async def send(self, **fields: object) -> None:
        request = DeltaDiscoveryRequest(
            node=Node(id="sidecar~1"),
            type_url=SECRET_TYPE_URL,
            response_nonce=self.nonce,
            **fields,  # type: ignore[arg-type]
        )
        await self.call.send(request)

    async def reply(self) -> dict[str, str]:
        """Return names and versions; each resource must hold the secret that it names."""
        with trio.fail_after(5):
            response = await anext(self.call)
        assert response.nonce not in {"", self.nonce}
        assert response.type_url == SECRET_TYPE_URL
        self.nonce = response.nonce
        for resource in response.resources:
            assert resource.resource.type_url == SECRET_TYPE_URL
            assert Secret.FromString(resource.resource.value).name == resource.name
        return {resource.name: resource.version for resource in response.resources}

    async def silence(self) -> bool:
        with trio.move_on_after(1) as scope:
            await anext(self.call)
        return scope.cancelled_caught


@asynccontextmanager
async def delta_client(workshop: Workshop) -> AsyncGenerator[DeltaClient]:
    async with workshop.channel() as channel, channel.stream(DELTA_SECRETS) as call:
        yield DeltaClient(call)


async def test_delta_conversation(workshop: Workshop, autojump_clock: Clock) -> None:
    workshop.issue()
    async with delta_client(workshop) as client:
        await client.send(resource_names_subscribe=["default"])
        first = await client.reply()
        assert list(first) == ["default"]
        await client.send()
        assert await client.silence()
        await client.send(resource_names_subscribe=["ROOTCA"])
        roots = await client.reply()
        assert list(roots) == ["ROOTCA"]
        await client.send()
        workshop.issue()
        renewed = await client.reply()
        assert list(renewed) == ["default"]
        assert renewed != first
        await client.send(error_detail=ErrorDetail(code=13, message="bad"))
        await client.send(resource_names_unsubscribe=["default"])
        await trio.testing.wait_all_tasks_blocked()
        workshop.issue()
        assert await client.silence()


async def test_delta_client_that_returns_is_sent_only_what_is_new(
    workshop: Workshop, autojump_clock: Clock
) -> None:
    workshop.issue()
    names = ["default", "ROOTCA"]
    async with delta_client(workshop) as client:
        await client.send(resource_names_subscribe=names)
        versions = await client.reply()
    workshop.issue()
    async with delta_client(workshop) as client:
        await client.send(resource_names_subscribe=names, initial_resource_versions=versions)
        assert list(await client.reply()) == ["default"]


async def test_delta_unknown_name(workshop: Workshop, autojump_clock: Clock) -> None:
    async with delta_client(workshop) as client:
        await client.send(resource_names_subscribe=["nobody"])
        with pytest.raises(GrpcError) as caught:
            await client.reply()
        assert caught.value.code is Status.INVALID_ARGUMENT


async def test_no_key_in_the_log(workshop: Workshop, autojump_clock: Clock) -> None:
    workshop.issue()
    with structlog.testing.capture_logs() as logs:
        async with workshop.client() as client:
            await client.ask("default")
            await client.reply()
    assert logs
    assert "PRIVATE" not in repr(logs)
