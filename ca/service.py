"""The CA's API: Istio's CreateCertificate."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from google.protobuf.struct_pb2 import Value

from ca.acting import may_act_for
from ca.authenticate import Authenticator, Caller, Presented, identify
from ca.authority import Authority
from ca.decisions import Decisions
from ca.errors import (
    AuthenticationError,
    CallerUnknown,
    Fault,
    IdentityRevoked,
    RateLimited,
    SigningError,
)
from ca.rate_limit import RateLimiter
from mesh.api import (
    CREATE_CERTIFICATE,
    IMPERSONATED_IDENTITY,
    REPLACED_SERIAL,
    TAKES_REVOCATION_LISTS,
)
from mesh.clock import Now
from mesh.grpc import GrpcError, ServerCall, Service, Status
from mesh.protos.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from mesh.spiffe import InvalidSpiffeId, ServiceAccount, SpiffeId

NOT_AUTHENTICATED = "request authenticate failure"
NOT_IMPERSONATED = "request impersonation authentication failure"
"""Istio's words, and nothing more: why is for the log."""

TOO_OFTEN = "too many requests"

REVOKED = "the identity was revoked"

_SERIAL = re.compile("[0-9a-fA-F]{1,40}")
"""RFC 5280, 4.1.2.2: a serial number has at most 20 octets."""

_STATUS = {
    Fault.CSR: Status.INVALID_ARGUMENT,
    Fault.TTL: Status.INVALID_ARGUMENT,
    Fault.NOT_READY: Status.INTERNAL,
    Fault.GENERATION: Status.INTERNAL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateService:
    """Answers CreateCertificate: who is it, may it be signed, here it is.

    Signing is done in the event loop: it takes well under a millisecond, and a thread could not
    run beside the loop while it lasts.
    """

    authority: Callable[[], Authority]
    authenticators: tuple[Authenticator, ...]
    now: Now
    trusted_nodes: frozenset[ServiceAccount] = frozenset()
    limiter: RateLimiter | None = None
    decisions: Decisions = field(default_factory=Decisions)

    def register(self, service: Service) -> None:
        """Add the method to a gRPC service."""
        service.unary(CREATE_CERTIFICATE, self.create_certificate)

    async def create_certificate(
        self, request: IstioCertificateRequest, call: ServerCall
    ) -> IstioCertificateResponse:
        """Issue a certificate for whoever calls. Raises GrpcError. Every decision is recorded."""
        self.decisions.asked()
        caller = await self.identify(call)
        caller = self._whom(request, caller, call)
        self._limit(caller, call)
        try:
            issued = self.authority().sign(
                caller, request.csr.encode(), request.validity_duration, self.now()
            )
            await self._spend(caller, call)
            replaces = _replaced_serial(request, caller, call)
            self.decisions.issued(issued, caller, call.peer.address, self.now(), replaces)
        except SigningError as error:
            self.decisions.refused(error, caller, call.peer.address, self.now())
            raise _signing_failure(error) from error
        if request.metadata.fields[TAKES_REVOCATION_LISTS].bool_value:
            return IstioCertificateResponse(cert_chain=issued.elements_with_revoked())
        return IstioCertificateResponse(cert_chain=issued.elements)

    async def identify(self, call: ServerCall) -> Caller:
        """Return who is calling. Raises GrpcError UNAUTHENTICATED, which tells nothing."""
        presented = Presented(
            authorization=call.metadata.get_all("authorization"),
            chain=() if call.peer.tls is None else call.peer.tls.peer_chain,
        )
        try:
            return await identify(self.authenticators, presented, self.now())
        except CallerUnknown as error:
            raise self._not_authenticated(error, call) from error

    async def identify_for_stream(self, call: ServerCall) -> Caller:
        """Return who is calling, by a proof that may be shown again and again.

        A join token is for one certificate, and would not be used up by a stream. Raises GrpcError.
        """
        caller = await self.identify(call)
        if caller.spend is not None:
            raise GrpcError(Status.UNAUTHENTICATED, NOT_AUTHENTICATED)
        return caller

    def _whom(self, request: IstioCertificateRequest, caller: Caller, call: ServerCall) -> Caller:
        """Return whom the certificate is for: another than the caller only for trusted nodes."""
        asked_for = _impersonated(request)
        if asked_for is None:
            return caller
        identity = _parse_id(asked_for)
        if (
            identity is None
            or caller.spend is not None
            or self.authority().revocations.is_revoked(caller.identity)
            or not may_act_for(caller.identity, identity, self.trusted_nodes)
        ):
            self.decisions.impersonation(asked_for, caller, call.peer.address, self.now())
            raise GrpcError(Status.UNAUTHENTICATED, NOT_IMPERSONATED)
        how = f"{caller.authenticator} of {caller.identity}"
        return Caller(identity=identity, authenticator=how)

    def _limit(self, caller: Caller, call: ServerCall) -> None:
        if self.limiter is None:
            return
        try:
            self.limiter.check(caller.identity, self.now())
        except RateLimited as error:
            self.decisions.limited(error, caller, call.peer.address, self.now())
            raise GrpcError(Status.RESOURCE_EXHAUSTED, TOO_OFTEN) from error

    async def _spend(self, caller: Caller, call: ServerCall) -> None:
        """Use up a credential that works once, now that there is something to give for it."""
        if caller.spend is None:
            return
        try:
            await caller.spend()
        except AuthenticationError as error:
            unknown = CallerUnknown([(caller.authenticator, error)])
            raise self._not_authenticated(unknown, call) from error

    def _not_authenticated(self, error: CallerUnknown, call: ServerCall) -> GrpcError:
        """Record why, authenticator by authenticator, and return what the caller may know."""
        self.decisions.not_authenticated(error, call.peer.address, self.now())
        return GrpcError(Status.UNAUTHENTICATED, NOT_AUTHENTICATED)


def _parse_id(text: str) -> SpiffeId | None:
    try:
        return SpiffeId.parse(text)
    except InvalidSpiffeId:
        return None


def _impersonated(request: IstioCertificateRequest) -> str | None:
    """Return whose certificate is asked for in that one's name, None if it is the caller's own."""
    fields = request.metadata.fields
    if IMPERSONATED_IDENTITY not in fields:
        return None
    value = fields[IMPERSONATED_IDENTITY]
    if value.WhichOneof("kind") in {None, "null_value"} or value == Value(string_value=""):
        return None
    return value.string_value


def _replaced_serial(
    request: IstioCertificateRequest, caller: Caller, call: ServerCall
) -> int | None:
    """Return the number of the certificate that the caller will stop to use, if it says so.

    Our agents name it; of others, whoever shows a certificate renews it. That the one named is of
    the same identity is checked where it matters, by the reader of the ledger.
    """
    said = request.metadata.fields.get(REPLACED_SERIAL)
    if said is not None and _SERIAL.fullmatch(said.string_value):
        return int(said.string_value, 16)
    tls = call.peer.tls
    if tls is not None and tls.peer_chain and tls.peer_id == caller.identity:
        return tls.peer_chain[0].serial_number
    return None


def _signing_failure(error: SigningError) -> GrpcError:
    """Tell the caller what is wrong with what it sent, and nothing of what is wrong with us."""
    if isinstance(error, IdentityRevoked):
        return GrpcError(Status.PERMISSION_DENIED, REVOKED)
    return GrpcError(_STATUS[error.fault], _signing_message(error))


def _signing_message(error: SigningError) -> str:
    if _STATUS[error.fault] is Status.INVALID_ARGUMENT:
        return f"CSR signing error ({error.fault}: {error})"
    return f"CSR signing error ({error.fault})"
