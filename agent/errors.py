"""What can go wrong in the agent, each leaf one fact.

Nothing here ends the agent: a certificate that cannot be had now is asked for again later, and a
caller that is refused is one connection.
"""

from __future__ import annotations

from typing import ClassVar

from mesh.errors import RemoraError
from mesh.grpc import Status


class AgentError(RemoraError):
    """The agent could not do something."""

    reason: ClassVar[str] = "agent_error"


class RequestFailed(AgentError):
    """No certificate came of a request to the CA; the next attempt may have better luck."""

    reason: ClassVar[str] = "request_failed"


class RequestCrashed(RequestFailed):
    """The request failed in a way that nobody foresaw; the traceback is in the log."""

    reason = "internal_error"


class TokenMissing(RequestFailed):
    """There is no token, and without it the agent does not know whose certificate to ask for."""

    reason = "token_missing"


class TokenUnusable(RequestFailed):
    """The token file cannot be read, or what it holds is not a service-account token."""

    reason = "token_unusable"


class CaRootsUnusable(RequestFailed):
    """The file with the CA's roots cannot be read any more."""

    reason = "ca_roots_unusable"


class CaUnreachable(RequestFailed):
    """No connection to the CA came about."""

    reason = "ca_unreachable"


class CaNotTrusted(RequestFailed):
    """Who answers at the CA's address did not prove to be the CA."""

    reason = "ca_not_trusted"


class TokenRejected(RequestFailed):
    """The CA does not accept the token (UNAUTHENTICATED)."""

    reason = "token_rejected"


class CaRefused(RequestFailed):
    """The CA answered with a refusal that asking again at once cannot change."""

    reason: ClassVar[str] = "ca_refused"


class CaLacksMethod(CaRefused):
    """The CA does not have what was asked for (UNIMPLEMENTED): Istio's knows certificates only."""

    reason = "ca_lacks_method"


class CaFailing(RequestFailed):
    """The CA, or the way to it, failed in a manner that often passes by itself."""

    reason = "ca_failing"


class AnswerRefused(RequestFailed):
    """The CA issued something else than what was asked for; it is thrown away."""

    reason: ClassVar[str] = "answer_refused"


class AnswerIncomplete(AnswerRefused):
    """The answer lacks the certificate or the roots."""

    reason = "answer_incomplete"


class AnswerUnreadable(AnswerRefused):
    """The answer is not made of certificates that an SVID can have."""

    reason = "answer_unreadable"


class AnswerForeignKey(AnswerRefused):
    """The certificate is for another key than the one of the request."""

    reason = "answer_foreign_key"


class AnswerForeignIdentity(AnswerRefused):
    """The certificate names somebody else."""

    reason = "answer_foreign_identity"


class AnswerExpired(AnswerRefused):
    """The certificate is already past its end."""

    reason = "answer_expired"


class AnswerNotYetValid(AnswerRefused):
    """The certificate begins in the future."""

    reason = "answer_not_yet_valid"


class AnswerUntrusted(AnswerRefused):
    """The certificate does not lead to the roots that came with it."""

    reason = "answer_untrusted"


class MountedUnusable(AgentError):
    """The certificate files that somebody else provides cannot be used."""

    reason = "certificate_files_unusable"


class JwtUnavailable(AgentError):
    """No JWT-SVID can be had now; `status` is what the caller is told."""

    reason = "jwt_unavailable"

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class CallerRefused(AgentError):
    """A process on this machine may not have the agent's secrets."""

    reason = "caller_refused"


class AttestationFailed(AgentError):
    """It cannot be told which process calls: it is gone, or has become another."""

    reason = "attestation_failed"


class NoIdentity(AgentError):
    """No registration entry is for this caller."""

    reason = "no_identity_issued"


class BadSubscription(AgentError):
    """A secret stream asks for something that the agent does not serve."""

    reason = "bad_subscription"
