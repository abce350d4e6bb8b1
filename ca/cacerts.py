"""A CA that is plugged in: key and certificates made elsewhere, in Istio's `cacerts` layout.

Judged before anything is signed with it, and again at every change. Pure but for
`load_plugged_in`, which reads the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.extensions import ExtensionNotFound

from ca.errors import PluggedInCaUnusable
from ca.template import Signer
from mesh.bundle import InvalidBundle, TrustBundle
from mesh.errors import ConfigError
from mesh.files import read_file
from mesh.revocation import RevocationList, is_of, parse_lists_pem
from mesh.spiffe import TrustDomain
from mesh.svid import (
    UNREADABLE,
    InvalidSvid,
    parse_certificates_pem,
    parse_private_key_pem,
    subject_text,
)
from mesh.verify import PeerRejected, validate_path

CERT, KEY, ROOT, CHAIN, CRL = (
    "ca-cert.pem",
    "ca-key.pem",
    "root-cert.pem",
    "cert-chain.pem",
    "ca-crl.pem",
)
"""Istio's names; the last one is optional."""

TLS_CERT, TLS_KEY, TLS_ROOT = "tls.crt", "tls.key", "ca.crt"
"""The names of a Kubernetes secret of type kubernetes.io/tls, as cert-manager writes it; the first
file holds the whole chain."""

ISTIO_LAYOUT = (CERT, KEY, ROOT, CHAIN)
TLS_LAYOUT = (TLS_CERT, TLS_KEY, TLS_ROOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluggedInFiles:
    """The content of the files; `chain` and `crl` may be absent."""

    cert: bytes
    key: bytes
    root: bytes
    chain: bytes | None = None
    crl: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PluggedInCa:
    """A CA that passed all checks.

    `intermediates` lead from a leaf to the roots, the signer's own certificate first; none if the
    signer is itself a root.
    """

    signer: Signer
    intermediates: tuple[x509.Certificate, ...]
    roots: TrustBundle
    revoked: tuple[RevocationList, ...] = ()


def load_plugged_in(directory: Path, trust_domain: TrustDomain, now: datetime) -> PluggedInCa:
    """Read and judge the CA in `directory`. Blocks. Raises ConfigError."""
    return check_plugged_in(read_plugged_in(directory), trust_domain, now)


def read_plugged_in(directory: Path) -> PluggedInFiles:
    """Read the files of either layout. Raises ConfigError if some are missing."""
    try:
        present = {path.name for path in directory.iterdir()}
    except OSError as error:
        raise ConfigError(f"cannot read --ca-certs {directory}: {error.strerror}") from error
    layout = chosen_layout(present, str(directory))
    content = {name: read_file(directory / name, "CA file") for name in layout}
    if CRL in present:
        content[CRL] = read_file(directory / CRL, "revocation lists")
    return _files(content)


def chosen_layout(present: set[str], where: str) -> tuple[str, ...]:
    """Return the names of the layout that is there, whole. Raises PluggedInCaUnusable.

    A part of a CA is an error: a CA that then made itself a root would cut off its mesh.
    """
    for layout in (ISTIO_LAYOUT, TLS_LAYOUT):
        if present.issuperset(layout):
            return layout
    for layout in (ISTIO_LAYOUT, TLS_LAYOUT):
        if not present.isdisjoint(layout):
            absent = [name for name in layout if name not in present]
            raise PluggedInCaUnusable(
                f"{where} holds a part of a CA: {' and '.join(absent)} missing"
            )
    raise PluggedInCaUnusable(
        f"{where} holds no CA: put {', '.join(ISTIO_LAYOUT)} there, or {', '.join(TLS_LAYOUT)}"
    )


def check_plugged_in(
    files: PluggedInFiles, trust_domain: TrustDomain, now: datetime
) -> PluggedInCa:
    """Judge a CA by Istio's start-up checks and RFC 5280. Raises PluggedInCaUnusable."""
    certificate, *more = _certificates(files.cert, CERT)
    signer = _signer(certificate, files.key)
    chain = list(dict.fromkeys([certificate, *more, *_optional_chain(files.chain)]))
    roots = _roots(files.root, trust_domain)
    _check_ca(certificate)
    try:
        validate_path(chain, roots, now)
    except PeerRejected as error:
        raise PluggedInCaUnusable(
            f"{CERT} does not lead to {ROOT} through {CHAIN}: {error}"
        ) from error
    intermediates = tuple(link for link in chain if not _is_self_signed(link))
    _check_times(intermediates, now)
    lists = () if files.crl is None else _revocation_lists(files.crl)
    if files.crl is not None:
        _check_coverage(lists, intermediates, roots)
    return PluggedInCa(signer=signer, intermediates=intermediates, roots=roots, revoked=lists)


def _files(content: Mapping[str, bytes]) -> PluggedInFiles:
    if CERT in content:
        return PluggedInFiles(
            cert=content[CERT],
            key=content[KEY],
            root=content[ROOT],
            chain=content[CHAIN],
            crl=content.get(CRL),
        )
    return PluggedInFiles(
        cert=content[TLS_CERT],
        key=content[TLS_KEY],
        root=content[TLS_ROOT],
        crl=content.get(CRL),
    )


def _signer(certificate: x509.Certificate, key_pem: bytes) -> Signer:
    try:
        key = parse_private_key_pem(key_pem)
    except InvalidSvid as error:
        raise PluggedInCaUnusable(f"{KEY} is {error}") from error
    if certificate.public_key() != key.public_key():
        raise PluggedInCaUnusable(
            f"{KEY} is not the key of {CERT}: the two files belong to different CAs"
        )
    return Signer(certificate=certificate, key=key)


def _optional_chain(pem: bytes | None) -> Sequence[x509.Certificate]:
    """Read the chain file, which is empty where the root signed directly."""
    return () if pem is None or not pem.strip() else _certificates(pem, CHAIN)


def _certificates(pem: bytes, name: str) -> tuple[x509.Certificate, ...]:
    try:
        return parse_certificates_pem(pem)
    except InvalidSvid as error:
        raise PluggedInCaUnusable(f"{name} is {error}") from error


def _roots(pem: bytes, trust_domain: TrustDomain) -> TrustBundle:
    try:
        return TrustBundle.from_pem(trust_domain, pem)
    except InvalidBundle as error:
        raise PluggedInCaUnusable(f"{ROOT}: {error}") from error


def _check_ca(certificate: x509.Certificate) -> None:
    """Check that the certificate may sign others.

    Only that: Istio's own tools make intermediates with more usages and a DNS name.
    """
    try:
        extensions = certificate.extensions
        basic = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except (ExtensionNotFound, *UNREADABLE) as error:
        raise PluggedInCaUnusable(
            f"{CERT} lacks readable basic constraints and key usage, which a CA must have"
        ) from error
    if not basic.ca:
        raise PluggedInCaUnusable(f"{CERT} is not a CA certificate (cA is not set)")
    if not usage.key_cert_sign:
        raise PluggedInCaUnusable(f"{CERT} may not sign certificates (no keyCertSign)")


def _check_times(chain: Sequence[x509.Certificate], now: datetime) -> None:
    """Check every link, also those that no path to a root needed."""
    for link in chain:
        if not link.not_valid_before_utc <= now < link.not_valid_after_utc:
            raise PluggedInCaUnusable(
                f"{subject_text(link)!r} in {CHAIN} is valid from {link.not_valid_before_utc} to "
                f"{link.not_valid_after_utc}, and it is {now}: put a new one there"
            )


def _is_self_signed(certificate: x509.Certificate) -> bool:
    return certificate.subject == certificate.issuer


def _revocation_lists(pem: bytes) -> tuple[RevocationList, ...]:
    try:
        return parse_lists_pem(pem)
    except ValueError as error:
        raise PluggedInCaUnusable(f"{CRL} cannot be read: {error}") from error


def _check_coverage(
    lists: Sequence[RevocationList],
    chain: Sequence[x509.Certificate],
    roots: TrustBundle,
) -> None:
    """Check that there is a list of every CA that signed a part of the chain.

    A verifier that checks revocation at all refuses what no list is about.
    """
    issuers = [*chain, *roots.authorities]
    for link in chain:
        if not any(_is_from(one, link, issuers) for one in lists):
            raise PluggedInCaUnusable(
                f"{CRL} has no valid list of {link.issuer.rfc4514_string()!r}, which signed "
                f"{subject_text(link)!r}: add it, or remove the file"
            )


def _is_from(
    one: RevocationList, link: x509.Certificate, issuers: Sequence[x509.Certificate]
) -> bool:
    """Tell whether a list is of the CA that signed `link`, by name and by signature."""
    return any(issuer.subject == link.issuer and is_of(one, issuer) for issuer in issuers)
