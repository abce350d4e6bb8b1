"""A certificate workshop for tests: roots, intermediates and SVIDs, right or wrong on purpose.

It shares no code with `ca`, so that a test of the CA or of a verifier proves something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.bundle import TrustBundle
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.svid import PrivateKey, X509Svid, certificates_pem, private_key_pem

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
"""The time at which test certificates are made unless a test says otherwise."""

BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)

USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def real_now() -> datetime:
    """The machine's time, for tests with peers that look at it themselves."""
    return datetime.now(UTC)  # noqa: TID251


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in names for usage in USAGES})


def name(text: str) -> x509.Name:
    if not text:
        return x509.Name([])
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, text)])


def san(text: str) -> x509.GeneralName:
    """`spiffe://...` (or any scheme) is a URI, an address an IP name, the rest a DNS name."""
    if "://" in text:
        return x509.UniformResourceIdentifier(text)
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


@dataclass(kw_only=True)
class Leaf:
    """What a leaf certificate shall contain; the defaults make a good SVID."""

    subject: str = ""
    sans: Sequence[str] = ()
    ca: bool | None = False
    usage: Sequence[str] | None = ("digital_signature", "key_encipherment")
    extended: Sequence[x509.ObjectIdentifier] | None = BOTH
    key: PrivateKey = field(default_factory=new_key)
    not_before: datetime | None = None
    not_after: datetime | None = None


@dataclass(kw_only=True)
class Authority:
    """A CA: `chain` are the intermediates that a leaf must carry to lead to its root."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    now: datetime
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def pem(self) -> bytes:
        return certificates_pem([self.certificate])

    def bundle(self, trust_domain: str = "cluster.local") -> dict[TrustDomain, TrustBundle]:
        domain = TrustDomain(trust_domain)
        return {domain: TrustBundle.of(domain, [self.certificate])}

    def sign(self, leaf: Leaf) -> x509.Certificate:
        builder = _builder(
            leaf.subject,
            self.certificate.subject,
            leaf.key,
            leaf.not_before or self.now - timedelta(minutes=2),
            leaf.not_after or self.now + timedelta(hours=1),
        )
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
            critical=False,
        )
        if leaf.sans:
            names = x509.SubjectAlternativeName([san(text) for text in leaf.sans])
            builder = builder.add_extension(names, critical=not leaf.subject)
        if leaf.ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(leaf.ca, None), critical=True)
        if leaf.usage is not None:
            builder = builder.add_extension(key_usage(*leaf.usage), critical=True)
        if leaf.extended is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(leaf.extended), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(
        self,
        spiffe_id: str,
        *dns: str,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> X509Svid:
        """Issue a good SVID for `spiffe_id`, with more DNS or IP names if given."""
        leaf = Leaf(sans=[spiffe_id, *dns], not_before=not_before, not_after=not_after)
        chain = (self.sign(leaf), *self.chain)
        return X509Svid(id=SpiffeId.parse(spiffe_id), chain=chain, key=leaf.key)

    def intermediate(self, subject: str = "intermediate") -> Authority:
        key = new_key()
        certificate = _ca_certificate(subject, self.certificate.subject, key, self.key, self.now)
        return Authority(
            certificate=certificate, key=key, now=self.now, chain=(certificate, *self.chain)
        )


def make_root(subject: str = "root", now: datetime = NOW) -> Authority:
    """Make a self-signed CA that is valid around `now`."""
    key = new_key()
    return Authority(
        certificate=_ca_certificate(subject, name(subject), key, key, now), key=key, now=now
    )


def svid_pem(svid: X509Svid) -> tuple[bytes, bytes]:
    """Return the chain and the key of `svid` as PEM."""
    return certificates_pem(svid.chain), private_key_pem(svid.key)


def _builder(
    subject: str, issuer: x509.Name, key: PrivateKey, not_before: datetime, not_after: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )


def _ca_certificate(
    subject: str,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> x509.Certificate:
    builder = _builder(subject, issuer, key, now - timedelta(days=1), now + timedelta(days=365))
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
