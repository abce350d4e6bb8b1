"""The federation file, and bundles fetched from endpoints by both profiles."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.abc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from structlog.testing import capture_logs

from ca.bundle_fetch import FetchFailed, fetch_bundle
from ca.federation import (
    EndpointUrl,
    Federation,
    FederationInvalid,
    Profile,
    Relationship,
    parse_federation,
)
from ca.federator import Federator
from mesh.bundle import TrustBundle
from mesh.bundle_document import BundleDocument
from mesh.http_endpoint import Page, serve_pages
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.tls import ClientCertificate, server_context
from mesh.tls_stream import TlsStream
from tests.pki import Authority, Leaf, make_root, real_now, svid_pem

OWN, OTHER = TrustDomain("cluster.local"), TrustDomain("other.test")
SERVER = SpiffeId.parse("spiffe://other.test/ns/istio-system/sa/istiod")
PATH = Path("/etc/remora/federation.yaml")

SPIFFE = """
bundleEndpoint: {listen: "127.0.0.1:8443"}
federatesWith:
- trustDomain: other.test
  url: https://ca.other.test:8443/bundle?x=1
  profile: https_spiffe
  endpointSpiffeId: spiffe://other.test/ns/istio-system/sa/istiod
  trustBundle: other.json
- trustDomain: web.test
  url: https://web.test
  profile: https_web
"""


def parse(text: str) -> Federation:
    return parse_federation(text.encode(), PATH, OWN)


def test_every_field() -> None:
    federation = parse(SPIFFE)
    assert federation.endpoint is not None
    assert str(federation.endpoint.listen) == "127.0.0.1:8443"
    spiffe, web = federation.relationships
    assert spiffe.endpoint_id == SERVER
    assert spiffe.trust_bundle == Path("/etc/remora/other.json")
    assert spiffe.url == EndpointUrl(host="ca.other.test", port=8443, target="/bundle?x=1")
    assert str(web.url) == "https://web.test/"
    assert web.profile is Profile.WEB


@pytest.mark.parametrize(
    "url",
    [
        "http://other.test/",
        "other.test",
        "https://",
        "https://user@other.test/",
        "https://other.test/#x",
        "https://other.test:99999/",
        "https://other.test/ x",
        "https://other.test/\r\nHost: evil",
        "https://[::1",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(FederationInvalid):
        EndpointUrl.parse(url)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("profile: https_spiffe", "profile: https"), "must be one of"),
        (("profile: https_web", "profile: https_spiffe"), "needs endpointSpiffeId"),
        (("profile: https_spiffe", "profile: https_web"), "are for the profile https_spiffe"),
        (("trustDomain: web.test", "trustDomain: other.test"), "twice"),
        (("trustDomain: web.test", "trustDomain: cluster.local"), "our own"),
        (("trustDomain: web.test", "trustDomain: UPPER"), "only a-z"),
        (("spiffe://other.test/ns", "spiffe://third.test/ns"), "is not of trust domain"),
        (('listen: "127.0.0.1:8443"', "listen: x"), "listen"),
        (('8443"}', '8443", certificate: a.pem}'), "go together"),
        (("url: https://web.test", "url: http://web.test"), "not an https URL"),
        (("federatesWith", "federateWith"), "did you mean federatesWith"),
    ],
)
def test_malformed_files(change: tuple[str, str], words: str) -> None:
    with pytest.raises(FederationInvalid, match=words):
        parse(SPIFFE.replace(*change))


class Endpoint:
    """Somebody else's bundle endpoint; what it shows may be changed."""

    def __init__(self) -> None:
        self.root = make_root("other", real_now())
        self.extra: list[Authority] = []
        self.svid = self.root.issue(str(SERVER), "localhost", not_after=later())
        self.hint: timedelta | None = timedelta(seconds=60)
        self.page: Page | None = None
        self.port = 0
        self.asked = 0

    def bundle(self) -> Page:
        self.asked += 1
        return self.page or Page(body=self.document().to_json())

    def document(self) -> BundleDocument:
        roots = [one.certificate for one in (self.root, *self.extra)]
        bundle = TrustBundle.of(OTHER, roots)
        return BundleDocument(roots=bundle, jwt_keys={}, refresh_hint=self.hint)

    @property
    def roots(self) -> TrustBundle:
        return TrustBundle.of(OTHER, [self.root.certificate])

    async def accept(self, socket: trio.SocketStream) -> trio.abc.Stream:
        context = server_context(self.svid, {}, client_certificate=ClientCertificate.NONE)
        stream = TlsStream(socket, context.session(real_now()))
        await stream.do_handshake()
        return stream

    def url(self, target: str = "/") -> EndpointUrl:
        return EndpointUrl(host="localhost", port=self.port, target=target)


def later() -> datetime:
    return real_now() + timedelta(hours=1)


@asynccontextmanager
async def serving(endpoint: Endpoint, accept: object = None) -> AsyncGenerator[None]:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        endpoint.port = listeners[0].socket.getsockname()[1]
        pages: dict[str, Callable[[], Page]] = {"/": endpoint.bundle}
        await nursery.start(serve_pages, pages, listeners, accept or endpoint.accept)
        yield
        nursery.cancel_scope.cancel()


def by_spiffe(endpoint: Endpoint, expected: SpiffeId = SERVER) -> Relationship:
    return Relationship(
        trust_domain=OTHER, url=endpoint.url(), profile=Profile.SPIFFE, endpoint_id=expected
    )


async def test_fetch_by_spiffe() -> None:
    endpoint = Endpoint()
    async with serving(endpoint):
        document = await fetch_bundle(by_spiffe(endpoint), endpoint.roots, real_now)
    assert document.roots.authorities == (endpoint.root.certificate,)
    assert document.trust_domain == OTHER


@pytest.mark.parametrize(
    "fault", ["another root", "another id", "no roots", "not json", "404", "big"]
)
async def test_what_is_not_taken(fault: str) -> None:
    endpoint = Endpoint()
    roots, expected = endpoint.roots, SERVER
    if fault == "another root":
        roots = TrustBundle.of(OTHER, [make_root("other", real_now()).certificate])
    elif fault == "no roots":
        roots = TrustBundle.of(OTHER, [])
    elif fault == "another id":
        expected = SpiffeId.parse("spiffe://other.test/somebody")
    elif fault == "not json":
        endpoint.page = Page(body=b"<html>")
    elif fault == "404":
        endpoint.page = Page(status=404, body=b"")
    else:
        endpoint.page = Page(body=b" " * (1024 * 1024 + 1))
    async with serving(endpoint):
        with pytest.raises(FetchFailed):
            await fetch_bundle(by_spiffe(endpoint, expected), roots, real_now)


async def test_nobody_there() -> None:
    endpoint = Endpoint()
    endpoint.port = 1
    with pytest.raises(FetchFailed, match="cannot connect"):
        await fetch_bundle(by_spiffe(endpoint), endpoint.roots, real_now)


async def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ca.bundle_fetch.FETCH_DEADLINE", 0.1)
    endpoint = Endpoint()

    async def silence(socket: trio.SocketStream) -> trio.abc.Stream:
        await trio.sleep(3600)
        return socket

    async with serving(endpoint, silence):
        with pytest.raises(FetchFailed, match="did not answer"):
            await fetch_bundle(by_spiffe(endpoint), endpoint.roots, real_now)


def web_accept(endpoint: Endpoint, folder: Path) -> object:
    chain, key = svid_pem(endpoint.svid)
    (folder / "cert.pem").write_bytes(chain)
    (folder / "key.pem").write_bytes(key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")

    async def accept(socket: trio.SocketStream) -> trio.abc.Stream:
        stream = trio.SSLStream(socket, context, server_side=True, https_compatible=True)
        await stream.do_handshake()
        return stream

    return accept


async def test_fetch_by_web(tmp_path: Path) -> None:
    endpoint = Endpoint()
    (tmp_path / "roots.pem").write_bytes(endpoint.root.pem)
    async with serving(endpoint, web_accept(endpoint, tmp_path)):
        by_web = Relationship(
            trust_domain=OTHER,
            url=endpoint.url(),
            profile=Profile.WEB,
            web_roots=tmp_path / "roots.pem",
        )
        nothing = TrustBundle.of(OTHER, [])
        document = await fetch_bundle(by_web, nothing, real_now)
        assert document.roots == endpoint.roots
        with pytest.raises(FetchFailed, match="not trusted"):
            await fetch_bundle(replace(by_web, web_roots=None), nothing, real_now)


def federator(endpoint: Endpoint, folder: Path) -> Federator:
    first = folder / "first.pem"
    first.write_bytes(endpoint.root.pem)
    relationship = replace(by_spiffe(endpoint), trust_bundle=first)
    return Federator(Federation(relationships=(relationship,)), folder, real_now)


async def test_bundles_are_followed_and_kept_over_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ca.federator.SHORTEST_INTERVAL", timedelta(seconds=0.05))
    monkeypatch.setattr("ca.federator.DEFAULT_INTERVAL", timedelta(seconds=0.05))
    monkeypatch.setattr("ca.federator.RETRY_INTERVAL", timedelta(seconds=0.05))
    tmp_path.chmod(0o700)
    endpoint = Endpoint()
    endpoint.hint = None
    async with serving(endpoint), trio.open_nursery() as nursery:
        made = federator(endpoint, tmp_path)
        [first] = made.bundles()
        assert first.roots == endpoint.roots, "the operator's first bundle is there at once"
        nursery.start_soon(made.run)
        endpoint.extra.append(make_root("next", real_now()))
        with trio.fail_after(10):
            while len(made.bundles()[0].roots.authorities) < 2:  # noqa: ASYNC110 - no event
                await trio.sleep(0.02)
        endpoint.page = Page(status=500, body=b"")
        asked = endpoint.asked
        with capture_logs() as logs, trio.fail_after(10):
            while endpoint.asked < asked + 2:  # noqa: ASYNC110 - no event
                await trio.sleep(0.02)
        assert "bundle_fetch_failed" in {line.get("reason") for line in logs}
        assert len(made.bundles()[0].roots.authorities) == 2, "a failure changes nothing"
        nursery.cancel_scope.cancel()
    again = federator(endpoint, tmp_path)
    assert len(again.bundles()[0].roots.authorities) == 2, "fetched is newer than first"


async def test_a_root_that_we_could_not_publish_ourselves_stops_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    endpoint = Endpoint()
    key = ed25519.Ed25519PrivateKey.generate()
    odd = endpoint.root.sign(Leaf(ca=True, usage=("key_cert_sign",), key=key))  # type: ignore[arg-type]
    entry = {"kty": "EC", "use": "x509-svid", "x5c": [base64.b64encode(der(odd)).decode()]}
    document = json.loads(endpoint.document().to_json())
    document["keys"].append(entry)
    endpoint.page = Page(body=json.dumps(document).encode())
    async with serving(endpoint), trio.open_nursery() as nursery:
        made = federator(endpoint, tmp_path)
        nursery.start_soon(made.run)
        with trio.fail_after(10):
            while len(made.bundles()[0].roots.authorities) < 2:  # noqa: ASYNC110 - no event
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


async def test_a_bundle_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    endpoint = Endpoint()
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    relationship = replace(by_spiffe(endpoint), trust_bundle=bad)
    with pytest.raises(FederationInvalid, match="no member `keys`"):
        Federator(Federation(relationships=(relationship,)), tmp_path, real_now)
