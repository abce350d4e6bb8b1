"""What the CA refuses, and why. Each leaf is one fact; `fault` is Istio's word for its kind."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import ClassVar

from mesh.errors import ConfigError, RemoraError


class CaError(RemoraError):
    """The CA refused something."""

    reason: ClassVar[str] = "ca_error"


class PluggedInCaUnusable(ConfigError, CaError):
    """The CA that was plugged in does not pass its checks."""

    reason: ClassVar[str] = "plugged_in_ca_unusable"


class RootsChangedAtOnce(ConfigError, CaError):
    """The roots were replaced in a way that would cut workloads off from each other."""

    reason: ClassVar[str] = "roots_changed_at_once"


class RotationRefused(CaError):
    """This step of a root rotation is not the next one."""

    reason: ClassVar[str] = "rotation_refused"


class RotationTooEarly(CaError):
    """The next step of a root rotation would cut workloads off from each other."""

    reason: ClassVar[str] = "rotation_too_early"


class NothingToRevoke(CaError):
    """What is to be revoked, or restored, is not there."""

    reason: ClassVar[str] = "nothing_to_revoke"


class Fault(enum.StrEnum):
    """Istio: who is to blame when a certificate is not signed (security/pkg/pki/error)."""

    CSR = "CSR_ERROR"
    TTL = "TTL_ERROR"
    NOT_READY = "CA_NOT_READY"
    GENERATION = "CERT_GEN_ERROR"


class SigningError(CaError):
    """No certificate was issued, though the caller is known."""

    reason: ClassVar[str] = "signing_error"
    fault: ClassVar[Fault] = Fault.GENERATION


class CsrTooLarge(SigningError):
    """The signing request is larger than any honest one."""

    reason = "csr_too_large"
    fault = Fault.CSR


class CsrUnreadable(SigningError):
    """The signing request is not PEM, or not a PKCS#10 request inside."""

    reason = "csr_unreadable"
    fault = Fault.CSR


class CsrSignatureInvalid(SigningError):
    """The request is not signed by the key it asks a certificate for."""

    reason = "csr_signature_invalid"
    fault = Fault.CSR


class CsrKeyRefused(SigningError):
    """The request's key is of a kind or size that must not get a certificate."""

    reason = "csr_key_refused"
    fault = Fault.CSR


class TtlTooLong(SigningError):
    """A longer life was asked for than this CA gives."""

    reason = "ttl_too_long"
    fault = Fault.TTL


class SignerNotValid(SigningError):
    """The CA's own certificate has expired or has not begun."""

    reason = "signer_not_valid"


class IdentityRefused(SigningError):
    """The CA must not issue a certificate for this identity, whoever asks."""

    reason = "identity_refused"


class IdentityRevoked(SigningError):
    """An operator revoked the identity: it gets no certificate any more."""

    reason = "identity_revoked"


class CertificateUnsound(SigningError):
    """A certificate failed the CA's own check and must not be used or leave."""

    reason = "certificate_unsound"


class AuditFailed(SigningError):
    """The audit log cannot be written, so nothing may be issued."""

    reason = "audit_failed"
    fault = Fault.NOT_READY


class LedgerFailed(SigningError):
    """The record of issued certificates cannot be written, so nothing may be issued."""

    reason = "ledger_failed"
    fault = Fault.NOT_READY


class JoinTokenStuck(SigningError):
    """A join token cannot be used up, so nothing may be issued for it."""

    reason = "join_token_stuck"
    fault = Fault.NOT_READY


class RateLimited(CaError):
    """Certificates are asked for more often than is allowed."""

    reason = "rate_limited"


class AuthenticationError(CaError):
    """One way of proving who calls did not work."""

    reason: ClassVar[str] = "authentication_error"


class NoCredential(AuthenticationError):
    """The caller showed nothing that this authenticator looks at."""

    reason = "no_credential"


class TokenMalformed(AuthenticationError):
    """The token is not a signed JWT, or its claims are not a JSON object."""

    reason = "token_malformed"


class TokenAlgorithmRefused(AuthenticationError):
    """The token names a signature algorithm that is never accepted."""

    reason = "token_algorithm_refused"


class TokenKeyUnknown(AuthenticationError):
    """The token was signed with a key we do not have."""

    reason = "token_key_unknown"


class TokenSignatureInvalid(AuthenticationError):
    """The token's signature is wrong: it was changed, or signed by somebody else."""

    reason = "token_signature_invalid"


class TokenClaimInvalid(AuthenticationError):
    """A claim is missing, or has the wrong type or value."""

    reason = "token_claim_invalid"


class TokenExpired(AuthenticationError):
    """The token's `exp` has come."""

    reason = "token_expired"


class TokenNotYetValid(AuthenticationError):
    """The token's `nbf` is still to come."""

    reason = "token_not_yet_valid"


class TokenWrongAudience(AuthenticationError):
    """The token is meant for somebody else."""

    reason = "token_wrong_audience"


class TokenWrongIssuer(AuthenticationError):
    """The token names another issuer than the one whose keys we hold."""

    reason = "token_wrong_issuer"


class TokenWrongSubject(AuthenticationError):
    """The token's subject is not exactly one service account."""

    reason = "token_wrong_subject"


class KeysUnavailable(AuthenticationError):
    """The issuer's keys cannot be fetched, so no token of its can be checked."""

    reason = "token_keys_unavailable"


class JoinTokenUsed(AuthenticationError):
    """The join token was used before, or this CA never made it."""

    reason = "join_token_used"


class CertificateExpired(AuthenticationError):
    """The client certificate ended while its connection was open."""

    reason = "client_certificate_expired"


class CertificateForeign(AuthenticationError):
    """The client certificate names no workload of this CA's trust domain."""

    reason = "client_certificate_foreign"


class CertificateRevoked(AuthenticationError):
    """The client certificate was revoked."""

    reason = "client_certificate_revoked"


class CallerUnknown(CaError):
    """No authenticator recognised the caller; `failures` says why, authenticator by authenticator.

    For the log only: the caller is told nothing.
    """

    reason = "caller_unknown"

    def __init__(self, failures: Sequence[tuple[str, AuthenticationError]]) -> None:
        self.failures = tuple(failures)
        super().__init__("; ".join(f"{name}: {error}" for name, error in self.failures))


class StatusRefused(CaError):
    """A process of another user asked on the admin socket."""

    reason = "status_refused"
