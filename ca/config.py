"""What an operator may set, checked before anything is started."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509

from ca.authority import TtlLimits
from ca.cacerts import ROOT as PLUGGED_IN_ROOT
from ca.federation import Federation, parse_federation
from ca.oidc import check_url
from ca.rate_limit import DEFAULT_PER_IDENTITY, DEFAULT_TOTAL, Rate
from ca.state import ROOT_CERT
from ca.tokens import is_account_name
from mesh.address import Address
from mesh.api import CA_ACCOUNT, CA_DNS_NAME, TOKEN_AUDIENCE
from mesh.duration import format_duration, parse_duration
from mesh.errors import ConfigError
from mesh.files import read_file
from mesh.spiffe import InvalidSpiffeId, ServiceAccount, SpiffeId, TrustDomain, service_account_id

DEFAULT_TTL = timedelta(hours=24)
"""Istio: DEFAULT_WORKLOAD_CERT_TTL."""

DEFAULT_MAX_TTL = timedelta(hours=2160)
"""Istio: MAX_WORKLOAD_CERT_TTL."""

LONGEST_TTL = timedelta(days=3650)
"""As long as a self-signed root lives: nothing could live longer."""

MAX_RATE = 1_000_000
"""Certificates a second: a thousand times what one CA can sign."""

LONGEST_TOKEN_TTL = timedelta(days=365)
"""A token cannot be revoked alone, only all of them together, by replacing the token key."""

RESOURCES_DIR = "resources"
"""In the state directory, unless the operator names another place."""

OWN_NAMES = ("localhost", CA_DNS_NAME, "127.0.0.1", "::1")
"""The serving certificate's names on one machine, and the one that Istio's agents expect."""

NO_FEDERATION = Federation()

_DNS_LABEL = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"{_DNS_LABEL}(\.{_DNS_LABEL})*")
MAX_DNS_NAME = 253
"""RFC 1123, section 2.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaConfig:
    """The settings of `remora ca serve`. Raises ConfigError for any that cannot work."""

    state_dir: Path
    listen: Address
    trust_domain: TrustDomain
    dns_names: tuple[str, ...] = ()
    ca_certs: Path | None = None
    default_ttl: timedelta = DEFAULT_TTL
    max_ttl: timedelta = DEFAULT_MAX_TTL
    jwks: Path | None = None
    jwks_url: str | None = None
    jwks_issuer: str | None = None
    oidc_issuer: str | None = None
    issuer_ca: Path | None = None
    token_audiences: tuple[str, ...] = (TOKEN_AUDIENCE,)
    metrics_listen: Address | None = None
    federation: Federation = NO_FEDERATION
    trusted_nodes: tuple[ServiceAccount, ...] = ()
    rate_limit: Rate | None = DEFAULT_TOTAL
    identity_rate_limit: Rate | None = DEFAULT_PER_IDENTITY
    resources: Path | None = None

    def __post_init__(self) -> None:
        """Check what each field's type does not."""
        _check_ttl("--workload-cert-ttl", self.default_ttl)
        _check_ttl("--max-workload-cert-ttl", self.max_ttl)
        if self.default_ttl > self.max_ttl:
            raise ConfigError(
                f"--workload-cert-ttl {format_duration(self.default_ttl)} is longer than "
                f"--max-workload-cert-ttl {format_duration(self.max_ttl)}"
            )
        if not self.token_audiences or not all(self.token_audiences):
            raise ConfigError("--token-audience must not be empty: name what tokens are made for")
        self._check_issuers()
        general_names(self.dns_names)

    @property
    def root_cert(self) -> Path:
        """The file of roots that agents need."""
        if self.ca_certs is None:
            return self.state_dir / ROOT_CERT
        return self.ca_certs / PLUGGED_IN_ROOT

    def _check_issuers(self) -> None:
        if self.jwks_issuer is not None and self.jwks is None and self.jwks_url is None:
            raise ConfigError("--jwks-issuer says whose keys --jwks holds: give --jwks too")
        if self.jwks_url is not None:
            check_url(self.jwks_url, "--jwks")
        if self.oidc_issuer is not None:
            check_url(self.oidc_issuer, "--oidc-issuer")
        if self.issuer_ca is not None and self.jwks_url is None and self.oidc_issuer is None:
            raise ConfigError("--issuer-ca is for keys fetched from a URL: give --oidc-issuer too")

    @property
    def resources_dir(self) -> Path:
        """The directory of policies and services."""
        return self.resources or self.state_dir / RESOURCES_DIR

    @property
    def identity(self) -> SpiffeId:
        """The CA's own identity, by which agents know its server."""
        return service_account_id(self.trust_domain, ServiceAccount.parse(CA_ACCOUNT))

    @property
    def server_names(self) -> tuple[x509.GeneralName, ...]:
        """Every name besides the identity in the serving certificate."""
        return general_names(dict.fromkeys((*OWN_NAMES, *self.dns_names)))

    @property
    def ttl_limits(self) -> TtlLimits:
        """The lives of workload certificates."""
        return TtlLimits(default=self.default_ttl, maximum=self.max_ttl)


def read_federation(path: Path, own: TrustDomain) -> Federation:
    """Read the operator's federation file. Raises ConfigError."""
    return parse_federation(read_file(path, "federation file"), path, own)


def parse_node_accounts(texts: Sequence[str]) -> tuple[ServiceAccount, ...]:
    """Parse the accounts of nodes that may act for their workloads. Raises ConfigError."""
    try:
        return tuple(ServiceAccount.parse(text) for text in texts)
    except InvalidSpiffeId as error:
        raise ConfigError(f"--trusted-node-account: {error}") from error


def parse_trust_domain(text: str) -> TrustDomain:
    """Parse the operator's trust domain. Raises ConfigError."""
    try:
        return TrustDomain.parse(text)
    except InvalidSpiffeId as error:
        raise ConfigError(f"--trust-domain: {error}") from error


def general_names(texts: Sequence[str] | dict[str, None]) -> tuple[x509.GeneralName, ...]:
    """Turn host names and IP literals into SANs. Raises ConfigError."""
    return tuple(_general_name(text) for text in texts)


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        pass
    if len(text) > MAX_DNS_NAME or not _DNS_NAME.fullmatch(text):
        raise ConfigError(
            f"--dns-name {text[:80]!r} is neither a host name in lower case nor an IP address"
        )
    return x509.DNSName(text)


def _check_ttl(flag: str, ttl: timedelta) -> None:
    if not timedelta(seconds=1) <= ttl <= LONGEST_TTL or ttl.microseconds:
        raise ConfigError(
            f"{flag} {format_duration(ttl)} cannot be used: give whole seconds, "
            f"from 1s to {format_duration(LONGEST_TTL)}"
        )


def split_jwks(text: str | None) -> tuple[Path | None, str | None]:
    """Tell the path of a key set from its URL; one of the two is None."""
    if text is None:
        return None, None
    return (None, text) if "://" in text else (Path(text), None)


def parse_rate(flag: str, per_second: float, default: Rate) -> Rate | None:
    """Return the rate an operator set; 0 is no limit. Raises ConfigError.

    The burst keeps its proportion to the rate.
    """
    if not 0 <= per_second <= MAX_RATE:
        raise ConfigError(f"{flag} {per_second:g} cannot be used: give 0 to {MAX_RATE}")
    if per_second == 0:
        return None
    burst = max(round(per_second * default.burst / default.per_second), 1)
    return Rate(per_second=per_second, burst=burst)


def parse_account(text: str) -> ServiceAccount:
    """Parse the `NAMESPACE/NAME` that a token shall speak for. Raises ConfigError."""
    try:
        account = ServiceAccount.parse(text)
    except InvalidSpiffeId as error:
        raise ConfigError(f"--service-account: {error}") from error
    if not is_account_name(account):
        raise ConfigError(
            f"--service-account {text[:80]!r}: namespace and name are made of a-z, 0-9 and dashes, "
            "as Kubernetes has them"
        )
    return account


def parse_audience(text: str) -> str:
    """Return the audience of a token. Raises ConfigError."""
    if not text:
        raise ConfigError("--audience must not be empty: name what the token is made for")
    return text


def parse_token_ttl(text: str) -> timedelta:
    """Parse the life of a token. Raises ConfigError."""
    ttl = parse_duration(text)
    if not timedelta(seconds=1) <= ttl <= LONGEST_TOKEN_TTL:
        raise ConfigError(
            f"--ttl {text} cannot be used: give 1s to {format_duration(LONGEST_TOKEN_TTL)}"
        )
    return ttl
