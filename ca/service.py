"""The CA's API: Istio's CreateCertificate."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.struct_pb2 import Value

from ca.authenticate import Authenticator, Caller, Presented, identify
from ca.authority import Authority, Issued
from ca.errors import AuthenticationError, CallerUnknown, Fault, SigningError
from mesh.api import CREATE_CERTIFICATE
from mesh.clock import Now
from mesh.errors import ConfigError
from mesh.grpc import GrpcError, ServerCall, Service, Status
from mesh.log import get_logger
from mesh.protos.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse

IMPERSONATED_IDENTITY = "ImpersonatedIdentity"
"""Istio: the request metadata by which a node proxy asks for another account's certificate."""

NOT_AUTHENTICATED = "request authenticate failure"
NOT_IMPERSONATED = "request impersonation authentication failure"
"""Istio's words, and nothing more: why is for the log."""

_STATUS = {
    Fault.CSR: Status.INVALID_ARGUMENT,
    Fault.TTL: Status.INVALID_ARGUMENT,
    Fault.NOT_READY: Status.INTERNAL,
    Fault.GENERATION: Status.INTERNAL,
}

_log = get_logger("ca")


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateService:
    """Answers CreateCertificate: who is it, may it be signed, here it is.

    Signing is done in the event loop: it takes well under a millisecond, and a thread could not
    run beside the loop while it lasts.
    """

    authority: Authority
    authenticators: tuple[Authenticator, ...]
    now: Now

    def register(self, service: Service) -> None:
        """Add the method to a gRPC service."""
        service.unary(CREATE_CERTIFICATE, self.create_certificate)

    async def create_certificate(
        self, request: IstioCertificateRequest, call: ServerCall
    ) -> IstioCertificateResponse:
        """Issue a certificate for whoever calls. Raises GrpcError; one log line either way."""
        caller = await self._identify(call)
        _refuse_impersonation(request, caller, call)
        issued = self._sign(request, caller, call)
        await self._spend(caller, call)
        _log.info(
            "certificate issued",
            identity=str(issued.identity),
            authenticator=caller.authenticator,
            serial=f"{issued.certificate.serial_number:x}",
            not_after=issued.certificate.not_valid_after_utc.isoformat(),
            peer=call.peer.address,
        )
        return IstioCertificateResponse(cert_chain=issued.elements)

    async def _identify(self, call: ServerCall) -> Caller:
        presented = Presented(
            authorization=call.metadata.get_all("authorization"),
            chain=() if call.peer.tls is None else call.peer.tls.peer_chain,
        )
        try:
            return await identify(self.authenticators, presented, self.now())
        except CallerUnknown as error:
            raise _not_authenticated(error, call) from error

    async def _spend(self, caller: Caller, call: ServerCall) -> None:
        """Use up a credential that works once, now that there is something to give for it."""
        if caller.spend is None:
            return
        try:
            await caller.spend()
        except AuthenticationError as error:
            unknown = CallerUnknown([(caller.authenticator, error)])
            raise _not_authenticated(unknown, call) from error
        except ConfigError as error:
            _log.error("credential not used up", reason=error.reason, why=str(error))
            raise GrpcError(Status.INTERNAL, "the credential could not be used up") from error

    def _sign(self, request: IstioCertificateRequest, caller: Caller, call: ServerCall) -> Issued:
        try:
            return self.authority.sign(
                caller, request.csr.encode(), request.validity_duration, self.now()
            )
        except SigningError as error:
            _log.warning(
                "certificate refused",
                identity=str(caller.identity),
                authenticator=caller.authenticator,
                reason=error.reason,
                why=str(error),
                peer=call.peer.address,
            )
            raise GrpcError(_STATUS[error.fault], _signing_message(error)) from error


def _refuse_impersonation(
    request: IstioCertificateRequest, caller: Caller, call: ServerCall
) -> None:
    """Refuse a request made in another's name: nobody is trusted to make one."""
    fields = request.metadata.fields
    if IMPERSONATED_IDENTITY not in fields:
        return
    value = fields[IMPERSONATED_IDENTITY]
    if value.WhichOneof("kind") in {None, "null_value"} or value == Value(string_value=""):
        return
    _log.warning(
        "impersonation refused",
        identity=str(caller.identity),
        authenticator=caller.authenticator,
        reason="impersonation_refused",
        asked_for=value.string_value[:200],
        peer=call.peer.address,
    )
    raise GrpcError(Status.UNAUTHENTICATED, NOT_IMPERSONATED)


def _not_authenticated(error: CallerUnknown, call: ServerCall) -> GrpcError:
    """Log why, authenticator by authenticator, and return what the caller may know."""
    _log.warning(
        "caller refused",
        reason=error.reason,
        why={name: f"{failure.reason}: {failure}" for name, failure in error.failures},
        peer=call.peer.address,
    )
    return GrpcError(Status.UNAUTHENTICATED, NOT_AUTHENTICATED)


def _signing_message(error: SigningError) -> str:
    """Tell the caller what is wrong with what it sent, and nothing of what is wrong with us."""
    if _STATUS[error.fault] is Status.INVALID_ARGUMENT:
        return f"CSR signing error ({error.fault}: {error})"
    return f"CSR signing error ({error.fault})"
