"""Who calls and who is called, as people name them on a command line or in a file of cases."""

# ruff: noqa: RUF012  msgspec gives every instance an empty dict of its own

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from mesh.errors import ConfigError
from mesh.resources.networking import ServicePort
from mesh.resources.values import Labels, Value
from mesh.spiffe import SCHEME, InvalidSpiffeId, SpiffeId
from remora.policy_tools.registry import Backing, Member
from remora.policy_tools.world import World

UNKNOWN_CLIENT = "192.0.2.1"
"""RFC 5737: the address of a client that has none; no real network is equal to it."""

UNKNOWN_SERVER = "192.0.2.2"
"""RFC 5737: the address of a server that has none."""

PLAINTEXT = "plaintext"
"""The name of a client without a proxy."""

Port = Annotated[int, Meta(ge=1, le=65535)]


class From(Value, frozen=True, kw_only=True):
    """The caller: one of workload, identity, serviceAccount (`NS/NAME`) and plaintext."""

    workload: str = ""
    identity: str = ""
    service_account: str = ""
    plaintext: bool = False
    namespace: str = ""
    labels: Labels = {}
    address: str = ""


class To(Value, frozen=True, kw_only=True):
    """The called: a workload by name, or by namespace and labels, or a service by host."""

    workload: str = ""
    service: str = ""
    namespace: str = ""
    labels: Labels = {}
    service_account: str = ""
    sidecar: bool = True
    address: str = ""
    port: Port


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever connects; without a proxy it speaks plaintext and nobody knows who it is."""

    name: str
    namespace: str
    identity: SpiffeId | None
    has_proxy: bool
    address: str = UNKNOWN_CLIENT
    labels: Labels = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One workload port that is called, through a service if `backing` names one."""

    member: Member
    port: int
    backing: Backing | None = None


def caller(given: From, world: World) -> Caller:
    """Find who calls. Raises ConfigError."""
    ways = [given.workload, given.identity, given.service_account, given.plaintext]
    if sum(map(bool, ways)) != 1:
        raise ConfigError(
            "a caller is given by exactly one of workload, identity, serviceAccount and plaintext"
        )
    if given.workload:
        return _calling_member(_member(given.workload, world), world)
    if given.plaintext:
        return Caller(
            name="a client without proxy",
            namespace=given.namespace,
            identity=None,
            has_proxy=False,
            address=given.address or UNKNOWN_CLIENT,
            labels=given.labels,
        )
    identity = _identity(given, world.config.trust_domain)
    return Caller(
        name=str(identity),
        namespace=given.namespace or _namespace_in(identity),
        identity=identity,
        has_proxy=True,
        address=given.address or UNKNOWN_CLIENT,
        labels=given.labels,
    )


def targets(given: To, client: Caller, world: World) -> tuple[Target, ...]:
    """Find every workload port that a call may reach. Raises ConfigError."""
    ways = [given.workload, given.service, given.namespace]
    if sum(map(bool, ways)) != 1:
        raise ConfigError("the called is given by one of workload, service, and namespace + labels")
    if given.service:
        return _behind(given.service, given.port, client, world)
    member = _member(given.workload, world) if given.workload else _described(given)
    through = (
        backing for backing in world.registry.backings(member) if backing.target_port == given.port
    )
    return (Target(member=member, port=given.port, backing=next(through, None)),)


def parse_from(text: str, workloads: Container[str]) -> From:
    """Parse the caller of a command line: `NS/NAME`, a SPIFFE ID, or `plaintext`.

    A name is that of a workload, or else of a service account: a sidecar that only calls is in no
    registry. Raises ConfigError.
    """
    if text == PLAINTEXT:
        return From(plaintext=True)
    if text.startswith(SCHEME):
        return From(identity=text)
    if "/" not in text:
        raise ConfigError(
            f"{text!r} is no caller: write NAMESPACE/NAME of a WorkloadEntry or service account, "
            f"a SPIFFE ID, or {PLAINTEXT}"
        )
    return From(workload=text) if text in workloads else From(service_account=text)


def parse_to(text: str, port: int) -> To:
    """Parse the called of a command line: `NS/NAME` of a workload, or the host of a service."""
    return To(workload=text, port=port) if "/" in text else To(service=text, port=port)


def _identity(given: From, trust_domain: str) -> SpiffeId:
    text = given.identity
    if given.service_account:
        namespace, slash, name = given.service_account.partition("/")
        if not slash or "/" in name:
            raise ConfigError(f"serviceAccount {given.service_account!r} must be NAMESPACE/NAME")
        text = f"{SCHEME}{trust_domain}/ns/{namespace}/sa/{name}"
    try:
        return SpiffeId.parse(text)
    except InvalidSpiffeId as error:
        raise ConfigError(f"the caller's identity is not a SPIFFE ID: {error}") from error


def _namespace_in(identity: SpiffeId) -> str:
    parts = str(identity).removeprefix(SCHEME).split("/")
    return parts[2] if len(parts) > 2 and parts[1] == "ns" else ""


def _member(name: str, world: World) -> Member:
    member = world.registry.members.get(name)
    if member is None:
        known = ", ".join(sorted(world.registry.members)[:5])
        hint = f"known are {known}" if known else "there are no WorkloadEntries at all"
        raise ConfigError(f"there is no WorkloadEntry {name!r}: {hint}")
    return member


def _calling_member(member: Member, world: World) -> Caller:
    identity = member.identity(world.config.trust_domain)
    return Caller(
        name=member.name,
        namespace=member.namespace,
        identity=SpiffeId.parse(identity) if identity and member.has_proxy else None,
        has_proxy=member.has_proxy,
        address=member.address or UNKNOWN_CLIENT,
        labels=member.labels,
    )


def _described(given: To) -> Member:
    pairs = ",".join(f"{key}={value}" for key, value in given.labels.items())
    return Member(
        name=f"{given.namespace} ({pairs or 'no labels'})",
        namespace=given.namespace,
        labels=given.labels,
        service_account=given.service_account,
        has_proxy=given.sidecar,
        address=given.address,
    )


def _behind(host: str, port: int, client: Caller, world: World) -> tuple[Target, ...]:
    entry = world.registry.entry_for(host, client.namespace)
    if entry is None:
        raise ConfigError(
            f"there is no ServiceEntry for {host!r} that is exported to the caller's namespace"
        )
    ports: dict[int, ServicePort] = {one.number: one for one in entry.spec.ports}
    if port not in ports:
        numbers = ", ".join(map(str, ports)) or "none"
        raise ConfigError(f"the service {host} has no port {port}; its ports are {numbers}")
    found = (
        Backing(host=host, entry=entry, port=ports[port], member=member)
        for member in world.registry.members_of(entry)
    )
    return tuple(
        Target(member=backing.member, port=backing.target_port, backing=backing)
        for backing in found
    )
