"""What an operator may set, checked before anything is started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path

from mesh.address import Address
from mesh.duration import parse_duration
from mesh.errors import ConfigError
from mesh.resources.values import Labels
from mesh.spiffe import InvalidSpiffeId, SpiffeId, TrustDomain
from proxy.captured import Captured
from proxy.mode import MtlsMode
from proxy.relayed import Limits

PLAINTEXT = "plaintext"
"""What stands for a destination that is reached without TLS, on purpose."""

DETECT_TIMEOUT = timedelta(seconds=5)
"""For the first bytes. Istio waits for ever by default, and server-first protocols hang there."""

CONNECT_TIMEOUT = timedelta(seconds=10)
"""Istio: for TCP and TLS together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """A way in: where peers connect, the app behind it, and what the port takes.

    Without a mode that is the control plane's to decide. `captured` says that peers connect to the
    app's own port, and are redirected here.
    """

    listen: Address
    app: Address
    mode: MtlsMode | None = None
    captured: bool = False

    @property
    def workload_port(self) -> int:
        """The port by which policies and the registry know this way in.

        Peers, and so the registry, know the port that they connect to. A flag is for the app's.
        """
        if self.mode is not None or self.captured:
            return self.app.port
        return self.listen.port or self.app.port


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """A way out: where the app connects, where that leads, and who must be there.

    `captured` says that the app chose the destination itself, and this proxy only saw it.

    No identities at all means plaintext; None leaves it to the registry who must be there, and how
    to reach them.
    """

    listen: Address
    destination: Address
    identities: frozenset[SpiffeId] | None = None
    captured: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """How the proxy introduces itself to the control plane, which then decides its policy.

    `addresses` are where others reach the workload. The last good configuration is kept in
    `state_dir`, None keeps nothing. `group` names the WorkloadGroup to register under.
    """

    name: str
    labels: Labels = field(default_factory=dict[str, str])
    group: str = ""
    addresses: tuple[str, ...] = ()
    state_dir: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """The settings of `remora proxy run`; timeouts in seconds.

    Without `discovery` every port says itself what it takes and who must be at its end.
    """

    agent_socket: Path
    inbound: tuple[Inbound, ...] = ()
    outbound: tuple[Outbound, ...] = ()
    captured: Captured | None = None
    discovery: Discovery | None = None
    trust_domain_aliases: frozenset[TrustDomain] = frozenset()
    federated_trust_domains: frozenset[TrustDomain] = frozenset()
    detect_timeout: float = DETECT_TIMEOUT.total_seconds()
    connect_timeout: float = CONNECT_TIMEOUT.total_seconds()
    metrics_listen: Address | None = None
    shared_ports: bool = False
    """Other processes with this configuration listen on the same ports."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises ConfigError."""
        if not self.inbound and not self.outbound and self.captured is None:
            raise ConfigError("there is nothing to do: give --inbound, --outbound or --capture")
        _refuse_repeated(
            [port.listen for port in self.inbound] + [port.listen for port in self.outbound]
        )
        if self.discovery is None:
            _refuse_open_questions(self)
        if self.detect_timeout <= 0 or self.connect_timeout <= 0:
            raise ConfigError("--detect-timeout and --connect-timeout must be longer than zero")
        if self.shared_ports:
            _refuse_what_cannot_be_shared(self)


def _refuse_what_cannot_be_shared(config: ProxyConfig) -> None:
    """Raise ConfigError for what several processes would do to each other."""
    listens = [port.listen for port in config.inbound] + [port.listen for port in config.outbound]
    if config.metrics_listen is not None:
        raise ConfigError(
            "several workers would answer in turn, each for itself: leave out --workers, or "
            "--metrics-listen"
        )
    if any(listen.port == 0 for listen in listens):
        raise ConfigError(
            "with several workers a port of 0 would be another one for each: name the ports"
        )
    if config.discovery is not None and (config.discovery.state_dir or config.discovery.group):
        raise ConfigError(
            "several workers would write the same files and register one workload several times: "
            "leave out --workers, or --state-dir and --workload-group"
        )


def parse_limits(idle: str, age: str | None) -> Limits:
    """Parse `--idle-timeout` and `--max-connection-age`. Raises ConfigError."""
    limits = Limits(
        idle=parse_duration(idle).total_seconds(),
        age=None if age is None else parse_duration(age).total_seconds(),
    )
    if limits.idle <= 0 or (limits.age is not None and limits.age <= 0):
        raise ConfigError("--idle-timeout and --max-connection-age must be longer than zero")
    return limits


def parse_inbound(
    flags: Sequence[str],
    mode: MtlsMode | None,
    port_modes: Mapping[int, MtlsMode],
    *,
    elsewhere: bool = False,
) -> tuple[Inbound, ...]:
    """Parse `--inbound LISTEN=APP` flags. Modes of single ports go by the app's port, as Istio's.

    Without a mode the control plane decides. `elsewhere` says that ports without a flag are served
    too. Raises ConfigError.
    """
    ports: list[Inbound] = []
    for flag in flags:
        listen, equals, app = flag.partition("=")
        if not equals:
            raise ConfigError(
                f"--inbound {flag!r}: write LISTEN=APP, such as 0.0.0.0:8443=127.0.0.1:8080"
            )
        where = _app_address(app, flag)
        own = port_modes.get(where.port, mode)
        ports.append(Inbound(listen=Address.parse(listen), app=where, mode=own))
    served = port_modes.keys() if elsewhere else {port.app.port for port in ports}
    for unknown in sorted(port_modes.keys() - served):
        raise ConfigError(
            f"--port-mtls {unknown}=...: no --inbound leads to an app on port {unknown}"
        )
    return tuple(ports)


def _app_address(text: str, flag: str) -> Address:
    address = Address.parse(text)
    if address.port == 0:
        raise ConfigError(f"--inbound {flag!r}: the app's port cannot be 0")
    return address


def parse_port_modes(flags: Sequence[str]) -> dict[int, MtlsMode]:
    """Parse `--port-mtls PORT=MODE` flags. Raises ConfigError."""
    modes: dict[int, MtlsMode] = {}
    for flag in flags:
        port, equals, mode = flag.partition("=")
        if not equals or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"--port-mtls {flag!r}: write PORT=MODE, such as 8080=PERMISSIVE")
        if int(port) in modes:
            raise ConfigError(f"--port-mtls: port {port} is given twice")
        modes[int(port)] = parse_mode(mode)
    return modes


def parse_mode(text: str) -> MtlsMode:
    """Parse a mode, written as Istio writes it. Raises ConfigError, naming the nearest mode."""
    try:
        return MtlsMode(text)
    except ValueError as error:
        near = get_close_matches(text.upper(), list(MtlsMode), n=1)
        hint = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(MtlsMode)}"
        raise ConfigError(f"{text!r} is not a mutual TLS mode: {hint}") from error


def parse_outbound(flags: Sequence[str]) -> tuple[Outbound, ...]:
    """Parse `--outbound LISTEN=DESTINATION[@ID[,ID]]` flags. Raises ConfigError."""
    return tuple(_outbound(flag) for flag in flags)


def _outbound(flag: str) -> Outbound:
    listen, equals, rest = flag.partition("=")
    destination, at, who = rest.partition("@")
    if not equals or not destination or bool(at) != bool(who):
        raise ConfigError(
            f"--outbound {flag!r}: write LISTEN=DESTINATION to go by the registry, such as "
            "127.0.0.1:9000=httpbin.foo:8000; or LISTEN=DESTINATION@SPIFFE_ID[,SPIFFE_ID], such as "
            "127.0.0.1:9000=10.0.0.2:8443@spiffe://cluster.local/ns/foo/sa/httpbin; "
            f"or @{PLAINTEXT} to go without TLS"
        )
    identities: frozenset[SpiffeId] | None = None
    if at:
        identities = frozenset()
        if who != PLAINTEXT:
            identities = frozenset(
                parse_identity(text, f"--outbound {flag!r}") for text in who.split(",")
            )
    target = Address.parse(destination)
    if target.port == 0:
        raise ConfigError(f"--outbound {flag!r}: the destination's port cannot be 0")
    return Outbound(listen=Address.parse(listen), destination=target, identities=identities)


def parse_identity(text: str, flag: str) -> SpiffeId:
    """Parse the SPIFFE ID of a workload. Raises ConfigError, which begins with `flag`."""
    try:
        identity = SpiffeId.parse(text)
    except InvalidSpiffeId as error:
        raise ConfigError(f"{flag}: {error}") from error
    if not identity.path:
        raise ConfigError(f"{flag}: {text} names a trust domain, not a workload")
    return identity


def parse_trust_domains(flags: Iterable[str]) -> frozenset[TrustDomain]:
    """Parse `--trust-domain-alias` flags. Raises ConfigError."""
    try:
        return frozenset(TrustDomain.parse(flag) for flag in flags)
    except InvalidSpiffeId as error:
        raise ConfigError(f"--trust-domain-alias: {error}") from error


def parse_discovery(
    *,
    needed: bool,
    standalone: bool,
    name: str,
    labels: Iterable[str],
    group: str,
    addresses: Iterable[str],
    state_dir: Path | None,
    default_name: str,
) -> Discovery | None:
    """Read the flags that are for the control plane; None for a proxy that has no use for one.

    That is one whose modes are flags (`standalone`), and one that leaves no question open (not
    `needed`). Raises ConfigError, also for flags that could have no effect.
    """
    found = Discovery(
        name=name or default_name,
        labels=_labels(labels),
        group=group,
        addresses=_addresses(addresses),
        state_dir=state_dir,
    )
    given = bool(name or found.labels or group or found.addresses or state_dir)
    if not standalone:
        return found if needed or given else None
    if given:
        raise ConfigError(
            "--name, --label, --workload-group, --address and --state-dir are for the control "
            "plane, and --mtls-mode and --port-mtls leave it out: give either, not both"
        )
    return None


def _labels(flags: Iterable[str]) -> Labels:
    labels: dict[str, str] = {}
    for flag in flags:
        key, equals, value = flag.partition("=")
        if not equals or not key:
            raise ConfigError(f"--label {flag!r}: write KEY=VALUE, such as app=httpbin")
        if key in labels:
            raise ConfigError(f"--label: {key} is given twice")
        labels[key] = value
    return labels


def _addresses(flags: Iterable[str]) -> tuple[str, ...]:
    try:
        return tuple(str(ip_address(flag)) for flag in flags)
    except ValueError as error:
        raise ConfigError(f"--address: {error}") from error


def _refuse_open_questions(config: ProxyConfig) -> None:
    """Refuse what only a control plane could answer."""
    for port in config.inbound:
        if port.mode is None:
            raise ConfigError(f"nothing says which mode {port.app} has: give --mtls-mode")
    for way in config.outbound:
        if way.identities is None:
            raise ConfigError(
                f"--outbound to {way.destination} goes by the registry, and modes that are given "
                f"as flags leave the control plane out: add @SPIFFE_ID or @{PLAINTEXT} to it, or "
                "leave --mtls-mode and --port-mtls out"
            )


def _refuse_repeated(addresses: Iterable[Address]) -> None:
    seen: set[Address] = set()
    for address in addresses:
        if address.port and address in seen:
            raise ConfigError(f"{address} is listened on twice: give each port its own address")
        seen.add(address)
