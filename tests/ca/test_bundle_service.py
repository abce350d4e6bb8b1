"""SPIRE's server API of the CA, called by our own client over real TLS."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import trio

from ca.acting import may_act_for
from ca.bundle_publisher import BundlePublisher
from ca.jwt_keys import KEY_LIFE, PUBLISHED_AHEAD, load_jwt_keys
from ca.operations import revoke_identity
from mesh.api import GET_BUNDLE, LIST_FEDERATED_BUNDLES, MINT_JWT_SVID
from mesh.bundle import TrustBundle
from mesh.grpc import Channel, GrpcError, Status, open_channel
from mesh.jwt_svid import verify_jwt_svid
from mesh.protos.spire_server_pb2 import (
    SPIFFEID,
    GetBundleRequest,
    ListFederatedBundlesRequest,
    MintJWTSVIDRequest,
)
from mesh.spiffe import ServiceAccount, SpiffeId
from mesh.svid import parse_certificates_pem
from mesh.tls import client_context
from mesh.tls_stream import TlsStream
from tests.ca.test_server import Ca, bearer, make_config, running_ca
from tests.ca.workshop import CLUSTER, WEB
from tests.pki import NOW, make_root, real_now


@pytest.fixture
async def ca(tmp_path: Path) -> AsyncGenerator[Ca]:
    async with running_ca(make_config(tmp_path)) as running:
        yield running


async def connect(ca: Ca) -> TlsStream:
    address = ca.running.addresses[0]
    transport = await trio.open_tcp_stream(address.host, address.port)
    context = client_context({CLUSTER: ca.roots}, alpn=[b"h2"])
    stream = TlsStream(transport, context.session(real_now(), server_name="localhost"))
    await stream.do_handshake()
    return stream


@asynccontextmanager
async def channel_to(ca: Ca) -> AsyncGenerator[Channel]:
    async with open_channel(partial(connect, ca), authority="localhost") as channel:
        yield channel


def asked(
    *audience: str, path: str = WEB.path, domain: str = "cluster.local", ttl: int = 0
) -> MintJWTSVIDRequest:
    spiffe_id = SPIFFEID(trust_domain=domain, path=path)
    return MintJWTSVIDRequest(id=spiffe_id, audience=audience, ttl=ttl)


async def test_a_token_for_the_caller_by_a_published_key(ca: Ca) -> None:
    async with channel_to(ca) as channel:
        response = await channel.unary(MINT_JWT_SVID, asked("a"), metadata=bearer(ca.token()))
    [line] = (ca.config.state_dir / "audit.jsonl").read_text().splitlines()
    assert json.loads(line) | {"time": "", "peer": "", "expires": ""} == {
        "time": "",
        "event": "jwt_svid_issued",
        "identity": str(WEB),
        "authenticator": "own-token",
        "audience": "a",
        "expires": "",
        "peer": "",
    }
    keys = load_jwt_keys(ca.config.state_dir, real_now()).published()
    svid = verify_jwt_svid(response.svid.token, {CLUSTER: keys}, ["a"], real_now())
    assert svid.id == WEB
    assert response.svid.expires_at - response.svid.issued_at == 300
    assert response.svid.id.path == WEB.path


async def test_the_bundle_has_roots_and_token_keys_and_needs_no_token(ca: Ca) -> None:
    async with channel_to(ca) as channel:
        bundle = await channel.unary(GET_BUNDLE, GetBundleRequest())
        others = await channel.unary(LIST_FEDERATED_BUNDLES, ListFederatedBundlesRequest())
    assert bundle.trust_domain == "cluster.local"
    assert len(bundle.x509_authorities) == 1
    [key] = bundle.jwt_authorities
    assert key.key_id in load_jwt_keys(ca.config.state_dir, real_now()).published()
    assert bundle.sequence_number > 0
    assert bundle.refresh_hint == 300
    assert list(others.bundles) == []
    [root] = parse_certificates_pem(ca.root)
    assert root in ca.roots.authorities


async def test_revocation_takes_tokens_too_and_its_lists_are_in_the_bundle(
    ca: Ca, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ca.keeper.POLL_INTERVAL", 0.01)
    revoke_identity(ca.config.state_dir, WEB, real_now())
    async with channel_to(ca) as channel:
        with trio.fail_after(10):
            while not (await channel.unary(GET_BUNDLE, GetBundleRequest())).crls:  # noqa: ASYNC110 - a server
                await trio.sleep(0.05)
        with pytest.raises(GrpcError) as caught:
            await channel.unary(MINT_JWT_SVID, asked("a"), metadata=bearer(ca.token()))
    assert caught.value.code is Status.PERMISSION_DENIED


REFUSALS = {
    "no token": (asked("a"), Status.UNAUTHENTICATED),
    "another account": (asked("a", path="/ns/foo/sa/other"), Status.PERMISSION_DENIED),
    "another trust domain": (asked("a", domain="other"), Status.PERMISSION_DENIED),
    "a trust domain": (asked("a", path=""), Status.PERMISSION_DENIED),
    "no trust domain": (asked("a", domain=""), Status.INVALID_ARGUMENT),
    "no path": (asked("a", path="ns/foo"), Status.INVALID_ARGUMENT),
    "no audience": (asked(), Status.INVALID_ARGUMENT),
    "empty audience": (asked(""), Status.INVALID_ARGUMENT),
    "many audiences": (asked(*map(str, range(33))), Status.INVALID_ARGUMENT),
    "long life": (asked("a", ttl=3601), Status.INVALID_ARGUMENT),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_refusals(ca: Ca, name: str) -> None:
    message, code = REFUSALS[name]
    metadata = [] if name == "no token" else bearer(ca.token())
    async with channel_to(ca) as channel:
        with pytest.raises(GrpcError) as caught:
            await channel.unary(MINT_JWT_SVID, message, metadata=metadata)
    assert caught.value.code is code


NODE = SpiffeId.parse("spiffe://cluster.local/ns/kube/sa/node")
TRUSTED = {ServiceAccount("kube", "node")}


@pytest.mark.parametrize(
    ("identity", "allowed"),
    [
        ("spiffe://cluster.local/ns/foo/sa/web", True),
        ("spiffe://cluster.local/anything", True),
        ("spiffe://cluster.local/ns/kube/sa/node", True),
        ("spiffe://other/ns/foo/sa/web", False),
        ("spiffe://cluster.local", False),
        ("spiffe://cluster.local/ns/istio-system/sa/istiod", False),
    ],
)
def test_whom_a_trusted_node_may_act_for(identity: str, allowed: bool) -> None:
    assert may_act_for(NODE, SpiffeId.parse(identity), TRUSTED) is allowed


def test_nobody_else_may_act_for_anybody() -> None:
    assert not may_act_for(WEB, NODE, TRUSTED)
    assert not may_act_for(NODE, WEB, frozenset())
    odd = SpiffeId.parse("spiffe://cluster.local/not/an/account")
    assert not may_act_for(odd, WEB, TRUSTED)


async def test_the_sequence_grows_with_each_change_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time, roots = [NOW], [make_root("one").certificate]
    publisher = BundlePublisher(
        tmp_path,
        lambda: TrustBundle.of(CLUSTER, roots),
        load_jwt_keys(tmp_path, NOW),
        lambda: time[0],
    )
    first = publisher.document
    assert publisher.document is first
    roots.append(make_root("two").certificate)
    second = publisher.document
    assert (second.sequence or 0) > (first.sequence or 0)
    assert publisher.document is second
    roots.pop()
    assert (publisher.document.sequence or 0) > (second.sequence or 0)
    monkeypatch.setattr("ca.bundle_publisher.LOOK_INTERVAL", 0.01)
    time[0] = NOW + KEY_LIFE
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publisher.keep_keys)
        with trio.fail_after(5):
            while len(publisher.document.jwt_keys) < 2:  # noqa: ASYNC110 - files have no events
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert publisher.keyring.signing(time[0]) is not publisher.keyring.keys[1]
    assert publisher.keyring.signing(time[0] + PUBLISHED_AHEAD) is publisher.keyring.keys[1]
    assert publisher.document.refresh_hint == timedelta(minutes=5)
