"""TLS to destinations outside of the mesh, with the certificate files of a DestinationRule."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import trio

from mesh.clock import Now
from mesh.errors import ConfigError
from mesh.files import read_file
from mesh.policy.outbound import OutboundTls
from mesh.resources.networking import ClientTls, TlsMode
from mesh.svid import InvalidSvid, parse_certificates_pem, parse_private_key_pem
from mesh.tls import TlsContext
from mesh.tls_errors import TlsError
from mesh.tls_origination import UserCredential, origination_context
from proxy.errors import HandshakeFailed
from proxy.handshake import SecureLeg, shake_hands
from proxy.socket_options import reset

SYSTEM = "system"
"""Istio: as `caCertificates` it means the operating system's roots, as does nothing at all."""


class ClientTlsUnusable(HandshakeFailed):
    """The TLS settings of a DestinationRule cannot be put to use."""

    reason = "client_tls_unusable"


@dataclass(frozen=True, slots=True)
class _Made:
    """A context, and the state of the files that it was made of."""

    stamps: tuple[tuple[int, int], ...]
    context: TlsContext


class OriginatedTls:
    """Shakes hands with servers that are no mesh peers.

    Files are read again when they have changed, so a renewed certificate needs no restart.
    """

    def __init__(self, now: Now) -> None:
        self._now = now
        self._made: dict[tuple[ClientTls, tuple[str, ...]], _Made] = {}

    async def connect(
        self, stream: trio.SocketStream, tls: OutboundTls, *, host: str, peer: str
    ) -> SecureLeg:
        """Be the client of a server that must show one of the names of `tls`, or else `host`.

        Put a deadline round it. Raises ConnectionFailed leaves, and then has reset the stream.
        """
        try:
            context = self._context(tls, host)
            session = context.session(self._now(), server_name=tls.sni or _name(host))
        except TlsError as error:
            reset(stream)
            raise ClientTlsUnusable(f"{tls.why}: {error}") from error
        except ClientTlsUnusable:
            reset(stream)
            raise
        return await shake_hands(stream, session, peer, lambda: "the roots of caCertificates")

    def _context(self, tls: OutboundTls, host: str) -> TlsContext:
        settings = tls.settings
        if settings is None:
            raise ClientTlsUnusable("TLS to an outside server needs a DestinationRule's settings")
        names = tls.sans or (host,)
        try:
            stamps = tuple(_stamp(path) for path in _files(settings))
            made = self._made.get((settings, names))
            if made is None or made.stamps != stamps:
                made = _Made(stamps, _make(settings, names))
                self._made[settings, names] = made
        except (OSError, ConfigError, InvalidSvid) as error:
            raise ClientTlsUnusable(f"{tls.why}: {error}") from error
        return made.context


def _make(settings: ClientTls, names: tuple[str, ...]) -> TlsContext:
    """Read the files and build a context. Raises ConfigError, InvalidSvid, ClientTlsUnusable."""
    if settings.credential_name:
        raise ClientTlsUnusable("credentialName needs a Kubernetes secret: give files instead")
    if settings.ca_crl:
        raise ClientTlsUnusable("caCrl is not supported: nothing would be found revoked")
    roots = None
    if settings.ca_certificates not in {"", SYSTEM}:
        roots = parse_certificates_pem(read_file(Path(settings.ca_certificates), "caCertificates"))
    return origination_context(
        names=names,
        roots=roots,
        credential=_credential(settings) if settings.mode is TlsMode.MUTUAL else None,
        verify=not settings.insecure_skip_verify,
    )


def _credential(settings: ClientTls) -> UserCredential:
    if not settings.client_certificate or not settings.private_key:
        raise ClientTlsUnusable("MUTUAL needs clientCertificate and privateKey")
    chain = parse_certificates_pem(
        read_file(Path(settings.client_certificate), "clientCertificate")
    )
    key = parse_private_key_pem(read_file(Path(settings.private_key), "privateKey"))
    if not chain or chain[0].public_key() != key.public_key():
        raise ClientTlsUnusable("privateKey does not belong to clientCertificate")
    return UserCredential(chain=chain, key=key)


def _files(settings: ClientTls) -> list[Path]:
    written = (settings.ca_certificates, settings.client_certificate, settings.private_key)
    return [Path(path) for path in written if path and path != SYSTEM]


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _name(host: str) -> str | None:
    """Return the server name to send: none for an address (RFC 6066, section 3)."""
    try:
        ip_address(host)
    except ValueError:
        return host
    return None
