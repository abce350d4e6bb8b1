"""A small CA that really speaks gRPC over TLS, late or wrong on purpose.

It shares no code with ours. Connections are in memory, so that tests may run on a mock clock.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import trio
import trio.abc
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from agent.ca_client import CaClient
from agent.config import AgentConfig, CaAddress, parse_ca_name
from mesh.api import CREATE_CERTIFICATE, REPLACED_SERIAL, TAKES_REVOCATION_LISTS
from mesh.clock import Now
from mesh.grpc import GrpcError, GrpcServer, Peer, ServerCall, Service, accept_plain
from mesh.grpc.limits import DEFAULT_LIMITS
from mesh.protos.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from mesh.spiffe import ServiceAccount, SpiffeId, TrustDomain
from mesh.svid import X509Svid
from mesh.tls import ClientCertificate, server_context
from mesh.tls_errors import TlsError
from mesh.tls_stream import TlsStream
from tests.pki import NOW, Authority, key_usage, make_root

DOMAIN = TrustDomain("cluster.local")
IDENTITY = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/httpbin")
CA_ID = "spiffe://cluster.local/ns/istio-system/sa/istiod"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One request as it came in."""

    at: datetime
    authorization: list[str]
    csr: x509.CertificateSigningRequest
    validity: int
    acting_for: str
    "Whom the caller asked for in another's name, or empty."
    replaces: str = ""
    takes_lists: bool = False


@dataclass(kw_only=True)
class FakeCa:
    """Signs what it is asked, for `identity` whatever the request says."""

    now: Now
    nursery: trio.Nursery
    "Where its connections run."
    root: Authority = field(default_factory=make_root)
    identity: str = str(IDENTITY)
    identities: dict[str, str] = field(default_factory=dict)
    "Whom else a bearer token is for."
    life: timedelta = timedelta(hours=24)
    backdate: timedelta = timedelta(minutes=2)
    latency: float = 0.0
    up: bool = True
    mute: bool = False
    "Take connections, and never say a word."
    failures: list[GrpcError] = field(default_factory=list)
    "What the next calls end with."
    twist: Callable[[list[str]], list[str]] = list
    "What is done to an answer before it is sent."
    key: Any = None
    "The public key to certify instead of the request's."
    server_svid: X509Svid | None = None
    alpn: bytes = b"h2"
    seen: list[Seen] = field(default_factory=list)
    dials: int = 0

    async def dial(self, _address: CaAddress) -> trio.abc.Stream:
        """Stand in for a TCP connection."""
        self.dials += 1
        await trio.lowlevel.checkpoint()
        if not self.up:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        client, server = trio.testing.memory_stream_pair()
        if not self.mute:
            self.nursery.start_soon(self.serve, server)
        return client

    async def serve(self, transport: trio.abc.Stream) -> None:
        """Serve one connection."""
        svid = self.server_svid or self.root.issue(
            CA_ID,
            "localhost",
            not_before=self.now() - timedelta(minutes=2),
            not_after=self.now() + timedelta(hours=1),
        )
        context = server_context(
            svid, {}, alpn=[self.alpn], client_certificate=ClientCertificate.NONE
        )
        stream = TlsStream(transport, context.session(self.now()))
        try:
            await stream.do_handshake()
        except (TlsError, trio.BrokenResourceError):
            return
        service = Service()
        service.unary(CREATE_CERTIFICATE, self.create_certificate)
        self.add_services(service)
        server = GrpcServer(service, accept_plain, DEFAULT_LIMITS)
        await server.serve_stream(stream, Peer(address="memory"))

    def add_services(self, service: Service) -> None:
        """Serve more than certificates, where a test needs it."""

    async def create_certificate(
        self, request: IstioCertificateRequest, call: ServerCall
    ) -> IstioCertificateResponse:
        csr = x509.load_pem_x509_csr(request.csr.encode())
        acting_for = request.metadata.fields["ImpersonatedIdentity"].string_value
        token = self.token_of(call)
        identity = acting_for or self.identities.get(token, self.identity)
        self.seen.append(
            Seen(
                at=self.now(),
                authorization=[str(value) for value in call.metadata.get_all("authorization")],
                csr=csr,
                validity=request.validity_duration,
                acting_for=acting_for,
                replaces=request.metadata.fields[REPLACED_SERIAL].string_value,
                takes_lists=request.metadata.fields[TAKES_REVOCATION_LISTS].bool_value,
            )
        )
        await trio.sleep(self.latency)
        if self.failures:
            raise self.failures.pop(0)
        leaf = self.sign(self.key or csr.public_key(), identity)
        return IstioCertificateResponse(cert_chain=self.twist([leaf, self.root.pem.decode()]))

    def token_of(self, call: ServerCall) -> str:
        values = [str(value) for value in call.metadata.get_all("authorization")]
        return values[0].removeprefix("Bearer ") if values else ""

    def sign(self, public_key: Any, identity: str = "") -> str:
        now = self.now()
        uri = x509.UniformResourceIdentifier(identity or self.identity)
        name = x509.SubjectAlternativeName([uri])
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - self.backdate)
            .not_valid_after(now + self.life)
            .add_extension(name, critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage("digital_signature"), critical=True)
        )
        return builder.sign(self.root.key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def make_config(directory: Path, ca: FakeCa | None = None, **changes: Any) -> AgentConfig:
    """Write the files an agent reads, and return settings that fit `ca`."""
    root_file, token_file = directory / "root-cert.pem", directory / "token"
    root_file.write_bytes((ca.root if ca else make_root()).pem)
    token_file.write_text("a.token.of-httpbin\n")
    facts: dict[str, Any] = {
        "ca_address": CaAddress(host="ca.test", port=15012),
        "ca_name": parse_ca_name(None, DOMAIN),
        "ca_root_cert": root_file,
        "token_file": token_file,
        "socket": directory / "run" / "agent.sock",
        "trust_domain": DOMAIN,
        "account": ServiceAccount("foo", "httpbin"),
    }
    return AgentConfig(**(facts | changes))


def make_client(config: AgentConfig, ca: FakeCa) -> CaClient:
    return CaClient(config, now=ca.now, random=Random(1), dial=ca.dial)


def fixed_now() -> datetime:
    return NOW
