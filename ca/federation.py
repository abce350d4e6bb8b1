"""The federation file: where our bundle is served, and which trust domains we fetch bundles of.

SPIFFE Federation, sections 3 to 5. Everything is said outright: the URL, the profile by which its
server proves itself, the trust domain; nothing is learned from what is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from mesh.address import Address
from mesh.errors import ConfigError
from mesh.resources.decode import read_value, reader_of
from mesh.resources.errors import ResourceError, UnreadableDocument
from mesh.resources.problem import Finding
from mesh.resources.tree import Node, line_of, show_path
from mesh.resources.values import Text, Value
from mesh.resources.yaml_text import read_documents
from mesh.spiffe import InvalidSpiffeId, SpiffeId, TrustDomain

HTTPS_PORT = 443

MAX_NAME = 200
"""Characters of a foreign trust domain: its bundle is kept in a file of that name."""


class Profile(StrEnum):
    """How the server of a bundle endpoint proves itself (SPIFFE Federation, 5.2)."""

    WEB = "https_web"
    SPIFFE = "https_spiffe"


class FederationInvalid(ConfigError):
    """The federation file cannot be used."""

    reason: ClassVar[str] = "federation_invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointUrl:
    """Where a bundle is fetched."""

    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, text: str) -> EndpointUrl:
        """Parse an https URL without user or fragment. Raises FederationInvalid."""
        try:
            parts = urlsplit(text)
            port = parts.port or HTTPS_PORT
        except ValueError as error:
            raise FederationInvalid(f"{text[:120]!r} is not a URL: {error}") from error
        odd = any(not 0x20 < ord(character) < 0x7F for character in text)
        if odd or parts.scheme != "https" or not parts.hostname:
            raise FederationInvalid(f"{text[:120]!r} is not an https URL with a host")
        if parts.username is not None or parts.password is not None or parts.fragment:
            raise FederationInvalid(f"{text[:120]!r} must have neither user nor fragment")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(host=parts.hostname, port=port, target=target)

    @property
    def authority(self) -> str:
        """Host and port, as an HTTP request names them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == HTTPS_PORT else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"https://{self.authority}{self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Relationship:
    """A trust domain whose bundle we fetch.

    With `https_spiffe` the server must be `endpoint_id`, by the roots in `trust_bundle` at first
    and by the newest that was fetched later. With `https_web` it must be the URL's host, by the
    roots in the PEM file `web_roots`, or the system's.
    """

    trust_domain: TrustDomain
    url: EndpointUrl
    profile: Profile
    endpoint_id: SpiffeId | None = None
    trust_bundle: Path | None = None
    web_roots: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where our own bundle is served: `https_web` with a certificate in files, else our SVID."""

    listen: Address
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """All that the file says."""

    endpoint: Endpoint | None = None
    relationships: tuple[Relationship, ...] = ()


class _Endpoint(Value, frozen=True, kw_only=True):
    listen: Text
    certificate: str = ""
    key: str = ""


class _Relationship(Value, frozen=True, kw_only=True):
    trust_domain: Text
    url: Text
    profile: Profile
    endpoint_spiffe_id: str = ""
    trust_bundle: str = ""
    web_roots: str = ""


class _File(Value, frozen=True, kw_only=True):
    bundle_endpoint: _Endpoint | None = None
    federates_with: tuple[_Relationship, ...] = ()


_READER = reader_of(_File)


def parse_federation(data: bytes, path: Path, own: TrustDomain) -> Federation:
    """Read a federation file of the CA of `own`; files it names are relative to its folder.

    Raises FederationInvalid with one line for each thing wrong.
    """
    document = _document(data, path)
    file, findings = read_value(_READER, _File, document, ())
    endpoint: Endpoint | None = None
    relationships: list[Relationship] = []
    if file is not None:
        endpoint = _endpoint(file.bundle_endpoint, path.parent, findings)
        for index, raw in enumerate(file.federates_with):
            try:
                relationships.append(_relationship(raw, path.parent, own))
            except (ConfigError, InvalidSpiffeId) as error:
                findings.append(Finding(("federatesWith", index), str(error)))
        names = [one.trust_domain for one in relationships]
        if len(set(names)) < len(names):
            findings.append(Finding(("federatesWith",), "names a trust domain twice"))
    if findings:
        raise FederationInvalid(
            "\n".join(
                f"{path}:{line_of(document, found.path)}: {show_path(found.path)}: {found.message}"
                for found in findings
            )
        )
    return Federation(endpoint=endpoint, relationships=tuple(relationships))


def _document(data: bytes, path: Path) -> Node:
    try:
        documents = list(read_documents(data.decode("utf-8")))
    except (ResourceError, UnicodeDecodeError) as error:
        raise FederationInvalid(f"federation file {path}: {error}") from error
    if len(documents) != 1:
        raise FederationInvalid(f"federation file {path} has {len(documents)} documents, not one")
    [document] = documents
    if isinstance(document, UnreadableDocument):
        raise FederationInvalid(f"{path}:{document.line}: {document}")
    return document


def _endpoint(raw: _Endpoint | None, folder: Path, findings: list[Finding]) -> Endpoint | None:
    if raw is None:
        return None
    if bool(raw.certificate) != bool(raw.key):
        findings.append(Finding(("bundleEndpoint",), "certificate and key go together"))
        return None
    try:
        listen = Address.parse(raw.listen)
    except ConfigError as error:
        findings.append(Finding(("bundleEndpoint", "listen"), str(error)))
        return None
    if not raw.certificate:
        return Endpoint(listen=listen)
    return Endpoint(listen=listen, certificate=folder / raw.certificate, key=folder / raw.key)


def _relationship(raw: _Relationship, folder: Path, own: TrustDomain) -> Relationship:
    domain = TrustDomain.parse(raw.trust_domain)
    if len(domain.name) > MAX_NAME:
        raise FederationInvalid(f"the trust domain has more than {MAX_NAME} characters")
    if domain == own:
        raise FederationInvalid(f"{domain} is our own trust domain")
    if raw.profile is Profile.WEB and (raw.endpoint_spiffe_id or raw.trust_bundle):
        raise FederationInvalid("endpointSpiffeId and trustBundle are for the profile https_spiffe")
    if raw.profile is Profile.SPIFFE and not (raw.endpoint_spiffe_id and raw.trust_bundle):
        raise FederationInvalid("the profile https_spiffe needs endpointSpiffeId and trustBundle")
    if raw.profile is Profile.SPIFFE and raw.web_roots:
        raise FederationInvalid("webRoots are for the profile https_web")
    endpoint_id = SpiffeId.parse(raw.endpoint_spiffe_id) if raw.endpoint_spiffe_id else None
    if endpoint_id is not None and endpoint_id.trust_domain != domain:
        # SPIFFE allows it; then a third domain's roots would decide over the trust in this one.
        raise FederationInvalid(f"endpointSpiffeId {endpoint_id} is not of trust domain {domain}")
    return Relationship(
        trust_domain=domain,
        url=EndpointUrl.parse(raw.url),
        profile=raw.profile,
        endpoint_id=endpoint_id,
        trust_bundle=folder / raw.trust_bundle if raw.trust_bundle else None,
        web_roots=folder / raw.web_roots if raw.web_roots else None,
    )
