"""Mutual TLS without I/O: pyOpenSSL over memory BIOs, judging peers by their SPIFFE ID.

A `TlsContext` holds what many connections share: own certificate, roots, ALPN. It is cheap to
throw away and is rebuilt whenever a certificate or a root changes, so new handshakes always use
the newest material while open connections keep the session they have. A `TlsSession` is one
connection: bytes from the network go in by `feed`, bytes for it come out of `pending_output`.

The peer is judged inside the handshake, in OpenSSL's verify callback, and not after it: a refusal
then reaches the peer as a TLS alert, and no application byte can ever precede the decision.

Resumption is off. A resumed session skips certificate verification, so it would outlive the
expiry of a certificate and the removal of a root. Without tickets and without a session cache
every connection is a full handshake; SESS_CACHE_OFF alone is not enough, since a server that asks
for client certificates and still hands out tickets aborts every client that tries to resume.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol, cast

from cryptography import x509
from OpenSSL import SSL, crypto

from mesh import openssl
from mesh.bundle import Bundles
from mesh.spiffe import SpiffeId
from mesh.svid import PrivateKey, X509Svid
from mesh.tls_errors import TlsClosed, TlsError, from_openssl
from mesh.tls_peer import PeerCheck, PeerJudge, Verify, dns_verifier, svid_verifier
from mesh.verify import MAX_CHAIN, add_authorities

__all__ = [
    "ClientCertificate",
    "Credential",
    "PeerCheck",
    "TlsClosed",
    "TlsContext",
    "TlsError",
    "TlsSession",
    "client_context",
    "named_client_context",
    "server_context",
]

CIPHERS_1_2 = b":".join(
    [
        b"ECDHE-ECDSA-AES128-GCM-SHA256",
        b"ECDHE-RSA-AES128-GCM-SHA256",
        b"ECDHE-ECDSA-AES256-GCM-SHA384",
        b"ECDHE-RSA-AES256-GCM-SHA384",
        b"ECDHE-ECDSA-CHACHA20-POLY1305",
        b"ECDHE-RSA-CHACHA20-POLY1305",
    ]
)
"""TLS 1.2: forward secrecy and AEAD only. TLS 1.3 has nothing else to offer."""

CIPHERS_1_3 = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"

NO_AUTO_CHAIN = 0x8
"""SSL_MODE_NO_AUTO_CHAIN: send the chain we were given; otherwise OpenSSL rebuilds it from the
trust store in every handshake, which costs time and would send the root along."""

GROUPS = b"X25519:X25519MLKEM768:P-256:P-384"
"""Key exchange, most wanted first, as in Istio's sidecars: a client sends a key for the first only.
The post-quantum hybrid costs a fifth of a handshake; a peer that insists on it gets it."""

READ_SIZE = 65536
"""Bytes of output taken from OpenSSL at once."""

RECORD_SIZE = 16384
"""Bytes decrypted at once: what a TLS record has at most (RFC 8446, 5.1). pyOpenSSL allocates and
clears as many bytes as it is asked for, and OpenSSL never returns more than one record."""


class ClientCertificate(enum.Enum):
    """What a server does about client certificates."""

    REQUIRED = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
    OPTIONAL = SSL.VERIFY_PEER
    NONE = SSL.VERIFY_NONE


class Credential(Protocol):
    """A certificate chain with its key: an SVID, or what else a server may know us by."""

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate of the key."""
        ...

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The leaf, then its intermediates."""
        ...

    @property
    def key(self) -> PrivateKey:
        """The private key."""
        ...


class TlsContext:
    """The settings that many sessions share. Make one with the functions below."""

    def __init__(
        self,
        bundles: Bundles,
        verify: Verify,
        *,
        server: bool,
        mode: int,
        svid: Credential | None,
        alpn: Sequence[bytes],
    ) -> None:
        self._server = server
        self._verify = verify
        self._context = SSL.Context(SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD)
        self._set_protocol()
        self._set_alpn(list(alpn))
        add_authorities(_store_of(self._context), bundles.values())
        self._context.set_verify(mode, _on_certificate)
        self._context.set_verify_depth(MAX_CHAIN)
        if svid is not None:
            self._set_certificate(svid)

    def _set_protocol(self) -> None:
        context = self._context
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_cipher_list(CIPHERS_1_2)
        context.set_tls13_ciphersuites(CIPHERS_1_3)
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS | NO_AUTO_CHAIN)
        openssl.prefer_groups(context, GROUPS)

    def _set_alpn(self, protocols: list[bytes]) -> None:
        if not protocols:
            return
        if not self._server:
            self._context.set_alpn_protos(protocols)
            return

        def select(_connection: SSL.Connection, offered: list[bytes]) -> object:
            for protocol in protocols:
                if protocol in offered:
                    return protocol
            return SSL.NO_OVERLAPPING_PROTOCOLS

        self._context.set_alpn_select_callback(select)  # type: ignore[arg-type]

    def _set_certificate(self, svid: Credential) -> None:
        self._context.use_certificate(svid.leaf)
        for certificate in svid.chain[1:]:
            self._context.add_extra_chain_cert(certificate)
        self._context.use_privatekey(svid.key)

    def demand_1_3(self) -> None:
        """Speak no TLS version below 1.3."""
        self._context.set_min_proto_version(SSL.TLS1_3_VERSION)

    def trust_the_system(self) -> None:
        """Judge by the roots that the operating system trusts, too."""
        self._context.set_default_verify_paths()

    def session(
        self,
        now: datetime,
        *,
        server_name: str | None = None,
        check_peer: PeerCheck | None = None,
        descriptor: int | None = None,
    ) -> TlsSession:
        """Begin one connection, judging validity at `now`.

        With the `descriptor` of a non-blocking socket OpenSSL does the I/O itself. `server_name`
        is the SNI a client sends; TlsError if it is no host name. `check_peer` may refuse a proven
        identity; its PeerRejected is what `TlsSession.handshake` raises.
        """
        # pyOpenSSL takes anything with a descriptor for a socket, and numbers too.
        connection = SSL.Connection(self._context, cast("Any", descriptor))
        if self._server:
            connection.set_accept_state()
        else:
            connection.set_connect_state()
            if server_name is not None:
                connection.set_tlsext_host_name(_server_name(server_name))
        return TlsSession(connection, self._verify, now, check_peer, descriptor)


class TlsSession:
    """One TLS connection as a machine of bytes. After an error it is good for nothing more.

    Errors are TlsError leaves and, from `handshake`, PeerRejected leaves.
    """

    def __init__(
        self,
        connection: SSL.Connection,
        verify: Verify,
        now: datetime,
        check_peer: PeerCheck | None,
        descriptor: int | None = None,
    ) -> None:
        self.descriptor = descriptor
        """The socket that OpenSSL reads and writes; None if bytes are fed and taken here."""
        self._connection = connection
        self._failure: TlsError | None = None
        self.wants_write = False
        """What `handshake` waits for on a descriptor: to write, or else to read."""
        self._judge = PeerJudge(verify, now, check_peer)
        connection.set_app_data(self._judge)

    def feed(self, data: bytes) -> None:
        """Take bytes that came from the network."""
        if data:
            self._connection.bio_write(data)

    def feed_eof(self) -> None:
        """Take note that the network will bring no more bytes."""
        self._connection.bio_shutdown()

    def pending_output(self) -> bytes:
        """Return the bytes that must now go to the network, alerts included; maybe none."""
        parts: list[bytes] = []
        while True:
            try:
                parts.append(self._connection.bio_read(READ_SIZE))
            except SSL.WantReadError:
                return b"".join(parts)

    def handshake(self) -> bool:
        """Take the handshake as far as the bytes that came allow; True when it is complete.

        Raises PeerRejected or TlsError; send `pending_output` then too, it holds the alert.
        """
        try:
            self._connection.do_handshake()
        except (SSL.WantReadError, SSL.WantWriteError) as want:
            self.wants_write = isinstance(want, SSL.WantWriteError)
            return False
        except SSL.Error as error:
            if self._judge.refusal is not None:
                raise self._judge.refusal from error
            raise from_openssl(error) from error
        return True

    def read(self, limit: int = RECORD_SIZE) -> bytes | None:
        """Return up to `limit` decrypted bytes, None if more input is needed, b"" at close_notify.

        Raises TlsError, again at every later read or write; a network that ended without
        close_notify is TlsTruncated.
        """
        self._check_failure()
        try:
            return self._connection.recv(min(limit, RECORD_SIZE))
        except SSL.WantReadError:
            return None
        except SSL.ZeroReturnError:
            return b""
        except SSL.Error as error:
            self._failure = from_openssl(error)
            raise self._failure from error

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt all of `data` into `pending_output`. Raises TlsError."""
        self._check_failure()
        try:
            view = memoryview(data)
            while view:
                view = view[self._connection.send(view) :]
        except SSL.Error as error:
            raise from_openssl(error) from error

    def close_notify(self) -> None:
        """Say that we shall send no more; reading goes on. Harmless before or after an error."""
        try:
            self._connection.shutdown()
        except SSL.Error:
            return

    def release(self) -> SSL.Connection:
        """Give the connection to somebody who does its I/O; no bytes go through here any more."""
        self._failure = self._failure or TlsClosed("the session was given to somebody else")
        return self._connection

    def _check_failure(self) -> None:
        # OpenSSL reports a fatal error in full only once, and what it says later misleads.
        if self._failure is not None:
            raise self._failure

    @property
    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """The chain that was verified, leaf first and root last; empty without a certificate."""
        return self._judge.chain

    @property
    def peer_id(self) -> SpiffeId | None:
        """The identity the peer proved, or None if it showed no certificate (or no SVID)."""
        return self._judge.identity

    @property
    def alpn(self) -> bytes | None:
        """The application protocol that was negotiated."""
        return self._connection.get_alpn_proto_negotiated() or None

    @property
    def version(self) -> str:
        """The protocol version, such as `TLSv1.3`."""
        return self._connection.get_protocol_version_name()

    @property
    def server_name(self) -> str | None:
        """The SNI of the connection, as the client sent it."""
        name = self._connection.get_servername()
        return None if name is None else name.decode("ascii", "replace")


def _server_name(name: str) -> bytes:
    try:
        return name.encode("idna")
    except UnicodeError as error:
        raise TlsError(f"{name!r} cannot be sent as a server name: {error}") from error


def _store_of(context: SSL.Context) -> crypto.X509Store:
    store = context.get_cert_store()
    if store is None:
        raise TlsError("OpenSSL made a context without a certificate store")
    return store


def _on_certificate(
    connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, ok: int
) -> bool:
    judge: PeerJudge = connection.get_app_data()
    return judge.certificate(certificate, code, depth, ok=bool(ok))


def server_context(
    svid: Credential,
    bundles: Bundles,
    *,
    alpn: Sequence[bytes] = (),
    client_certificate: ClientCertificate = ClientCertificate.REQUIRED,
) -> TlsContext:
    """Make the server side, showing `svid` and judging clients by `bundles`.

    The first of `alpn` that the client offers is selected; with none in common the connection
    goes on without ALPN, as a sidecar's must.
    """
    return TlsContext(
        bundles,
        svid_verifier(bundles),
        server=True,
        mode=client_certificate.value,
        svid=svid,
        alpn=alpn,
    )


def client_context(
    bundles: Bundles, *, svid: Credential | None = None, alpn: Sequence[bytes] = ()
) -> TlsContext:
    """Make the client side: the server must show an SVID that `bundles` vouch for.

    Give `check_peer` to each session: without it any identity of a known trust domain will do.
    """
    return TlsContext(
        bundles,
        svid_verifier(bundles),
        server=False,
        mode=SSL.VERIFY_PEER,
        svid=svid,
        alpn=alpn,
    )


def named_client_context(
    bundles: Bundles, name: str, *, svid: X509Svid | None = None, alpn: Sequence[bytes] = ()
) -> TlsContext:
    """Make a client for a server known by DNS name, such as a real istiod, not by SPIFFE ID.

    The name must stand in the server certificate as it is written here; wildcards do not count.
    """
    return TlsContext(
        bundles,
        dns_verifier(name),
        server=False,
        mode=SSL.VERIFY_PEER,
        svid=svid,
        alpn=alpn,
    )
