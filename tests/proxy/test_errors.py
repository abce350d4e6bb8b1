"""Every reason a connection may fail for, and the sentence that goes with it."""

from __future__ import annotations

import pytest

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
from mesh.verify import PeerExpired, PeerInvalid, PeerNotTrusted, PeerNotYetValid, PeerRejected
from proxy.errors import (
    ClientHelloTooLarge,
    ConnectionFailed,
    DetectionTimeout,
    HandshakeFailed,
    HandshakeTimeout,
    IdleTimeout,
    NoIdentityYet,
    PeerClosed,
    PlaintextOnStrict,
    ProxyStopped,
    WrongIdentity,
    app_broken,
    handshake_failure,
    peer_broken,
)

PEER = "10.0.0.5:4242"


def leaves(base: type[ConnectionFailed]) -> list[type[ConnectionFailed]]:
    found = [base]
    for child in base.__subclasses__():
        found += leaves(child)
    return found


def test_every_error_has_a_reason_of_its_own_in_snake_case() -> None:
    reasons = [leaf.reason for leaf in leaves(ConnectionFailed)]
    assert all(reason.isidentifier() and reason == reason.lower() for reason in reasons)
    # tls_error is one fact, before the handshake's end or after it.
    assert sorted(reasons) == sorted([*set(reasons), "tls_error"])


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (
            PlaintextOnStrict(PEER, 8080),
            "plaintext_on_strict",
            "port 8080, which is STRICT: give it a sidecar, or set the port to PERMISSIVE",
        ),
        (DetectionTimeout(PEER, 3306, 5.0), "detection_timeout", "within 5 s on port 3306"),
        (ClientHelloTooLarge(PEER, 16384), "client_hello_too_large", "more than 16384 bytes"),
        (PeerClosed(PEER), "peer_closed", "before TLS was up"),
        (HandshakeTimeout(PEER, 10.0), "handshake_timeout", "within 10 s"),
        (IdleTimeout(3600.0), "idle_timeout", "for 3600 s"),
        (ProxyStopped(), "proxy_stopped", "both sides were reset"),
        (NoIdentityYet(), "no_identity_yet", "see whether the agent runs"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_the_sentence_says_who_did_what(error: ConnectionFailed, reason: str, words: str) -> None:
    assert error.reason == reason
    assert words in str(error)


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (TlsPeerPlaintext("plaintext came"), "peer_spoke_plaintext", "give the server a sidecar"),
        (TlsPeerWithoutCertificate("no cert"), "peer_without_certificate", "give the client a"),
        (TlsNoCommonGround("no version"), "tls_no_common_version", "TLS 1.3"),
        (TlsAlert("unknown ca", "unknown ca"), "refused_by_peer", "unknown ca"),
        (TlsClosed("gone"), "peer_closed", "closed the connection"),
        (TlsTruncated("cut"), "peer_closed", "closed the connection"),
        (TlsError("strange"), "tls_error", "strange"),
        (PeerNotTrusted("signed by evil"), "peer_not_trusted", "signed by evil; we trust O=root"),
        (PeerExpired("expired 3 h ago"), "peer_expired", "expired 3 h ago"),
        (PeerNotYetValid("valid in 5 min"), "peer_not_yet_valid", "valid in 5 min"),
        (PeerInvalid("two URIs"), "peer_invalid_svid", "from the agent"),
        (PeerRejected("no"), "tls_error", "no"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, RemoraError) else "",
)
def test_handshake_errors_get_the_peer_and_advice(
    error: TlsError | PeerRejected, reason: str, words: str
) -> None:
    failure = handshake_failure(error, PEER, roots="O=root")
    assert failure.reason == reason
    assert words in str(failure)
    assert f"peer {PEER}" in str(failure)


def test_roots_are_told_only_where_trust_is_the_question() -> None:
    assert "O=root" not in str(handshake_failure(PeerExpired("old"), PEER, roots="O=root"))
    assert "we trust" not in str(handshake_failure(PeerNotTrusted("evil"), PEER))


def test_our_own_refusals_pass_unchanged() -> None:
    refusal = WrongIdentity("expected X, got Y")
    assert handshake_failure(refusal, PEER) is refusal
    assert isinstance(refusal, HandshakeFailed)


@pytest.mark.parametrize(
    ("cause", "reason", "words"),
    [
        (TlsAlert("certificate required: none", "certificate required"), "refused_by_peer", "none"),
        (TlsTruncated("cut"), "tls_truncated", "without TLS's close_notify"),
        (TlsError("bad record mac"), "tls_error", "bad record mac"),
        (ConnectionResetError(104, "reset"), "peer_reset", "reset the connection"),
        (None, "peer_reset", "reset the connection"),
    ],
)
def test_what_breaks_an_established_connection_is_told_apart(
    cause: BaseException | None, reason: str, words: str
) -> None:
    failure = peer_broken(cause, PEER)
    assert failure.reason == reason
    assert words in str(failure)
    assert PEER in str(failure)


def test_a_reset_by_the_app_names_the_app() -> None:
    failure = app_broken("127.0.0.1:8080")
    assert failure.reason == "app_reset"
    assert "the app at 127.0.0.1:8080" in str(failure)
