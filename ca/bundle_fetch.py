"""Fetching another trust domain's bundle from its endpoint (SPIFFE Federation, 5)."""

from __future__ import annotations

import ssl
from typing import ClassVar

import h11
import trio
import trio.abc

from ca.federation import EndpointUrl, FederationInvalid, Relationship
from mesh.bundle import InvalidBundle, TrustBundle
from mesh.bundle_document import MAX_DOCUMENT, BundleDocument, parse_bundle
from mesh.clock import Now
from mesh.dialing import why_not_connected
from mesh.errors import RemoraError
from mesh.spiffe import SpiffeId
from mesh.tls import client_context
from mesh.tls_errors import TlsError
from mesh.tls_stream import TlsStream
from mesh.verify import PeerRejected

FETCH_DEADLINE = 10.0
"""Seconds for one fetch, redirects included (Istio: its client for SPIFFE bundles)."""

MAX_REDIRECTS = 5

READ_SIZE = 64 * 1024

REDIRECTS = frozenset({301, 302, 303, 307, 308})


class FetchFailed(RemoraError):
    """A bundle could not be fetched; the one before stays in use."""

    reason: ClassVar[str] = "bundle_fetch_failed"


async def fetch_bundle(relationship: Relationship, roots: TrustBundle, now: Now) -> BundleDocument:
    """Fetch a trust domain's bundle. Raises FetchFailed.

    `roots` are the newest that are known of it: an `https_spiffe` server is judged by them.
    """
    try:
        with trio.fail_after(FETCH_DEADLINE):
            body = await _follow(relationship, roots, now)
    except trio.TooSlowError as error:
        raise FetchFailed(
            f"{relationship.url} did not answer within {FETCH_DEADLINE:.0f} s"
        ) from error
    try:
        return parse_bundle(relationship.trust_domain, body)
    except InvalidBundle as error:
        raise FetchFailed(f"{relationship.url}: {error}") from error


async def _follow(relationship: Relationship, roots: TrustBundle, now: Now) -> bytes:
    """Get the URL, going where it sends us. The new place is not remembered (5.2.1)."""
    url = relationship.url
    for _ in range(MAX_REDIRECTS + 1):
        stream = await _connect(relationship, url, roots, now)
        try:
            status, location, body = await _get(stream, url)
        except (h11.RemoteProtocolError, trio.BrokenResourceError, TlsError) as error:
            raise FetchFailed(f"{url} broke off its answer: {error}") from error
        finally:
            await trio.aclose_forcefully(stream)
        if status == 200:
            return body
        if status not in REDIRECTS:
            raise FetchFailed(f"{url} answered with status {status}")
        try:
            url = EndpointUrl.parse(location)
        except FederationInvalid as error:
            raise FetchFailed(f"{url} redirects to what cannot be followed: {error}") from error
    raise FetchFailed(f"{relationship.url} redirects more than {MAX_REDIRECTS} times")


async def _connect(
    relationship: Relationship, url: EndpointUrl, roots: TrustBundle, now: Now
) -> trio.abc.Stream:
    try:
        transport = await trio.open_tcp_stream(url.host, url.port)
    except (OSError, UnicodeError) as error:
        raise FetchFailed(f"cannot connect to {url}: {why_not_connected(error)}") from error
    try:
        if relationship.endpoint_id is not None:
            return await _spiffe_tls(transport, relationship.endpoint_id, roots, now)
        return await _web_tls(transport, relationship, url)
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise


async def _spiffe_tls(
    transport: trio.SocketStream, expected: SpiffeId, roots: TrustBundle, now: Now
) -> trio.abc.Stream:
    def check(identity: SpiffeId) -> None:
        if identity != expected:
            raise PeerRejected(f"it is {identity}, where {expected} was expected")

    context = client_context({roots.trust_domain: roots})
    stream = TlsStream(transport, context.session(now(), check_peer=check))
    try:
        await stream.do_handshake()
    except (PeerRejected, TlsError, trio.BrokenResourceError) as error:
        raise FetchFailed(f"the server of {expected}'s bundle is not trusted: {error}") from error
    return stream


async def _web_tls(
    transport: trio.SocketStream, relationship: Relationship, url: EndpointUrl
) -> trio.abc.Stream:
    try:
        context = ssl.create_default_context(cafile=relationship.web_roots)
    except (OSError, ssl.SSLError) as error:
        raise FetchFailed(f"webRoots {relationship.web_roots} cannot be used: {error}") from error
    stream = trio.SSLStream(transport, context, server_hostname=url.host, https_compatible=True)
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        raise FetchFailed(f"the server at {url} is not trusted: {error.__cause__}") from error
    return stream


async def _get(stream: trio.abc.Stream, url: EndpointUrl) -> tuple[int, str, bytes]:
    """Return status, location and body of one GET. Raises FetchFailed, h11.RemoteProtocolError."""
    connection = h11.Connection(h11.CLIENT)
    headers = [("host", url.authority), ("accept", "application/json"), ("connection", "close")]
    request = h11.Request(method="GET", target=url.target, headers=headers)
    head = (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b"")
    await stream.send_all(head)
    status, location, body = 0, "", bytearray()
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(READ_SIZE)))
        elif isinstance(event, h11.Response):
            status = event.status_code
            location = dict(event.headers).get(b"location", b"").decode("latin-1")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_DOCUMENT:
                raise FetchFailed(f"{url} is larger than {MAX_DOCUMENT} bytes")
        elif isinstance(event, h11.ConnectionClosed):
            raise FetchFailed(f"{url} ended without an answer")
    return status, location, bytes(body)
