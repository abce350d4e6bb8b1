"""What an operator may set, checked before anything is started."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from mesh.address import Address, check_host
from mesh.api import CA_ACCOUNT, CA_PORT
from mesh.bundle import InvalidBundle, TrustBundle
from mesh.duration import format_duration
from mesh.errors import ConfigError
from mesh.files import read_file
from mesh.spiffe import (
    SCHEME,
    InvalidSpiffeId,
    ServiceAccount,
    SpiffeId,
    TrustDomain,
    service_account_id,
)

DEFAULT_SECRET_TTL = timedelta(hours=24)
"""Istio: SECRET_TTL."""

LONGEST_SECRET_TTL = timedelta(days=3650)
"""As long as a self-signed root lives: no CA could issue for longer."""

LARGEST_UID = 2**32 - 2
"""The kernel's uid_t has 32 bits, and all of them set means "nobody in particular"."""

_DNS_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS_NAME = re.compile(rf"{_DNS_LABEL}(\.{_DNS_LABEL})*")
MAX_DNS_NAME = 253
"""RFC 1123, section 2.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaAddress:
    """Where the CA listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> CaAddress:
        """Parse `HOST[:PORT]` or `[V6][:PORT]`; the port is Istio's without one.

        Raises ConfigError.
        """
        match = re.fullmatch(
            r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?", text
        )
        if match is None:
            raise ConfigError(f"--ca-address {text!r} is no address: write HOST:PORT or [V6]:PORT")
        port = int(match["port"] or CA_PORT)
        if not 1 <= port <= 65535:
            raise ConfigError(f"--ca-address {text!r} has no port between 1 and 65535")
        host = match["v6"] or match["host"]
        check_host(host, f"--ca-address {text}")
        return cls(host=host, port=port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


CaName = SpiffeId | str
"""What the CA's certificate must name: a SPIFFE ID, or a DNS name as a real istiod's has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """The settings of `remora agent run`. Raises ConfigError for any that cannot work.

    Without `account` the identity is read from the token. A token file may appear later; the CA's
    roots must be there, because nothing can be asked of a CA that cannot be told from another.
    With `registration` the agent serves a whole node, and `token_file` is the node's own.
    """

    ca_address: CaAddress
    ca_name: CaName
    ca_root_cert: Path
    token_file: Path
    socket: Path
    trust_domain: TrustDomain
    account: ServiceAccount | None = None
    secret_ttl: timedelta = DEFAULT_SECRET_TTL
    allow_uids: tuple[int, ...] = ()
    registration: Path | None = None
    output_certs: Path | None = None
    prov_cert: Path | None = None
    status_listen: Address | None = None

    def __post_init__(self) -> None:
        """Check what each field's type does not."""
        ttl = self.secret_ttl
        if not timedelta(seconds=1) <= ttl <= LONGEST_SECRET_TTL or ttl.microseconds:
            raise ConfigError(
                f"--secret-ttl {format_duration(ttl)} cannot be used: give whole seconds, "
                f"from 1s to {format_duration(LONGEST_SECRET_TTL)}"
            )
        _check_uids(self.allow_uids)
        if self.registration is not None and (self.allow_uids or self.account):
            raise ConfigError(
                "--registration says who gets what: leave out --allow-uid and --service-account"
            )
        if self.registration is not None and (self.output_certs or self.prov_cert):
            raise ConfigError(
                "--output-certs and --prov-cert are for one identity: leave out --registration"
            )
        load_ca_bundle(self.ca_root_cert, self.ca_name, self.trust_domain)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountedConfig:
    """The settings of an agent that serves certificates from files, and asks no CA."""

    directory: Path
    socket: Path
    trust_domain: TrustDomain
    allow_uids: tuple[int, ...] = ()
    status_listen: Address | None = None

    def __post_init__(self) -> None:
        """Check what each field's type does not."""
        _check_uids(self.allow_uids)


def _check_uids(uids: Sequence[int]) -> None:
    for uid in uids:
        if not 0 <= uid <= LARGEST_UID:
            raise ConfigError(f"--allow-uid {uid} is no user id")


_Given = TypeVar("_Given")


def required(flag: str, value: _Given | None) -> _Given:
    """Return what was given by a flag that only some forms can do without. Raises ConfigError."""
    if value is None:
        raise ConfigError(
            f"give {flag}: an agent needs its CA, unless --file-mounted-certs says where "
            "certificates are"
        )
    return value


def load_ca_bundle(path: Path, name: CaName, trust_domain: TrustDomain) -> TrustBundle:
    """Read the roots that vouch for the CA's server. Raises ConfigError.

    They speak for the trust domain of the CA's own ID, which may be another than the workloads'.
    """
    domain = name.trust_domain if isinstance(name, SpiffeId) else trust_domain
    try:
        return TrustBundle.from_pem(domain, read_file(path, "CA root certificate file"))
    except InvalidBundle as error:
        raise ConfigError(f"CA root certificate file {path}: {error}") from error


def parse_ca_name(text: str | None, trust_domain: TrustDomain) -> CaName:
    """Parse the name expected of the CA, by default Istio's own account. Raises ConfigError."""
    if text is None:
        return service_account_id(trust_domain, ServiceAccount.parse(CA_ACCOUNT))
    if text.startswith(SCHEME):
        try:
            return SpiffeId.parse(text)
        except InvalidSpiffeId as error:
            raise ConfigError(f"--ca-name: {error}") from error
    if len(text) > MAX_DNS_NAME or not _DNS_NAME.fullmatch(text):
        raise ConfigError(f"--ca-name {text[:80]!r} is neither a SPIFFE ID nor a DNS name")
    return text


def parse_trust_domain(text: str) -> TrustDomain:
    """Parse the operator's trust domain. Raises ConfigError."""
    try:
        return TrustDomain.parse(text)
    except InvalidSpiffeId as error:
        raise ConfigError(f"--trust-domain: {error}") from error


def parse_account(text: str | None) -> ServiceAccount | None:
    """Parse the operator's `NAMESPACE/NAME`. Raises ConfigError."""
    if text is None:
        return None
    try:
        return ServiceAccount.parse(text)
    except InvalidSpiffeId as error:
        raise ConfigError(f"--service-account: {error}") from error
