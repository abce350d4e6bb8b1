"""The CA's own root, its key, and the key of its token issuer, in its state directory.

They are made together at the first start. After that, whatever is odd about them stops the start:
a CA that quietly made itself a new root would cut off its whole mesh. They change only by
`ca.root_rotation` and by the renewal of a root that nears its end.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from ca.errors import CertificateUnsound
from ca.selfcheck import check_authority
from ca.state import (
    CA_CERT,
    CA_KEY,
    CURRENT,
    NEXT_CERT,
    NEXT_KEY,
    OLD_CERT,
    OLD_KEY,
    PUBLIC_MODE,
    ROOT_CERT,
    TOKEN_KEY,
    VERSION,
    VERSION_FILE,
    check_version,
    generation,
    locked,
    missing,
    publish,
    read_together,
)
from ca.template import Signer, root_certificate, root_name, root_validity
from mesh.bundle import TrustBundle
from mesh.errors import ConfigError
from mesh.files import private_directory, read_file, write_private
from mesh.spiffe import TrustDomain
from mesh.svid import (
    InvalidSvid,
    PrivateKey,
    certificates_pem,
    parse_certificates_pem,
    parse_private_key_pem,
    private_key_pem,
)

ROOT_LIFE = timedelta(days=3650)
"""Istio: CITADEL_SELF_SIGNED_CA_CERT_TTL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRoot:
    """A self-signed CA: who signs, whom peers trust, and who signs next or signed before.

    `upcoming` is there between the preparation and the activation of a new root, `former` between
    activation and retirement. `generation` names the files that all this was read from.
    """

    signer: Signer
    roots: TrustBundle
    upcoming: Signer | None = None
    former: Signer | None = None
    generation: str = field(default="", compare=False)

    @property
    def signers(self) -> tuple[Signer, ...]:
        """Every key whose certificates may be out there, or will be."""
        return tuple(one for one in (self.signer, self.upcoming, self.former) if one is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a CA with a root of its own needs. `created` tells that this call made the root."""

    own: OwnRoot
    token_key: ec.EllipticCurvePrivateKey
    created: bool

    @property
    def signer(self) -> Signer:
        """Who signs."""
        return self.own.signer

    @property
    def roots(self) -> TrustBundle:
        """Whom peers trust."""
        return self.own.roots


def load_or_create(directory: Path, trust_domain: TrustDomain, now: datetime) -> Material:
    """Load the CA of `trust_domain` from `directory`, or make it there if the directory is empty.

    CAs that start together on one directory agree on one root. Blocks: give it a thread.
    Raises ConfigError.
    """
    check_version(directory)
    private_directory(directory)
    created = False
    if missing(directory, CA_KEY, CA_CERT, ROOT_CERT, TOKEN_KEY):
        with locked(directory):
            created = _create(directory, trust_domain, now)
    return Material(
        own=load_own_root(directory, trust_domain, now),
        token_key=load_token_key(directory),
        created=created,
    )


def load_own_root(directory: Path, trust_domain: TrustDomain, now: datetime) -> OwnRoot:
    """Load the self-signed CA that `directory` holds at this moment. Blocks. Raises ConfigError."""
    check_version(directory)
    return read_together(directory, lambda: _read_own_root(directory, trust_domain, now))


def store_own_root(directory: Path, own: OwnRoot) -> None:
    """Put another state of the self-signed CA into force, under the lock. Raises ConfigError."""
    files = {
        CA_KEY: private_key_pem(own.signer.key),
        CA_CERT: certificates_pem([own.signer.certificate]),
        ROOT_CERT: own.roots.pem(),
    }
    for signer, key, certificate in (
        (own.upcoming, NEXT_KEY, NEXT_CERT),
        (own.former, OLD_KEY, OLD_CERT),
    ):
        if signer is not None:
            files[key] = private_key_pem(signer.key)
            files[certificate] = certificates_pem([signer.certificate])
    publish(directory, files)


def new_root(trust_domain: TrustDomain, now: datetime) -> Signer:
    """Make a self-signed root with a new key."""
    # P-256, where Istio's root is RSA-2048: every TLS stack in a mesh takes both, and it signs
    # ten times as fast.
    return _self_signed(trust_domain, ec.generate_private_key(ec.SECP256R1()), now)


def renewed_root(own: OwnRoot, now: datetime) -> OwnRoot:
    """Give the signing root a new life. Key and subject stay, so old and new verify the same."""
    before = own.signer
    after = _self_signed(own.roots.trust_domain, before.key, now)
    roots = [
        after.certificate if root == before.certificate else root for root in own.roots.authorities
    ]
    return replace(own, signer=after, roots=TrustBundle.of(own.roots.trust_domain, roots))


def load_or_create_token_key(directory: Path) -> ec.EllipticCurvePrivateKey:
    """Load the key of the CA's own token issuer, or make it. Blocks. Raises ConfigError.

    For a CA whose root is plugged in, and whose state directory has nothing else that is secret.
    """
    check_version(directory)
    private_directory(directory)
    if missing(directory, TOKEN_KEY):
        with locked(directory):
            _create_token_key(directory)
    return load_token_key(directory)


def load_token_key(directory: Path) -> ec.EllipticCurvePrivateKey:
    """Load the key of the CA's own token issuer. Raises ConfigError."""
    check_version(directory)
    path = directory / TOKEN_KEY
    if missing(directory, TOKEN_KEY):
        raise ConfigError(
            f"there is no token key {path}: start the CA once with "
            f"`remora ca serve --state-dir {directory}`, which makes it"
        )
    key = load_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(f"token key {path} is not an EC P-256 key, as its algorithm ES256 needs")
    return key


def load_key(path: Path) -> PrivateKey:
    """Load a private key that is nobody else's to read. Raises ConfigError."""
    data = read_file(path, "key")
    if path.stat().st_mode & 0o007:
        raise ConfigError(
            f"key {path} is open to every user of this machine: run `chmod 600 {path}`"
        )
    try:
        return parse_private_key_pem(data)
    except InvalidSvid as error:
        raise ConfigError(f"{path} is {error}") from error


def load_certificates(path: Path, what: str) -> tuple[x509.Certificate, ...]:
    """Load at least one certificate; `what` names them in complaints. Raises ConfigError."""
    try:
        return parse_certificates_pem(read_file(path, what))
    except InvalidSvid as error:
        raise ConfigError(f"{path} is {error}") from error


def _create(directory: Path, trust_domain: TrustDomain, now: datetime) -> bool:
    """Make what is missing, under the lock. True if the root is new."""
    absent = missing(directory, CA_KEY, CA_CERT, ROOT_CERT)
    if absent and len(absent) < 3:
        raise ConfigError(
            f"{directory} holds a part of a CA: {' and '.join(absent)} missing. Restore from a "
            "backup; only if this CA never issued anything, remove its *.pem files and start again"
        )
    _create_token_key(directory)
    if absent:
        root = new_root(trust_domain, now)
        pem = certificates_pem([root.certificate])
        write_private(directory / CA_KEY, private_key_pem(root.key))
        write_private(directory / CA_CERT, pem, PUBLIC_MODE)
        write_private(directory / ROOT_CERT, pem, PUBLIC_MODE)
    return bool(absent)


def _create_token_key(directory: Path) -> None:
    if missing(directory, VERSION_FILE):
        write_private(directory / VERSION_FILE, b"%d\n" % VERSION, PUBLIC_MODE)
    if missing(directory, TOKEN_KEY):
        token_key = ec.generate_private_key(ec.SECP256R1())
        write_private(directory / TOKEN_KEY, private_key_pem(token_key))


def _self_signed(trust_domain: TrustDomain, key: PrivateKey, now: datetime) -> Signer:
    root = root_certificate(trust_domain, key, root_validity(now, ROOT_LIFE))
    check_authority(root, trust_domain=trust_domain, now=now)
    return Signer(certificate=root, key=key)


def _read_own_root(directory: Path, trust_domain: TrustDomain, now: datetime) -> OwnRoot:
    signer = _load_signer(directory, CA_KEY, CA_CERT, trust_domain, now)
    roots = load_certificates(directory / ROOT_CERT, "root certificates")
    if signer.certificate not in roots:
        raise ConfigError(
            f"{directory / ROOT_CERT} does not contain the certificate in {directory / CA_CERT}: "
            "nobody who trusts the one would trust what the other signs"
        )
    current = directory / CURRENT
    others = [
        _load_signer(current, key, certificate, trust_domain, now)
        if (current / certificate).exists()
        else None
        for key, certificate in ((NEXT_KEY, NEXT_CERT), (OLD_KEY, OLD_CERT))
    ]
    return OwnRoot(
        signer=signer,
        roots=TrustBundle.of(trust_domain, roots),
        upcoming=others[0],
        former=others[1],
        generation=generation(directory),
    )


def _load_signer(
    directory: Path, key_name: str, certificate_name: str, trust_domain: TrustDomain, now: datetime
) -> Signer:
    key = load_key(directory / key_name)
    path = directory / certificate_name
    certificates = load_certificates(path, "CA certificate")
    if len(certificates) != 1:
        raise ConfigError(f"{path} holds {len(certificates)} certificates, not one")
    certificate = certificates[0]
    if certificate.public_key() != key.public_key():
        raise ConfigError(
            f"{directory / key_name} is not the key of {path}: "
            "the two files belong to different CAs"
        )
    _check_root(certificate, path, trust_domain, now)
    return Signer(certificate=certificate, key=key)


def _check_root(
    certificate: x509.Certificate, path: Path, trust_domain: TrustDomain, now: datetime
) -> None:
    if certificate.subject != root_name(trust_domain):
        raise ConfigError(
            f"{path} is the root {certificate.subject.rfc4514_string()!r}, not that of trust "
            f"domain {trust_domain}: give its own --trust-domain, or another --state-dir"
        )
    try:
        check_authority(certificate, trust_domain=trust_domain, now=now)
        certificate.verify_directly_issued_by(certificate)
    except CertificateUnsound as error:
        raise ConfigError(f"{path} cannot sign: {error}") from error
    except (ValueError, TypeError, InvalidSignature) as error:
        raise ConfigError(f"{path} is not signed by itself, so it is no root") from error
