"""How a client secures a connection: what a DestinationRule says, or else auto mTLS.

Auto mTLS speaks mutual TLS to every endpoint that can take it and plaintext to the others, so a
service may be half in the mesh. As in Istio, a STRICT workload below a DISABLE namespace is not
noticed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from mesh.policy.destination import Client, DestinationRules, Settings
from mesh.policy.peer_authentication import PeerAuthentications
from mesh.policy.selection import Workload
from mesh.policy.trust_domains import TrustDomains
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.networking import ClientTls, TlsMode
from mesh.resources.security import MtlsMode
from mesh.resources.values import Labels

TLS_MODE_LABEL = "security.istio.io/tlsMode"
"""The label by which a workload says that its proxy takes mutual TLS: its value is `istio`."""

MESH_ALPN = (b"istio-peer-exchange", b"istio")
"""Istio: what a client offers so that a PERMISSIVE server knows the mesh's own TLS."""


class Security(StrEnum):
    """What goes over the wire."""

    PLAINTEXT = "plaintext"
    SIMPLE = "simple"
    MUTUAL = "mutual"
    ISTIO_MUTUAL = "istio-mutual"


SECURITY_OF_MODE = {
    TlsMode.DISABLE: Security.PLAINTEXT,
    TlsMode.SIMPLE: Security.SIMPLE,
    TlsMode.MUTUAL: Security.MUTUAL,
    TlsMode.ISTIO_MUTUAL: Security.ISTIO_MUTUAL,
}
"""What each mode of a DestinationRule puts on the wire."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One workload behind a service; `port` is its own, the TARGET port."""

    namespace: str
    port: int
    labels: Labels = field(default_factory=dict[str, str])
    takes_mtls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a client must know of a service.

    `identities` are the URIs of all service accounts behind it, `subject_alt_names` those that
    its ServiceEntry lists. `passthrough` is a headless service, or one of resolution NONE.
    """

    host: str
    namespace: str
    mesh_external: bool = False
    passthrough: bool = False
    identities: tuple[str, ...] = ()
    subject_alt_names: tuple[str, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundTls:
    """How to connect to an endpoint, and who decided it.

    The server's certificate must carry one of `sans`; with none the name is not checked, except
    that SIMPLE and MUTUAL then check the host that the client asked for. `settings` is the
    DestinationRule's block, None for auto mTLS.
    """

    security: Security
    why: str
    sans: tuple[str, ...] = ()
    sni: str = ""
    settings: ClientTls | None = None


@dataclass(frozen=True, slots=True)
class OutboundPolicies:
    """Everything that decides how clients connect."""

    config: MeshConfig
    rules: DestinationRules
    modes: PeerAuthentications

    def tls_for(
        self,
        client: Client,
        service: Service,
        endpoint: Endpoint,
        *,
        service_port: int,
        subset: str = "",
    ) -> OutboundTls:
        """Decide how a client connects to one endpoint of a service."""
        settings = self._settings(client, service)
        tls = None if settings is None else settings.tls_for(service_port, subset)
        if settings is not None and tls is not None:
            why = f"{tls.mode} by DestinationRule {settings.rule.key}"
            return self._by_rule(tls, why, service, service_port=service_port, subset=subset)
        against = self._against_mtls(service, endpoint, settings)
        if against:
            return OutboundTls(security=Security.PLAINTEXT, why=against)
        return OutboundTls(
            security=Security.ISTIO_MUTUAL,
            why="auto mTLS: the endpoint takes it and no policy disables it",
            sans=self.expected_sans(service),
            sni=automatic_sni(service.host, service_port, subset),
        )

    def service_mode(self, client: Client, service: Service) -> MtlsMode | None:
        """Guess the mode of a service as a whole; None is Istio's UNKNOWN, for external ones."""
        if service.mesh_external:
            return None
        if self._half_headless(service, self._settings(client, service)):
            return MtlsMode.DISABLE
        return self.modes.namespace_mode(service.namespace) or MtlsMode.PERMISSIVE

    def expected_sans(self, service: Service) -> tuple[str, ...]:
        """Return the names that a server of the service may have, every alias included."""
        listed = (*service.identities, *service.subject_alt_names)
        return TrustDomains.of(self.config).expand_identities(listed)

    def _settings(self, client: Client, service: Service) -> Settings | None:
        return self.rules.settings_for(service.host, client, service_namespace=service.namespace)

    def _by_rule(
        self, tls: ClientTls, why: str, service: Service, *, service_port: int, subset: str
    ) -> OutboundTls:
        security = SECURITY_OF_MODE[tls.mode]
        if security is Security.PLAINTEXT:
            return OutboundTls(security=security, why=why, settings=tls)
        if security is Security.ISTIO_MUTUAL:
            sans = tls.subject_alt_names or self.expected_sans(service)
            sni = tls.sni or automatic_sni(service.host, service_port, subset)
        else:
            sans = tls.subject_alt_names or service.subject_alt_names
            sni = tls.sni
        return OutboundTls(security=security, why=why, sans=sans, sni=sni, settings=tls)

    def _against_mtls(self, service: Service, endpoint: Endpoint, settings: Settings | None) -> str:
        """Return why auto mTLS does not apply, or an empty text if it does."""
        if not self.config.enable_auto_mtls:
            return "plaintext: the mesh settings turn auto mTLS off"
        if service.mesh_external:
            return f"plaintext: {service.host} is outside the mesh"
        if self._half_headless(service, settings):
            return "plaintext: the service is headless, and not all of its endpoints have a proxy"
        return self._against_endpoint(service, endpoint)

    @staticmethod
    def _half_headless(service: Service, settings: Settings | None) -> bool:
        """Tell whether connections go to addresses of which some, or all known, lack a proxy."""
        passthrough = service.passthrough or (settings is not None and settings.passthrough)
        ready = [endpoint.takes_mtls for endpoint in service.endpoints]
        return passthrough and not (ready and all(ready))

    def _against_endpoint(self, service: Service, endpoint: Endpoint) -> str:
        if self.modes.namespace_mode(service.namespace) is MtlsMode.DISABLE:
            return f"plaintext: mutual TLS is disabled for the namespace {service.namespace}"
        if not endpoint.takes_mtls:
            return "plaintext: the endpoint has no proxy that takes mutual TLS"
        workload = Workload(namespace=endpoint.namespace, labels=endpoint.labels)
        mode = self.modes.effective(workload).of_port(endpoint.port)
        if mode.mode is MtlsMode.DISABLE:
            return f"plaintext: {mode} for port {endpoint.port} of the endpoint"
        return ""


def automatic_sni(host: str, service_port: int, subset: str = "") -> str:
    """Write the server name that Istio's clients send: port, subset and host in one."""
    return f"outbound_.{service_port}_.{subset}_.{host}"


def name_accepted(expected: Iterable[str], presented: Iterable[str]) -> bool:
    """Compare a server's names with the expected ones, exactly; none expected accepts any."""
    wanted = frozenset(expected)
    return not wanted or not wanted.isdisjoint(presented)
