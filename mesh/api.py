"""The protocols at the seams between the three programs: method names, types, numbers."""

from __future__ import annotations

from mesh.grpc import Method
from mesh.protos.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from mesh.protos.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from mesh.protos.spire_server_pb2 import (
    Bundle,
    GetBundleRequest,
    ListFederatedBundlesRequest,
    ListFederatedBundlesResponse,
    MintJWTSVIDRequest,
    MintJWTSVIDResponse,
)
from mesh.protos.status_pb2 import ClientStatusRequest, ClientStatusResponse
from mesh.protos.workload_pb2 import (
    JWTBundlesRequest,
    JWTBundlesResponse,
    JWTSVIDRequest,
    JWTSVIDResponse,
    ValidateJWTSVIDRequest,
    ValidateJWTSVIDResponse,
    X509BundlesRequest,
    X509BundlesResponse,
    X509SVIDRequest,
    X509SVIDResponse,
)

CA_PORT = 15012
"""Istio: the control plane's TLS port, for certificates and discovery."""

CA_ACCOUNT = "istio-system/istiod"
"""The control plane's own service account, as NAMESPACE/NAME."""

CA_DNS_NAME = "istiod.istio-system.svc"
"""The name that Istio's agents expect in the control plane's serving certificate."""

TOKEN_AUDIENCE = "istio-ca"  # noqa: S105 - a name, not a secret
"""Istio: the audience of the tokens that workloads show to the CA."""

MESH_ALPN = b"istio"
"""What a sidecar offers for TCP. `istio-peer-exchange` is left out on purpose: whoever negotiates
it must first exchange metadata inside the connection."""

IMPERSONATED_IDENTITY = "ImpersonatedIdentity"
"""Istio: the request metadata by which a node asks for one of its workloads' certificates."""

CREATE_CERTIFICATE = Method(
    "/istio.v1.auth.IstioCertificateService/CreateCertificate",
    IstioCertificateRequest,
    IstioCertificateResponse,
)

REPLACED_SERIAL = "ReplacedCertificateSerial"
"""Request metadata of CreateCertificate: the serial number, in hexadecimal, of the certificate that
the new one takes the place of. From it our CA knows which certificates are in use; others ignore
it."""

TAKES_REVOCATION_LISTS = "TakesCertificateRevocationLists"
"""Request metadata of CreateCertificate: true asks for the revocation lists, as further PEM blocks
after the roots."""

STREAM_SECRETS = Method(
    "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
    DiscoveryRequest,
    DiscoveryResponse,
)

DELTA_SECRETS = Method(
    "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
)

FETCH_SECRETS = Method(
    "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets",
    DiscoveryRequest,
    DiscoveryResponse,
)

FETCH_X509_SVID = Method("/SpiffeWorkloadAPI/FetchX509SVID", X509SVIDRequest, X509SVIDResponse)
FETCH_X509_BUNDLES = Method(
    "/SpiffeWorkloadAPI/FetchX509Bundles", X509BundlesRequest, X509BundlesResponse
)
FETCH_JWT_SVID = Method("/SpiffeWorkloadAPI/FetchJWTSVID", JWTSVIDRequest, JWTSVIDResponse)
FETCH_JWT_BUNDLES = Method(
    "/SpiffeWorkloadAPI/FetchJWTBundles", JWTBundlesRequest, JWTBundlesResponse
)
VALIDATE_JWT_SVID = Method(
    "/SpiffeWorkloadAPI/ValidateJWTSVID", ValidateJWTSVIDRequest, ValidateJWTSVIDResponse
)

WORKLOAD_HEADER = "workload.spiffe.io"
"""SPIFFE Workload Endpoint: metadata that every call must carry, with the value `true`. A server
that is made to call somewhere else by its own client cannot be made to add it."""

MINT_JWT_SVID = Method(
    "/spire.api.server.svid.v1.SVID/MintJWTSVID", MintJWTSVIDRequest, MintJWTSVIDResponse
)
GET_BUNDLE = Method("/spire.api.server.bundle.v1.Bundle/GetBundle", GetBundleRequest, Bundle)
LIST_FEDERATED_BUNDLES = Method(
    "/spire.api.server.bundle.v1.Bundle/ListFederatedBundles",
    ListFederatedBundlesRequest,
    ListFederatedBundlesResponse,
)

SECRET_TYPE_URL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105
"""The type of an SDS resource inside a DiscoveryResponse."""

SVID_RESOURCE = "default"
"""SDS: the workload's own certificate and key."""

BUNDLE_RESOURCE = "ROOTCA"
"""SDS: the roots to validate peers with."""

DELTA_AGGREGATED_RESOURCES = Method(
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
)
"""The aggregated discovery service (ADS), incremental: one stream for every type of resource."""

ALL_BUNDLES_RESOURCE = "ALL"
"""SDS: the roots of every trust domain, each for its own (SPIRE; Envoy's SPIFFE validator)."""

DISCOVERY_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest message on a discovery stream. The first answer to a proxy that may call everything holds
the whole registry: ten thousand services take some 5 MiB."""

FETCH_CLIENT_STATUS = Method(
    "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus",
    ClientStatusRequest,
    ClientStatusResponse,
)
"""Envoy's client status discovery (CSDS): which proxy has which configuration."""
