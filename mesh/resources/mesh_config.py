"""The mesh-wide settings, in the shape and with the defaults of Istio's MeshConfig."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from msgspec import Meta, field

from mesh.resources.values import Text, Value


class OutboundMode(StrEnum):
    """Whether workloads may call what the registry does not know."""

    ALLOW_ANY = "ALLOW_ANY"
    REGISTRY_ONLY = "REGISTRY_ONLY"


class OutboundTrafficPolicy(Value, frozen=True, kw_only=True):
    """The mesh's default for unknown destinations."""

    mode: OutboundMode = OutboundMode.ALLOW_ANY


class Normalization(StrEnum):
    """What is done to a request path before policy sees it; DEFAULT means BASE."""

    DEFAULT = "DEFAULT"
    NONE = "NONE"
    BASE = "BASE"
    MERGE_SLASHES = "MERGE_SLASHES"
    DECODE_AND_MERGE_SLASHES = "DECODE_AND_MERGE_SLASHES"


class PathNormalization(Value, frozen=True, kw_only=True):
    """The `pathNormalization` block."""

    normalization: Normalization = Normalization.DEFAULT


class TlsProtocol(StrEnum):
    """The least TLS version between workloads; TLS_AUTO means 1.2."""

    TLS_AUTO = "TLS_AUTO"
    TLSV1_2 = "TLSV1_2"
    TLSV1_3 = "TLSV1_3"


class MeshTls(Value, frozen=True, kw_only=True):
    """TLS between workloads."""

    min_protocol_version: TlsProtocol = TlsProtocol.TLS_AUTO
    cipher_suites: tuple[str, ...] = ()


class ExtensionProvider(Value, frozen=True, kw_only=True):
    """A named provider; those that authorize requests speak HTTP or gRPC."""

    name: Text
    envoy_ext_authz_http: Mapping[str, Any] | None = None
    envoy_ext_authz_grpc: Mapping[str, Any] | None = None

    also_known: ClassVar[frozenset[str]] = frozenset(
        {
            "datadog", "envoyFileAccessLog", "envoyHttpAls", "envoyOtelAls", "envoyTcpAls",
            "lightstep", "opencensus", "opentelemetry", "prometheus", "sds", "skywalking",
            "stackdriver", "zipkin",
        }
    )  # fmt: skip


class MeshConfig(Value, frozen=True, kw_only=True):
    """The settings that decide identity, policy and outbound traffic for the whole mesh."""

    trust_domain: Text = "cluster.local"
    trust_domain_aliases: tuple[str, ...] = ()
    root_namespace: Text = "istio-system"
    enable_auto_mtls: bool = True
    outbound_traffic_policy: OutboundTrafficPolicy = OutboundTrafficPolicy()
    protocol_detection_timeout: str | None = None
    path_normalization: PathNormalization = PathNormalization()
    mesh_mtls: MeshTls = field(name="meshMTLS", default=MeshTls())
    extension_providers: Annotated[tuple[ExtensionProvider, ...], Meta(max_length=1000)] = ()

    also_known: ClassVar[frozenset[str]] = frozenset(
        {
            "accessLogEncoding", "accessLogFile", "accessLogFormat", "ca", "caCertificates",
            "certificates", "configSources", "connectTimeout", "defaultConfig",
            "defaultDestinationRuleExportTo", "defaultHttpRetryPolicy", "defaultProviders",
            "defaultServiceExportTo", "defaultVirtualServiceExportTo", "disableEnvoyListenerLog",
            "discoverySelectors", "dnsRefreshRate", "enableEnvoyAccessLogService",
            "enablePrometheusMerge", "enableTracing", "h2UpgradePolicy", "hboneIdleTimeout",
            "inboundClusterStatName", "inboundTrafficPolicy", "ingressClass",
            "ingressControllerMode", "ingressSelector", "ingressService",
            "localityLbSetting", "outboundClusterStatName", "proxyHttpPort",
            "proxyInboundListenPort", "proxyListenPort", "serviceScopeConfigs",
            "serviceSettings", "tcpKeepalive", "thriftConfig", "tlsDefaults",
            "verifyCertificateAtClient",
        }
    )  # fmt: skip
