"""The bundle endpoint: our bundle over HTTPS, for other trust domains (SPIFFE Federation, 5)."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable

import trio
import trio.abc

from ca.bundle_publisher import BundlePublisher
from ca.federation import Endpoint, FederationInvalid
from mesh.bundle import InvalidBundle
from mesh.http_endpoint import Accept, Page
from mesh.tls import TlsSession
from mesh.tls_stream import TlsStream

PATH = "/"
"""SPIFFE leaves the path to the server; SPIRE's is this one."""

Session = Callable[[], TlsSession]
"""Begins the server's side of a TLS connection with our own SVID."""


def bundle_pages(publisher: BundlePublisher) -> dict[str, Callable[[], Page]]:
    """Return what the endpoint serves: the bundle, whoever asks."""

    def bundle() -> Page:
        try:
            body = publisher.document.to_json()
        except InvalidBundle as error:
            return Page(status=500, body=f"{error}\n".encode())
        return Page(body=body, content_type="application/json")

    return {PATH: bundle}


def tls_accept(endpoint: Endpoint, session: Session) -> Accept:
    """Return how connections become TLS: `https_web` by files, or `https_spiffe` by our SVID.

    The files are read at each connection, so renewed ones are in force at once. Raises
    FederationInvalid if they cannot be used at the start.
    """
    if endpoint.certificate is None:
        return _spiffe(session)
    _web_context(endpoint)
    return _web(endpoint)


def _spiffe(session: Session) -> Accept:
    async def accept(socket: trio.SocketStream) -> trio.abc.Stream:
        stream = TlsStream(socket, session())
        await stream.do_handshake()
        return stream

    return accept


def _web(endpoint: Endpoint) -> Callable[[trio.SocketStream], Awaitable[trio.abc.Stream]]:
    async def accept(socket: trio.SocketStream) -> trio.abc.Stream:
        context = _web_context(endpoint)
        stream = trio.SSLStream(socket, context, server_side=True, https_compatible=True)
        await stream.do_handshake()
        return stream

    return accept


def _web_context(endpoint: Endpoint) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(str(endpoint.certificate), str(endpoint.key))
    except (OSError, ssl.SSLError) as error:
        raise FederationInvalid(
            f"bundle endpoint: {endpoint.certificate} and {endpoint.key} cannot be used: {error}"
        ) from error
    return context
