"""Asking the CA: Istio's CreateCertificate over TLS, with a bearer token.

Every attempt starts from nothing: the token and the CA's roots are read again, and the connection
is new. Half a day lies between two certificates, so a kept connection would only carry forward
what has gone stale meanwhile, and an idle agent would cost the CA a connection.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import TypeVar

import trio
import trio.abc
from cryptography import x509
from google.protobuf.message import Message

from agent.bearer import explain_rejection, parse_token
from agent.config import AgentConfig, CaAddress, load_ca_bundle
from agent.errors import (
    CaFailing,
    CaLacksMethod,
    CaNotTrusted,
    CaRefused,
    CaRootsUnusable,
    CaUnreachable,
    RequestFailed,
    TokenRejected,
    TokenUnusable,
)
from agent.metrics import AgentMetrics
from agent.schedule import INNER_BACKOFF
from mesh.api import (
    CREATE_CERTIFICATE,
    GET_BUNDLE,
    IMPERSONATED_IDENTITY,
    LIST_FEDERATED_BUNDLES,
    MINT_JWT_SVID,
    REPLACED_SERIAL,
    TAKES_REVOCATION_LISTS,
)
from mesh.bundle import TrustBundle
from mesh.clock import Now
from mesh.dialing import why_not_connected
from mesh.errors import ConfigError
from mesh.files import read_file
from mesh.grpc import Channel, GrpcError, Limits, Method, Status, open_channel
from mesh.log import get_logger
from mesh.protos.istio_ca_pb2 import IstioCertificateRequest
from mesh.protos.spire_server_pb2 import (
    SPIFFEID,
    Bundle,
    GetBundleRequest,
    ListFederatedBundlesRequest,
    MintJWTSVIDRequest,
)
from mesh.spiffe import SpiffeId
from mesh.svid import X509Svid
from mesh.tls import TlsContext, client_context, named_client_context
from mesh.tls_errors import TlsError
from mesh.tls_stream import TlsStream
from mesh.verify import PeerRejected

log = get_logger("agent.ca_client")

ATTEMPTS = 5
"""Istio: at most so many within one request for a certificate."""

CONNECT_DEADLINE = 10.0
"""Seconds for name lookup, TCP and TLS together: a silent host must not stop renewal."""

CALL_DEADLINE = 10.0
"""Seconds the CA may take to sign; real ones take milliseconds, a queue in front of one more."""

ALPN = b"h2"
"""Real gRPC servers refuse a connection that did not negotiate it."""

RETRYABLE = frozenset(
    {
        Status.CANCELLED,
        Status.DEADLINE_EXCEEDED,
        Status.RESOURCE_EXHAUSTED,
        Status.ABORTED,
        Status.INTERNAL,
        Status.UNAVAILABLE,
    }
)
"""Istio: the codes after which the same request is sent again at once."""


Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)

Made = TypeVar("Made")

Dial = Callable[[CaAddress], Awaitable[trio.abc.Stream]]
"""Opens a connection for TLS to run on. Raises OSError."""


async def dial_tcp(address: CaAddress) -> trio.abc.Stream:
    """Connect to the first of the host's addresses that answers. Raises OSError."""
    return await trio.open_tcp_stream(address.host, address.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """By which token a certificate is asked for.

    With `acting_for` the token is the node's own, and the CA must trust the node to act for the
    workloads that run on it (Istio: CA_TRUSTED_NODE_ACCOUNTS).
    """

    token_file: Path
    acting_for: SpiffeId | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    """A connection to the CA, and the token that calls on it carry."""

    channel: Channel
    token: str | None

    async def unary(self, method: Method[Req, Res], request: Req) -> Res:
        """Make one call. Raises GrpcError."""
        return await self.channel.unary(
            method, request, metadata=bearer(self.token), timeout=CALL_DEADLINE
        )


Proof = list[tuple[str, str | bytes]]
"""The metadata by which a call proves who makes it, beside the certificate that TLS shows."""


def bearer(token: str | None) -> Proof:
    """Istio: without a token no header is sent, rather than an empty one."""
    return [] if token is None else [("authorization", f"Bearer {token}")]


class CaClient:
    """One CA, as the agent sees it. It holds no connection between calls.

    `requests` bounds how many clients ask at once. `svid` is the certificate to show, if any: with
    one that is still valid a certificate can be renewed without a token. `roots` are trusted beside
    those of the configured file, which may be older than the mesh's last change of roots.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        now: Now,
        random: Random,
        dial: Dial = dial_tcp,
        credential: Credential | None = None,
        requests: trio.CapacityLimiter | None = None,
        metrics: AgentMetrics | None = None,
    ) -> None:
        self._config = config
        self._now = now
        self._random = random
        self._dial = dial
        self._requests = requests or trio.CapacityLimiter(1)
        self._metrics = metrics or AgentMetrics()
        self._showing = True
        self.svid: Callable[[], X509Svid | None] = lambda: None
        self.roots: Callable[[], Sequence[x509.Certificate]] = tuple
        self.credential = credential or Credential(token_file=config.token_file)

    def read_token(self) -> str | None:
        """Return the token as the file holds it now, None if there is none.

        Raises TokenUnusable.
        """
        path = self.credential.token_file
        try:
            return parse_token(read_file(path, "token file"), path)
        except ConfigError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise TokenUnusable(str(error)) from error

    async def create_certificate(
        self, csr_pem: str, *, replaces: int | None = None
    ) -> Sequence[str]:
        """Return the elements of the CA's answer, unchecked. Raises RequestFailed leaves.

        `replaces` is the serial number of the certificate that will not be used any more.
        """
        request = IstioCertificateRequest(
            csr=csr_pem, validity_duration=int(self._config.secret_ttl.total_seconds())
        )
        request.metadata.update({TAKES_REVOCATION_LISTS: True})
        if replaces is not None:
            request.metadata.update({REPLACED_SERIAL: f"{replaces:x}"})
        if self.credential.acting_for is not None:
            request.metadata.update({IMPERSONATED_IDENTITY: str(self.credential.acting_for)})
        self._metrics.count("num_outgoing_requests")
        start = trio.current_time()
        try:
            async with self._requests:
                response = await self._ask_repeatedly(CREATE_CERTIFICATE, request)
        except RequestFailed:
            self._metrics.count("num_failed_outgoing_requests")
            raise
        finally:
            passed = round((trio.current_time() - start) * 1000)
            self._metrics.count("outgoing_latency", passed)
        return list(response.cert_chain)

    async def mint_jwt_svid(self, identity: SpiffeId, audiences: Sequence[str]) -> str:
        """Return a JWT-SVID, unchecked. Raises RequestFailed leaves."""
        request = MintJWTSVIDRequest(
            id=SPIFFEID(trust_domain=identity.trust_domain.name, path=identity.path),
            audience=audiences,
        )
        return (await self._attempt(MINT_JWT_SVID, request)).svid.token

    async def bundles(self) -> tuple[Bundle, Sequence[Bundle]]:
        """Return the bundle of our trust domain, and those of others.

        Raises RequestFailed leaves.
        """

        async def ask(call: _Call) -> tuple[Bundle, Sequence[Bundle]]:
            own = await call.unary(GET_BUNDLE, GetBundleRequest())
            listed = await call.unary(LIST_FEDERATED_BUNDLES, ListFederatedBundlesRequest())
            return own, list(listed.bundles)

        return await self._connected(ask)

    @asynccontextmanager
    async def channel(self, limits: Limits) -> AsyncGenerator[tuple[Channel, Proof]]:
        """Connect for calls that stay; yield the channel, and what to send with each call.

        A token that is the node's own proves nothing about a workload, so it stays away. Raises
        RequestFailed leaves before the block.
        """
        proof = bearer(None if self.credential.acting_for else self.read_token())
        stream = await self._connect_in_time()

        async def connected() -> TlsStream:
            return stream

        authority = str(self._config.ca_address)
        async with open_channel(
            connected, authority=authority, scheme=b"https", limits=limits
        ) as channel:
            yield channel, proof

    async def _ask_repeatedly(self, method: Method[Req, Res], request: Req) -> Res:
        pauses = INNER_BACKOFF.pauses(self._random)
        for _ in range(ATTEMPTS - 1):
            try:
                return await self._attempt(method, request)
            except (CaUnreachable, CaFailing) as error:
                log.debug("asking the CA again", reason=error.reason, error=str(error))
            await trio.sleep(next(pauses))
            self._metrics.count("num_outgoing_retries")
        return await self._attempt(method, request)

    async def _attempt(self, method: Method[Req, Res], request: Req) -> Res:
        """Try once. After a failure the next attempt shows no certificate, and then one again.

        A CA that was made anew refuses certificates of the one before, and the token is as good.
        """
        try:
            response = await self._connected(lambda call: call.unary(method, request))
        except RequestFailed:
            self._showing = not self._showing
            raise
        self._showing = True
        return response

    async def _connected(self, use: Callable[[_Call], Awaitable[Made]]) -> Made:
        """Open a connection and make calls on it. Raises RequestFailed leaves."""
        token = self.read_token()
        stream = await self._connect_in_time()

        async def connected() -> TlsStream:
            return stream

        authority = str(self._config.ca_address)
        try:
            async with open_channel(connected, authority=authority, scheme=b"https") as channel:
                return await use(_Call(channel, token))
        except GrpcError as error:
            raise self._failure(error, token) from error

    async def _connect_in_time(self) -> TlsStream:
        try:
            with trio.fail_after(CONNECT_DEADLINE):
                return await self._connect()
        except trio.TooSlowError as error:
            raise CaUnreachable(
                f"the CA at {self._config.ca_address} did not answer within "
                f"{CONNECT_DEADLINE:.0f} s: check the address, and firewalls on the way"
            ) from error

    async def _connect(self) -> TlsStream:
        context = self._tls_context()
        address = self._config.ca_address
        try:
            transport = await self._dial(address)
        except OSError as error:
            raise CaUnreachable(
                f"cannot connect to the CA at {address} ({why_not_connected(error)}): "
                "start it, or correct --ca-address"
            ) from error
        session = context.session(
            self._now(), server_name=self._server_name(), check_peer=self._check_name
        )
        stream = TlsStream(transport, session)
        try:
            await self._handshake(stream)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    async def _handshake(self, stream: TlsStream) -> None:
        address = self._config.ca_address
        try:
            await stream.do_handshake()
        except PeerRejected as error:
            raise CaNotTrusted(
                f"what answers at {address} is not known to be the CA {self._config.ca_name} "
                f"by the roots in {self._config.ca_root_cert}: {error}"
            ) from error
        except (TlsError, trio.BrokenResourceError) as error:
            raise CaUnreachable(f"no TLS connection to the CA at {address}: {error}") from error
        if stream.session.alpn != ALPN:
            raise CaUnreachable(
                f"what answers at {address} speaks TLS but not gRPC (no ALPN h2): "
                "correct --ca-address"
            )

    def _tls_context(self) -> TlsContext:
        config = self._config
        try:
            bundle = load_ca_bundle(config.ca_root_cert, config.ca_name, config.trust_domain)
        except ConfigError as error:
            raise CaRootsUnusable(str(error)) from error
        domain = bundle.trust_domain
        if domain == config.trust_domain:
            bundle = TrustBundle.of(domain, [*bundle.authorities, *self.roots()])
        bundles = {domain: bundle}
        svid = self.svid() if self._showing else None
        if isinstance(config.ca_name, SpiffeId):
            return client_context(bundles, svid=svid, alpn=[ALPN])
        return named_client_context(bundles, config.ca_name, svid=svid, alpn=[ALPN])

    def _server_name(self) -> str | None:
        """Return the SNI to send: the expected DNS name, else the host if it is a name."""
        if isinstance(self._config.ca_name, str):
            return self._config.ca_name
        try:
            ip_address(self._config.ca_address.host)
        except ValueError:
            return self._config.ca_address.host
        return None

    def _check_name(self, identity: SpiffeId) -> None:
        if isinstance(self._config.ca_name, SpiffeId) and identity != self._config.ca_name:
            raise PeerRejected(
                f"it is {identity}: correct --ca-address, or --ca-name if that is the CA"
            )

    def _failure(self, error: GrpcError, token: str | None) -> RequestFailed:
        """Name the failure behind a status, with advice."""
        address = self._config.ca_address
        if error.code is Status.UNAUTHENTICATED:
            advice = explain_rejection(token, self.credential.token_file, self._now())
            return TokenRejected(f"the CA at {address} did not accept our token: {advice}")
        if error.code is Status.UNIMPLEMENTED:
            return CaLacksMethod(f"the CA at {address} does not know this method: {error.message}")
        said = f"the CA at {address} answered {error.code.name}: {error.message}"
        return CaFailing(said) if error.code in RETRYABLE else CaRefused(said)
