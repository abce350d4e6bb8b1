"""How a TLS session judges its peer: in OpenSSL's verify callback, by the rules of SPIFFE.

Whatever a peer may send, nothing but a refusal comes of it. OpenSSL reads certificates that
`cryptography` does not; such a one is refused like any other bad certificate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import datetime

from cryptography import x509
from OpenSSL import crypto

from mesh.bundle import Bundles
from mesh.spiffe import SpiffeId
from mesh.svid import UNREADABLE, subject_text
from mesh.verify import (
    TIME_FAULTS,
    PeerInvalid,
    PeerNotTrusted,
    PeerRejected,
    bundle_for,
    check_not_revoked,
    peer_leaf_id,
    refusal_by_time,
    rejection,
)

PeerCheck = Callable[[SpiffeId], None]
"""Refuses a proven identity by raising PeerRejected: secure naming, accepted trust domains."""

Verify = Callable[[Sequence[x509.Certificate]], SpiffeId | None]
"""Judges a chain that OpenSSL has validated, leaf first and root last. Raises PeerRejected."""


MAX_PARSED = 1024
"""Certificates that are kept parsed, by their bytes: a mesh's peers come again and again, and
parsing one costs as much as a tenth of a handshake. About 3 MB if all are used."""


@functools.lru_cache(MAX_PARSED)
def _parsed(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


@functools.lru_cache(MAX_PARSED)
def _leaf_id(leaf: x509.Certificate) -> SpiffeId:
    """Return what a leaf says, which never changes; whether it counts is judged every time."""
    return peer_leaf_id(leaf)


class PeerJudge:
    """What OpenSSL's verify callback found out about one peer."""

    def __init__(self, verify: Verify, now: datetime, check_peer: PeerCheck | None) -> None:
        self._verify = verify
        self._now = now
        self._check_peer = check_peer
        self._seen: list[x509.Certificate] = []
        self.chain: tuple[x509.Certificate, ...] = ()
        self.identity: SpiffeId | None = None
        self.refusal: PeerRejected | None = None

    def certificate(self, certificate: crypto.X509, code: int, depth: int, *, ok: bool) -> bool:
        """Judge one step of the path, which OpenSSL walks from the root down to the leaf.

        OpenSSL compares validity with the system's clock; ours decides. A certificate it finds
        expired comes here twice if we disagree: as a fault, and then as the next step.
        """
        try:
            self._judge(certificate, code, depth, ok=ok)
        except PeerRejected as refusal:
            self.refusal = refusal
        except UNREADABLE as error:
            self.refusal = PeerInvalid(f"a certificate of the peer cannot be read: {error}")
        else:
            return True
        self.identity = None
        return False

    def _judge(self, certificate: crypto.X509, code: int, depth: int, *, ok: bool) -> None:
        current = _parsed(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate))
        if refusal := refusal_by_time(current, self._now):
            raise refusal
        if not ok:
            if code not in TIME_FAULTS:
                raise rejection(code, current)
            return
        self._seen.insert(0, current)
        if depth == 0:
            self.identity = self._verify(self._seen)
            if self._check_peer is not None and self.identity is not None:
                self._check_peer(self.identity)
            self.chain = tuple(self._seen)


def svid_verifier(bundles: Bundles) -> Verify:
    """Judge by SPIFFE ID: the root must be one of the leaf's own trust domain."""

    def verify(chain: Sequence[x509.Certificate]) -> SpiffeId:
        identity = _leaf_id(chain[0])
        # OpenSSL accepted any of the roots; only those of the leaf's own domain may count.
        bundle = bundle_for(identity, bundles)
        if chain[-1] not in bundle.authorities:
            issuer = subject_text(chain[-1])
            raise PeerNotTrusted(
                f"{identity} was signed under root {issuer!r}, which speaks for another trust "
                f"domain than {identity.trust_domain}"
            )
        check_not_revoked(chain, bundle)
        return identity

    return verify


def dns_verifier(name: str) -> Verify:
    """Judge by DNS name, for a server that is known by one; it proves no SPIFFE ID."""

    def verify(chain: Sequence[x509.Certificate]) -> None:
        names: list[str] = []
        try:
            extension = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)
            names = extension.value.get_values_for_type(x509.DNSName)
        except (x509.ExtensionNotFound, *UNREADABLE):
            pass
        if name.lower() not in [known.lower() for known in names]:
            raise PeerRejected(
                f"the server's certificate is for {', '.join(names) or 'no DNS name'}, not {name}: "
                "check the address, or the name that is expected of it"
            )

    return verify
