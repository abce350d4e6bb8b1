"""Between Envoy's messages and the values that decisions are made on."""

from __future__ import annotations

from agent.delta_state import DeltaAsk
from agent.resources import AllRoots, KeyPair, Resource
from agent.sds_state import Ask
from mesh.protos.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest
from mesh.protos.secret_pb2 import (
    CertificateValidationContext,
    DataSource,
    Secret,
    SPIFFECertValidatorConfig,
    TlsCertificate,
    TypedExtensionConfig,
)

SPIFFE_VALIDATOR = "envoy.tls.cert_validator.spiffe"
SPIFFE_VALIDATOR_TYPE_URL = (
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
)
"""Envoy's validator that picks the roots by the peer's trust domain."""


def ask_of(request: DiscoveryRequest) -> Ask:
    """Return what a request of a state-of-the-world stream says."""
    return Ask(
        node_id=request.node.id,
        type_url=request.type_url,
        names=tuple(request.resource_names),
        nonce=request.response_nonce,
        error=request.error_detail.message if request.HasField("error_detail") else None,
    )


def delta_ask_of(request: DeltaDiscoveryRequest) -> DeltaAsk:
    """Return what a request of an incremental stream says."""
    return DeltaAsk(
        node_id=request.node.id,
        type_url=request.type_url,
        subscribe=tuple(request.resource_names_subscribe),
        unsubscribe=tuple(request.resource_names_unsubscribe),
        initial_versions=dict(request.initial_resource_versions),
        nonce=request.response_nonce,
        error=request.error_detail.message if request.HasField("error_detail") else None,
    )


def secret_of(resource: Resource) -> Secret:
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
    if isinstance(value, AllRoots):
        return Secret(name=resource.name, validation_context=_spiffe_context(value))
    context = CertificateValidationContext(trusted_ca=DataSource(inline_bytes=value.pem))
    if value.lists_pem:
        context.crl.inline_bytes = value.lists_pem
        # Envoy would else want a list of every CA in a chain, also of those above ours.
        context.only_verify_leaf_cert_crl = True
    return Secret(name=resource.name, validation_context=context)


def _spiffe_context(value: AllRoots) -> CertificateValidationContext:
    config = SPIFFECertValidatorConfig(
        trust_domains=[
            SPIFFECertValidatorConfig.TrustDomain(
                name=domain.name, trust_bundle=DataSource(inline_bytes=roots.pem)
            )
            for domain, roots in value.by_domain.items()
        ]
    )
    validator = TypedExtensionConfig(name=SPIFFE_VALIDATOR)
    validator.typed_config.type_url = SPIFFE_VALIDATOR_TYPE_URL
    validator.typed_config.value = config.SerializeToString()
    return CertificateValidationContext(custom_validator_config=validator)
