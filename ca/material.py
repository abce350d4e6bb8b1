"""The CA's files: its root, its key, and the key of its token issuer.

They are made together at the first start. After that they are only read, and anything odd about
them stops the start: a CA that quietly made itself a new root would cut off its whole mesh.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from ca.errors import CertificateUnsound
from ca.selfcheck import check_authority
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

CA_KEY = "ca-key.pem"
CA_CERT = "ca-cert.pem"
ROOT_CERT = "root-cert.pem"
TOKEN_KEY = "token-key.pem"  # noqa: S105 - a file name
LOCK = ".lock"

ROOT_LIFE = timedelta(days=3650)
"""Istio: CITADEL_SELF_SIGNED_CA_CERT_TTL."""

PUBLIC_MODE = 0o644
"""Certificates are for everyone to read."""

LOCK_PATIENCE = 10.0
"""Seconds. Another CA starting on the directory needs milliseconds; this long, it hangs."""

LOCK_INTERVAL = 0.02
"""Seconds between two tries to get the lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a CA needs to work. `created` tells that this call made the root."""

    signer: Signer
    roots: TrustBundle
    token_key: ec.EllipticCurvePrivateKey
    created: bool


def load_or_create(directory: Path, trust_domain: TrustDomain, now: datetime) -> Material:
    """Load the CA of `trust_domain` from `directory`, or make it there if the directory is empty.

    CAs that start together on one directory agree on one root. Blocks: give it a thread.
    Raises ConfigError.
    """
    private_directory(directory)
    created = False
    if _missing(directory, CA_KEY, CA_CERT, ROOT_CERT, TOKEN_KEY):
        with _locked(directory):
            created = _create(directory, trust_domain, now)
    signer, roots = _load_root(directory, trust_domain, now)
    return Material(
        signer=signer, roots=roots, token_key=load_token_key(directory), created=created
    )


def load_token_key(directory: Path) -> ec.EllipticCurvePrivateKey:
    """Load the key of the CA's own token issuer. Raises ConfigError."""
    path = directory / TOKEN_KEY
    if _missing(directory, TOKEN_KEY):
        raise ConfigError(
            f"there is no token key {path}: start the CA once with "
            f"`remora ca serve --state-dir {directory}`, which makes it"
        )
    key = _load_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(f"token key {path} is not an EC P-256 key, as its algorithm ES256 needs")
    return key


def _create(directory: Path, trust_domain: TrustDomain, now: datetime) -> bool:
    """Make what is missing, under the lock. True if the root is new."""
    absent = _missing(directory, CA_KEY, CA_CERT, ROOT_CERT)
    if absent and len(absent) < 3:
        raise ConfigError(
            f"{directory} holds a part of a CA: {' and '.join(absent)} missing. Restore from a "
            "backup; only if this CA never issued anything, remove its *.pem files and start again"
        )
    if _missing(directory, TOKEN_KEY):
        token_key = ec.generate_private_key(ec.SECP256R1())
        write_private(directory / TOKEN_KEY, private_key_pem(token_key))
    if absent:
        _create_root(directory, trust_domain, now)
    return bool(absent)


def _create_root(directory: Path, trust_domain: TrustDomain, now: datetime) -> None:
    # P-256, where Istio's root is RSA-2048: every TLS stack in a mesh takes both, and it signs
    # ten times as fast.
    key = ec.generate_private_key(ec.SECP256R1())
    root = root_certificate(trust_domain, key, root_validity(now, ROOT_LIFE))
    check_authority(root, trust_domain=trust_domain, now=now)
    pem = certificates_pem([root])
    write_private(directory / CA_KEY, private_key_pem(key))
    write_private(directory / CA_CERT, pem, PUBLIC_MODE)
    write_private(directory / ROOT_CERT, pem, PUBLIC_MODE)


def _load_root(
    directory: Path, trust_domain: TrustDomain, now: datetime
) -> tuple[Signer, TrustBundle]:
    key = _load_key(directory / CA_KEY)
    path = directory / CA_CERT
    certificates = _load_certificates(path, "CA certificate")
    if len(certificates) != 1:
        raise ConfigError(f"{path} holds {len(certificates)} certificates, not one")
    certificate = certificates[0]
    if certificate.public_key() != key.public_key():
        raise ConfigError(
            f"{directory / CA_KEY} is not the key of {path}: the two files belong to different CAs"
        )
    _check_root(certificate, path, trust_domain, now)
    roots = _load_certificates(directory / ROOT_CERT, "root certificates")
    if certificate not in roots:
        raise ConfigError(
            f"{directory / ROOT_CERT} does not contain the certificate in {path}: nobody who "
            "trusts the one would trust what the other signs"
        )
    signer = Signer(certificate=certificate, key=key)
    return signer, TrustBundle.of(trust_domain, roots)


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


def _load_key(path: Path) -> PrivateKey:
    data = read_file(path, "key")
    if path.stat().st_mode & 0o007:
        raise ConfigError(
            f"key {path} is open to every user of this machine: run `chmod 600 {path}`"
        )
    try:
        return parse_private_key_pem(data)
    except InvalidSvid as error:
        raise ConfigError(f"{path} is {error}") from error


def _load_certificates(path: Path, what: str) -> tuple[x509.Certificate, ...]:
    try:
        return parse_certificates_pem(read_file(path, what))
    except InvalidSvid as error:
        raise ConfigError(f"{path} is {error}") from error


def _missing(directory: Path, *names: str) -> list[str]:
    try:
        present = {path.name for path in directory.iterdir()}
    except OSError as error:
        raise ConfigError(f"cannot read state directory {directory}: {error.strerror}") from error
    return [name for name in names if name not in present]


@contextmanager
def _locked(directory: Path) -> Generator[None]:
    """Hold the directory's lock, which the kernel drops if the process dies."""
    path = directory / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot write to state directory {directory}: {error.strerror}"
        ) from error
    try:
        _acquire(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"another process has held {path} for {LOCK_PATIENCE:.0f} s: "
                    "is another CA stuck while starting on this directory?"
                ) from None
            time.sleep(LOCK_INTERVAL)
        else:
            return
