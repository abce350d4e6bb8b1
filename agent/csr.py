"""A fresh key and the request that asks for its certificate."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.spiffe import SpiffeId


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningRequest:
    """What a certificate is asked for with. The key never leaves memory."""

    identity: SpiffeId
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    csr_pem: str


def new_request(identity: SpiffeId) -> SigningRequest:
    """Make a P-256 key and a PEM request for `identity`: no subject, one critical URI name.

    The form is ztunnel's. A CA must take the identity from the caller's credentials; the name is
    there for those that compare (istio-csr).
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(name, critical=True)  # RFC 5280, 4.2.1.6: the subject is empty
        .sign(key, hashes.SHA256())
    )
    pem = csr.public_bytes(serialization.Encoding.PEM).decode("ascii")
    return SigningRequest(identity=identity, key=key, csr_pem=pem)
