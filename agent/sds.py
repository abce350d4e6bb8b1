"""SDS: Envoy's secret discovery, stream form (envoy.service.secret.v3.SecretDiscoveryService)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import trio

from agent.errors import BadSubscription
from agent.resources import SERVED, KeyPair, Resource
from agent.sds_state import Ask, Meaning, StreamState
from agent.store import SecretStore, Wakeup
from mesh.api import SECRET_TYPE_URL, STREAM_SECRETS
from mesh.clock import Now
from mesh.grpc import GrpcError, Service, Status, StreamingCall
from mesh.log import get_logger
from mesh.protos.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from mesh.protos.secret_pb2 import (
    CertificateValidationContext,
    DataSource,
    Secret,
    TlsCertificate,
)

log = get_logger("agent.sds")

SecretCall = StreamingCall[DiscoveryRequest, DiscoveryResponse]

NONCE_BYTES = 16
"""Random, so that a nonce of an earlier connection cannot be taken for one of this."""


def sds_service(store: SecretStore, now: Now) -> Service:
    """Return the gRPC service that serves `store`.

    FetchSecrets and DeltaSecrets are left out, as in Istio: gRPC answers UNIMPLEMENTED.
    """

    async def stream_secrets(call: SecretCall) -> None:
        await _Stream(call, store, now).run()

    service = Service()
    service.streaming(STREAM_SECRETS, stream_secrets)
    return service


class _Stream:
    """One client's stream: a task that reads requests, and one that sends what is due."""

    def __init__(self, call: SecretCall, store: SecretStore, now: Now) -> None:
        self._call = call
        self._store = store
        self._now = now
        self._state = StreamState(type_url=SECRET_TYPE_URL, served=SERVED)
        self._wakeup = Wakeup()

    async def run(self) -> None:
        """Serve until the client ends its side. Raises GrpcError for requests that make no sense.

        A secret that is not there yet is waited for: Envoy keeps its listeners warming so long,
        whereas a failed stream would make it back off.
        """
        refusal: BadSubscription | None = None
        with self._store.subscribed(self._wakeup):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._push)
                try:
                    await self._read()
                except BadSubscription as error:
                    refusal = error
                nursery.cancel_scope.cancel()
        if refusal is not None:
            log.warning("secret stream refused", reason=refusal.reason, error=str(refusal))
            raise GrpcError(Status.INVALID_ARGUMENT, str(refusal)) from refusal

    async def _read(self) -> None:
        async for request in self._call:
            ask = _ask(request)
            meaning = self._state.take(ask)
            if meaning is Meaning.NACK:
                log.warning(
                    "client refused a secret",
                    node=self._state.node_id,
                    names=list(ask.names),
                    error=ask.error,
                )
            else:
                log.debug("secret request", node=self._state.node_id, meaning=meaning.value)
            self._wakeup.set()

    async def _push(self) -> None:
        while True:
            resources = self._state.due(self._store.available(self._now()))
            if resources:
                await self._send(resources)
            else:
                await self._wakeup.wait()

    async def _send(self, resources: Sequence[Resource]) -> None:
        nonce = secrets.token_hex(NONCE_BYTES)
        response = DiscoveryResponse(
            version_info=f"{self._now():%Y-%m-%dT%H:%M:%SZ}/{max(r.version for r in resources)}",
            type_url=SECRET_TYPE_URL,
            nonce=nonce,
        )
        for resource in resources:
            response.resources.add(
                type_url=SECRET_TYPE_URL, value=_secret(resource).SerializeToString()
            )
        self._state.sending(resources, nonce)
        await self._call.send(response)
        log.debug("secrets sent", node=self._state.node_id, names=[r.name for r in resources])


def _ask(request: DiscoveryRequest) -> Ask:
    return Ask(
        node_id=request.node.id,
        type_url=request.type_url,
        names=tuple(request.resource_names),
        nonce=request.response_nonce,
        error=request.error_detail.message if request.HasField("error_detail") else None,
    )


def _secret(resource: Resource) -> Secret:
    """Return Envoy's form of a secret: PEM, inline."""
    value = resource.value
    if isinstance(value, KeyPair):
        return Secret(
            name=resource.name,
            tls_certificate=TlsCertificate(
                certificate_chain=DataSource(inline_bytes=value.chain_pem),
                private_key=DataSource(inline_bytes=value.key_pem),
            ),
        )
    return Secret(
        name=resource.name,
        validation_context=CertificateValidationContext(
            trusted_ca=DataSource(inline_bytes=value.pem)
        ),
    )
