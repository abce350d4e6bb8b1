"""What went wrong in a TLS session, in words instead of OpenSSL's reason strings."""

from __future__ import annotations

from typing import ClassVar, cast

from OpenSSL import SSL

from mesh.errors import RemoraError


class TlsError(RemoraError):
    """A TLS session failed for a reason other than the peer's identity."""

    reason: ClassVar[str] = "tls_error"


class TlsClosed(TlsError):
    """The peer went away before the handshake was complete."""

    reason = "peer_closed"


class TlsTruncated(TlsError):
    """The connection ended without close_notify, so data may be missing at its end."""

    reason = "tls_truncated"


class TlsPeerPlaintext(TlsError):
    """The peer answered TLS with something that is not TLS."""

    reason = "peer_spoke_plaintext"


class TlsPeerWithoutCertificate(TlsError):
    """The client showed no certificate where one is required."""

    reason = "peer_without_certificate"


class TlsNoCommonGround(TlsError):
    """The two sides share no protocol version or cipher suite."""

    reason = "tls_no_common_version"


class TlsAlert(TlsError):
    """The peer refused us with an alert; `alert` is its name in RFC 8446, section 6."""

    reason = "refused_by_peer"

    def __init__(self, message: str, alert: str) -> None:
        super().__init__(message)
        self.alert = alert


_NOT_TLS = frozenset({"http request", "https proxy request", "wrong version number"})
"""What OpenSSL says of bytes that are no TLS record: HTTP, HTTP CONNECT, and all the rest."""

_NO_COMMON_GROUND = frozenset(
    {
        "unsupported protocol",
        "no shared cipher",
        "no protocols available",
        "version too low",
        "wrong ssl version",
        "no suitable key share",
    }
)

_ALERTS = {
    "certificate required": "it demands a client certificate and got none",
    "bad certificate": "it found our certificate bad or not yet valid; check its clock and ours",
    "certificate expired": "it found our certificate expired; check its clock and our renewal",
    "certificate revoked": "our certificate was revoked",
    "certificate unknown": "it does not accept the identity in our certificate",
    "unknown ca": "it does not trust the root that signed our certificate",
    "protocol version": "it does not speak TLS 1.2 or 1.3",
    "handshake failure": "it shares no cipher suite with us, or wants another certificate",
    "unrecognized name": "it does not serve the name we asked for",
    "no application protocol": "it does not speak the protocol we offered by ALPN",
    "access denied": "it denied access to our identity",
    "internal error": "it failed, or its policy does not accept our identity; see its log",
}


def from_openssl(error: SSL.Error) -> TlsError:
    """Name the failure behind an OpenSSL error, by reason string (they vary between versions)."""
    if isinstance(error, SSL.SysCallError):
        return TlsTruncated("the connection ended without TLS's close_notify")
    if isinstance(error, SSL.ZeroReturnError):
        return TlsClosed("the peer closed the connection during the handshake")
    reasons = _reasons(error)
    for reason in reasons:
        found = _known(reason)
        if found is not None:
            return found
    return TlsError(f"TLS failed: {', '.join(reasons) or 'OpenSSL gave no reason'}")


def _reasons(error: SSL.Error) -> list[str]:
    """Take the reasons from pyOpenSSL's list of (library, function, reason)."""
    if not error.args or not isinstance(error.args[0], list):
        return [str(error)]
    queue = cast("list[tuple[str, str, str]]", error.args[0])
    return [reason.lower() for _, _, reason in queue]


def _known(reason: str) -> TlsError | None:
    _, found, alert = reason.partition("alert ")
    if found:
        meaning = _ALERTS.get(alert, "no more is known")
        return TlsAlert(f"the peer refused us with the TLS alert {alert!r}: {meaning}", alert)
    if reason in _NOT_TLS:
        return TlsPeerPlaintext("the peer answered in plaintext where TLS was due")
    if reason in _NO_COMMON_GROUND:
        return TlsNoCommonGround(
            f"no TLS version or cipher suite in common with the peer: {reason}"
        )
    if reason == "peer did not return a certificate":
        return TlsPeerWithoutCertificate("the peer showed no certificate, and one is required")
    if "unexpected eof" in reason:
        return TlsTruncated("the connection ended without TLS's close_notify")
    return None
