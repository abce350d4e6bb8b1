"""The signer: takes a caller that is known and a request that is not, gives a certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509

from ca.authenticate import Caller
from ca.csr import WorkloadPublicKey, parse_csr
from ca.errors import IdentityRefused, IdentityRevoked, TtlTooLong
from ca.revocations import Revocations
from ca.selfcheck import check_issued
from ca.template import LeafNames, Signer, leaf_certificate, leaf_validity
from mesh.bundle import TrustBundle
from mesh.duration import format_duration
from mesh.revocation import lists_pem
from mesh.spiffe import SpiffeId
from mesh.svid import certificates_pem


@dataclass(frozen=True, slots=True, kw_only=True)
class TtlLimits:
    """How long workload certificates live: `default` if nothing is asked, `maximum` at most."""

    default: timedelta
    maximum: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate and what leads from it to the roots.

    `elements` is the answer in Istio's order: leaf, each intermediate, all roots in one text.
    """

    identity: SpiffeId
    certificate: x509.Certificate
    elements: tuple[str, ...]
    signer: x509.Certificate
    roots: TrustBundle

    def elements_with_revoked(self) -> tuple[str, ...]:
        """Return the elements with the revocation lists after the roots, in the last one.

        Not for everybody: ztunnel refuses an element that holds anything but certificates.
        """
        lists = lists_pem(self.roots.revoked).decode("ascii")
        return (*self.elements[:-1], self.elements[-1] + lists)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """One trust domain's CA: its signing key, its certificates, its limits.

    `intermediates` lead from the leaf to `roots`, the signer's own certificate first; there are
    none when the signer is itself a root. `former` signed before, and its root is still trusted:
    while that is so it goes on signing the CA's own certificate, for agents that were given the
    old root as a file and cannot know a new one before they have reached us. `generation` names the
    files that all this was read from.
    """

    signer: Signer
    roots: TrustBundle
    limits: TtlLimits
    intermediates: tuple[x509.Certificate, ...] = ()
    former: Signer | None = None
    revocations: Revocations = field(default_factory=Revocations)
    generation: str = ""

    def sign(self, caller: Caller, untrusted_csr: bytes, ttl_seconds: int, now: datetime) -> Issued:
        """Issue a certificate for `caller` with the key of a PEM request.

        `ttl_seconds` of zero or less means the default life. Raises SigningError leaves.
        """
        request = parse_csr(untrusted_csr)
        ttl = self._ttl(ttl_seconds)
        names = LeafNames(identity=caller.identity, common_name=request.wants_common_name)
        return self._issue(names, request.public_key, ttl, now, self.signer)

    def issue_own(
        self,
        identity: SpiffeId,
        others: Sequence[x509.GeneralName],
        public_key: WorkloadPublicKey,
        now: datetime,
    ) -> Issued:
        """Issue the control plane's own serving certificate, with its DNS names and addresses."""
        names = LeafNames(identity=identity, others=others)
        signer = self.former or self.signer
        return self._issue(names, public_key, self.limits.default, now, signer)

    def _ttl(self, seconds: int) -> timedelta:
        if seconds <= 0:
            return self.limits.default
        # Compared as integers: the request's int64 may be larger than any timedelta.
        maximum = int(self.limits.maximum.total_seconds())
        if seconds > maximum:
            raise TtlTooLong(
                f"a life of {seconds} s was asked for, and this CA gives at most {maximum} s "
                f"({format_duration(self.limits.maximum)}): ask for less, or start the CA with a "
                "larger --max-workload-cert-ttl"
            )
        return timedelta(seconds=seconds)

    def _issue(
        self,
        names: LeafNames,
        public_key: WorkloadPublicKey,
        ttl: timedelta,
        now: datetime,
        signer: Signer,
    ) -> Issued:
        self._check_identity(names.identity)
        validity = leaf_validity(now, ttl, [signer.certificate, *self.intermediates])
        leaf = leaf_certificate(names, public_key, validity, signer)
        check_issued(
            leaf,
            expected=names.identity,
            public_key=public_key,
            signer=signer.certificate,
            now=now,
        )
        return Issued(
            identity=names.identity,
            certificate=leaf,
            elements=self._elements(leaf),
            signer=signer.certificate,
            roots=self.roots,
        )

    def _check_identity(self, identity: SpiffeId) -> None:
        """Refuse what no authenticator should have let through."""
        if not identity.member_of(self.roots.trust_domain):
            raise IdentityRefused(
                f"{identity} is not of trust domain {self.roots.trust_domain}, for which this CA "
                "signs"
            )
        if not identity.path:
            raise IdentityRefused(f"{identity} names a trust domain, not a workload")
        if self.revocations.is_revoked(identity):
            raise IdentityRevoked(
                f"{identity} was revoked and gets no certificate, until "
                "`remora ca revoke --undo --identity` undoes that"
            )

    def _elements(self, leaf: x509.Certificate) -> tuple[str, ...]:
        singles = (leaf, *self.intermediates)
        return (
            *(certificates_pem([certificate]).decode("ascii") for certificate in singles),
            self.roots.pem().decode("ascii"),
        )
