"""Why a connection was refused, failed or cut: every reason there is, each with a sentence.

The `reason` of a class is stable: logs, metrics and scripts may rely on it. The sentence names
who did what and what to do next; it is for the human who reads the log at night.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from mesh.errors import RemoraError
from mesh.tls_errors import (
    TlsAlert,
    TlsClosed,
    TlsError,
    TlsNoCommonGround,
    TlsPeerPlaintext,
    TlsPeerWithoutCertificate,
    TlsTruncated,
)
from mesh.verify import (
    PeerExpired,
    PeerInvalid,
    PeerNotTrusted,
    PeerNotYetValid,
    PeerRejected,
    PeerRevoked,
)


class ConnectionFailed(RemoraError):
    """One connection was refused or failed; the proxy lives on."""

    reason: ClassVar[str] = "connection_failed"

    @property
    def facts(self) -> Mapping[str, str | int]:
        """What the log line shall say beside reason and sentence."""
        return {}


class NoIdentityYet(ConnectionFailed):
    """There is no certificate to do mutual TLS with."""

    reason = "no_identity_yet"

    def __init__(self) -> None:
        super().__init__(
            "this proxy has no certificate yet: see whether the agent runs and reaches the CA"
        )


class ProxyStopped(ConnectionFailed):
    """The proxy was told to stop and the connection did not end in time."""

    reason = "proxy_stopped"

    def __init__(self) -> None:
        super().__init__("the proxy stopped before the connection had ended: both sides were reset")


class InternalError(ConnectionFailed):
    """The proxy failed in a way that nobody foresaw, with this connection only."""

    reason = "internal_error"

    def __init__(self) -> None:
        super().__init__(
            "the proxy met an error of its own and reset the connection; "
            "the traceback beside this line belongs into a bug report"
        )


# Captured connections: where they were going.


class SelfCall(ConnectionFailed):
    """A captured connection was going to one of the proxy's own ports: a loop, or an attempt."""

    reason = "self_call"

    def __init__(self, destination: str) -> None:
        super().__init__(
            f"a connection to {destination} was refused: that port is the proxy's own, and serving "
            "it would make the proxy call itself; dial the app's port instead"
        )


class DestinationUnknown(ConnectionFailed):
    """The app dialed an address that the proxy was not told of, and may not go there."""

    reason = "destination_unknown"

    def __init__(self, destination: str) -> None:
        super().__init__(
            f"the app dialed {destination}, which is not known here, and the outbound policy is "
            "REGISTRY_ONLY: make it known, or set ALLOW_ANY"
        )


class ProxyHeaderMissing(ConnectionFailed):
    """A load balancer's connection did not begin with a PROXY header of version 2."""

    reason = "proxy_header_missing"

    def __init__(self, balancer: str) -> None:
        super().__init__(
            f"load balancer {balancer} sent no PROXY header of version 2: switch it on there, or "
            "take the balancer off --trust-proxy-protocol"
        )


# Before the handshake: what the first bytes told.


def by(policy: str) -> str:
    """Name the PeerAuthentication that set a mode; none where a flag did, or the default."""
    return f" by PeerAuthentication {policy}" if policy else ""


class PlaintextOnStrict(ConnectionFailed):
    """Plaintext came to a port that takes only mutual TLS."""

    reason = "plaintext_on_strict"

    def __init__(self, peer: str, port: int, decided_by: str = "") -> None:
        super().__init__(
            f"peer {peer} spoke plaintext to port {port}, which is STRICT{by(decided_by)}: "
            "give it a sidecar, or set the port to PERMISSIVE"
        )
        self._decided_by = decided_by

    @property
    def facts(self) -> Mapping[str, str | int]:
        """Name the PeerAuthentication, if it was one."""
        return {"policy": self._decided_by} if self._decided_by else {}


class DetectionTimeout(ConnectionFailed):
    """A client of a STRICT port did not begin TLS in time."""

    reason = "detection_timeout"

    def __init__(self, peer: str, port: int, seconds: float, decided_by: str = "") -> None:
        super().__init__(
            f"peer {peer} did not begin TLS within {seconds:g} s on port {port}, "
            f"which is STRICT{by(decided_by)}: "
            "a protocol in which the server speaks first needs a sidecar on the client's side, "
            "or mode DISABLE on this port"
        )


class ClientHelloTooLarge(ConnectionFailed):
    """The first TLS message exceeds what the proxy is willing to look through."""

    reason = "client_hello_too_large"

    def __init__(self, peer: str, limit: int) -> None:
        super().__init__(
            f"peer {peer} sent a TLS ClientHello of more than {limit} bytes: "
            "no mesh client does, so the connection was refused"
        )


class PeerClosed(ConnectionFailed):
    """The peer went away before TLS was up."""

    reason = "peer_closed"

    def __init__(self, peer: str) -> None:
        super().__init__(
            f"peer {peer} closed the connection before TLS was up: a health check, a port scan, "
            "or a proxy that refused us; its log may say more"
        )


# The handshake.


class HandshakeFailed(ConnectionFailed):
    """TLS was begun and did not succeed; the leaves say why."""

    reason = "tls_error"
    advice: ClassVar[str] = ""
    """What to do next, where the sentence from the TLS layer leaves it open."""


class HandshakeTimeout(HandshakeFailed):
    """The peer began or accepted a connection and then did not finish the TLS handshake."""

    reason = "handshake_timeout"

    def __init__(self, peer: str, seconds: float) -> None:
        super().__init__(
            f"peer {peer} did not complete the TLS handshake within {seconds:g} s: "
            "it is overloaded, or does not speak TLS"
        )


class PlaintextPeer(HandshakeFailed):
    """Our TLS was answered with plaintext (OpenSSL: "wrong version number")."""

    reason = "peer_spoke_plaintext"
    advice = "give the server a sidecar, or mark the destination @plaintext"


class PeerWithoutCertificate(HandshakeFailed):
    """A TLS client showed no certificate: it is no member of the mesh."""

    reason = "peer_without_certificate"
    advice = "give the client a sidecar; its own TLS passes only a PERMISSIVE or DISABLE port"


class UntrustedPeer(HandshakeFailed):
    """The peer's certificate was signed by someone we do not trust for its trust domain."""

    reason = "peer_not_trusted"


class RevokedPeer(HandshakeFailed):
    """The peer's certificate, or one above it, was revoked."""

    reason = "peer_revoked"


class ExpiredPeer(HandshakeFailed):
    """The peer's certificate, or one above it, has expired."""

    reason = "peer_expired"


class NotYetValidPeer(HandshakeFailed):
    """The peer's certificate is from the future, so one of the clocks is wrong."""

    reason = "peer_not_yet_valid"


class InvalidPeer(HandshakeFailed):
    """The peer's certificate is not an X.509-SVID."""

    reason = "peer_invalid_svid"
    advice = "a mesh workload gets its certificate from the agent"


class NoCommonTls(HandshakeFailed):
    """No TLS version or cipher suite in common."""

    reason = "tls_no_common_version"
    advice = "TLS 1.2 with AEAD suites, or TLS 1.3, is needed"


class RefusedByPeer(HandshakeFailed):
    """The peer sent an alert; with TLS 1.3 a refused client learns of it at its first read."""

    reason = "refused_by_peer"


class WrongTrustDomain(HandshakeFailed, PeerRejected):
    """A good certificate of a trust domain that may not call here."""

    reason = "wrong_trust_domain"


class WrongIdentity(HandshakeFailed, PeerRejected):
    """Secure naming: the server proved an identity, but not one that the service runs as."""

    reason = "wrong_identity"


# Connecting.


class ConnectFailed(ConnectionFailed):
    """Nobody answers at the address that the connection is for."""

    reason = "connect_failed"


class ConnectTimeout(ConnectionFailed):
    """The address that the connection is for did not answer in time."""

    reason = "connect_timeout"

    def __init__(self, what: str, seconds: float, hint: str) -> None:
        super().__init__(f"{what} did not answer within {seconds:g} s: {hint}")


# After the handshake.


class RelayBroken(ConnectionFailed):
    """An established connection ended otherwise than by both sides saying that they are done."""

    reason = "relay_broken"


class PeerRevokedMeanwhile(RelayBroken):
    """The peer's certificate was revoked while the connection was open, which ended it."""

    reason = "peer_revoked_meanwhile"

    def __init__(self, peer: str, cause: PeerRevoked) -> None:
        super().__init__(f"closed the connection with peer {peer}: {cause}")


class AppReset(RelayBroken):
    """The app's side of the connection was reset."""

    reason = "app_reset"


class PeerReset(RelayBroken):
    """The network's side of the connection was reset."""

    reason = "peer_reset"


class PeerTruncated(RelayBroken):
    """The peer's TLS ended without close_notify, so the app must not take it for an end."""

    reason = "tls_truncated"


class TlsBroken(RelayBroken):
    """The peer violated TLS, or somebody between us and it changed bytes."""

    reason = "tls_error"


class IdleTimeout(RelayBroken):
    """No byte went either way for too long."""

    reason = "idle_timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"no byte went either way for {seconds:g} s, so both sides were reset: "
            "let the app send keepalives if it needs longer pauses"
        )


class TooOld(RelayBroken):
    """The connection reached the greatest age that connections may have."""

    reason = "max_connection_age"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the connection was {seconds:g} s old, the most that is allowed, so both sides were "
            "reset: the app may connect again, with the newest certificates and policy"
        )


_LEAVES: dict[type[RemoraError], type[HandshakeFailed]] = {
    TlsPeerPlaintext: PlaintextPeer,
    TlsPeerWithoutCertificate: PeerWithoutCertificate,
    TlsNoCommonGround: NoCommonTls,
    TlsAlert: RefusedByPeer,
    PeerNotTrusted: UntrustedPeer,
    PeerExpired: ExpiredPeer,
    PeerRevoked: RevokedPeer,
    PeerNotYetValid: NotYetValidPeer,
    PeerInvalid: InvalidPeer,
}


def handshake_failure(
    error: TlsError | PeerRejected, peer: str, *, roots: str = ""
) -> ConnectionFailed:
    """Say of an error from `mesh.tls` whom it happened with, and what to do.

    `roots` describes our trust bundle, for the reader who must find out whose roots are wrong.
    """
    if isinstance(error, ConnectionFailed):
        return error
    if isinstance(error, TlsClosed | TlsTruncated):
        return PeerClosed(peer)
    kinds = (leaf for kind, leaf in _LEAVES.items() if isinstance(error, kind))
    leaf = next(kinds, HandshakeFailed)
    sentence = f"peer {peer}: {error}"
    if leaf is UntrustedPeer and roots:
        sentence += f"; we trust {roots}"
    return leaf(f"{sentence}; {leaf.advice}" if leaf.advice else sentence)


def peer_broken(cause: BaseException | None, peer: str) -> ConnectionFailed:
    """Say what broke an established connection on the network's side, by the stream's cause."""
    match cause:
        case TlsAlert() as alert:
            return RefusedByPeer(f"peer {peer}: {alert}")
        case TlsTruncated():
            return PeerTruncated(
                f"peer {peer} ended the connection without TLS's close_notify, "
                "so data may be missing: the app's side was reset"
            )
        case TlsError() as fault:
            return TlsBroken(f"peer {peer} violated TLS after the handshake: {fault}")
        case _:
            return PeerReset(f"peer {peer} reset the connection; the app's side was reset too")


def app_broken(app: str) -> ConnectionFailed:
    """Say that the app's side of an established connection was reset."""
    return AppReset(f"the app at {app} reset the connection; the peer's side was reset too")
