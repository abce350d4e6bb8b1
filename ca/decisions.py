"""What the CA decided, told to everyone who must know: the log, the audit log, the metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from ca.audit import AuditLog, Value
from ca.authenticate import Caller
from ca.authority import Issued
from ca.errors import AuditFailed, CaError, CallerUnknown, Fault, IdentityRefused, SigningError
from ca.issued_log import IssuedLog
from ca.ledger import IssuedRecord, anchor_id
from ca.metrics import CaMetrics
from mesh.log import get_logger

_log = get_logger("ca")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """Records decisions. Without an audit log or a ledger there is none, as in tests."""

    metrics: CaMetrics = field(default_factory=CaMetrics)
    audit: AuditLog | None = None
    ledger: IssuedLog | None = None

    def asked(self) -> None:
        """Count a signing request that came in."""
        self.metrics.count("citadel_server_csr_count")

    def issued(
        self, issued: Issued, caller: Caller, peer: str, now: datetime, replaces: int | None = None
    ) -> None:
        """Record a certificate that is about to leave, in place of the one numbered `replaces`.

        Raises AuditFailed, LedgerFailed: then it must not leave.
        """
        certificate = issued.certificate
        facts: dict[str, Value] = {
            "identity": str(issued.identity),
            "authenticator": caller.authenticator,
            "serial": f"{certificate.serial_number:x}",
            "not_before": certificate.not_valid_before_utc.isoformat(),
            "not_after": certificate.not_valid_after_utc.isoformat(),
            "peer": peer,
        }
        if self.ledger is not None:
            self.ledger.add(_record(issued, replaces, now))
        if self.audit is not None:
            self.audit.record("issued", now, **facts)
        self.metrics.count("citadel_server_success_cert_issuance_count")
        _log.info("certificate issued", **facts)

    def not_authenticated(self, error: CallerUnknown, peer: str, now: datetime) -> None:
        """Record that nobody recognised the caller."""
        self.metrics.count("citadel_server_authentication_failure_count")
        why = {name: f"{failure.reason}: {failure}" for name, failure in error.failures}
        self._refused("caller refused", now, reason=error.reason, why=why, peer=peer)

    def impersonation(self, asked_for: str, caller: Caller, peer: str, now: datetime) -> None:
        """Record that a known caller asked for a certificate of somebody else."""
        self._refused(
            "impersonation refused",
            now,
            identity=str(caller.identity),
            authenticator=caller.authenticator,
            reason="impersonation_refused",
            asked_for=asked_for[:200],
            peer=peer,
        )

    def refused(self, error: CaError, caller: Caller, peer: str, now: datetime) -> None:
        """Record that a known caller gets no certificate."""
        if isinstance(error, SigningError):
            self._count_fault(error)
        self._refused(
            "certificate refused",
            now,
            identity=str(caller.identity),
            authenticator=caller.authenticator,
            reason=error.reason,
            why=str(error),
            peer=peer,
        )

    def limited(self, error: CaError, caller: Caller, peer: str, now: datetime) -> None:
        """Record that a known caller came too often."""
        self.metrics.count("remora_ca_rate_limited_count")
        self.refused(error, caller, peer, now)

    def _count_fault(self, error: SigningError) -> None:
        self.metrics.count_fault(error.fault)
        if error.fault is Fault.CSR:
            self.metrics.count("citadel_server_csr_parsing_err_count")
        if isinstance(error, IdentityRefused):
            self.metrics.count("citadel_server_id_extraction_err_count")

    def _refused(self, event: str, now: datetime, **facts: Value) -> None:
        _log.warning(event, **facts)
        if self.audit is None:
            return
        try:
            self.audit.record(event.replace(" ", "_"), now, **facts)
        except AuditFailed as error:
            _log.error("audit line lost", reason=error.reason, why=str(error))


def _record(issued: Issued, replaces: int | None, now: datetime) -> IssuedRecord:
    return IssuedRecord(
        serial=issued.certificate.serial_number,
        identity=str(issued.identity),
        issued_at=now,
        not_after=issued.certificate.not_valid_after_utc,
        signer=anchor_id(issued.signer),
        roots=frozenset(anchor_id(root) for root in issued.roots.authorities),
        replaces=replaces,
    )
