"""Everything that policy says about one workload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mesh.errors import ConfigError
from mesh.policy.destination import Client
from mesh.policy.peer_authentication import Mode
from mesh.policy.rules import is_dry_run
from mesh.resources.security import Action, AuthorizationPolicy, MtlsMode, RequestAuthentication
from mesh.resources.values import Labels
from remora.policy_tools.registry import Backing, Member, endpoint_of
from remora.policy_tools.unenforced import unenforced
from remora.policy_tools.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMode:
    """The mode of a port, or of all others if `port` is None, and the policy that decided it."""

    port: int | None
    mode: str
    decided_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLine:
    """A service port that a workload stands behind, and how a client of its namespace connects."""

    host: str
    port: int
    target_port: int
    protocol: str
    clients: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLine:
    """One AuthorizationPolicy that applies."""

    name: str
    action: str
    rules: int
    dry_run: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLine:
    """One RequestAuthentication that applies."""

    name: str
    issuers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """One workload with all that concerns it; `remarks` are sentences on what follows from it."""

    workload: str
    labels: Labels
    identity: str
    has_proxy: bool
    modes: tuple[PortMode, ...]
    services: tuple[ServiceLine, ...]
    authorization: tuple[PolicyLine, ...]
    tokens: tuple[TokenLine, ...]
    remarks: tuple[str, ...]


def find_members(
    world: World, *, name: str = "", namespace: str = "", labels: Mapping[str, str]
) -> tuple[Member, ...]:
    """Find the workloads that are meant: one by name, or all that carry the labels.

    With a namespace and labels that no entry has, it is one workload that may yet come. Raises
    ConfigError.
    """
    members = world.registry.members
    if name:
        if name not in members:
            known = ", ".join(sorted(members)[:5]) or "none"
            raise ConfigError(f"there is no WorkloadEntry {name!r}; there are: {known}")
        return (members[name],)
    if not namespace:
        raise ConfigError("give NAMESPACE/NAME of a WorkloadEntry, or --namespace and --label")
    found = tuple(
        member
        for member in members.values()
        if member.namespace == namespace and labels.items() <= member.labels.items()
    )
    supposed = Member(name=f"{namespace} (any such workload)", namespace=namespace, labels=labels)
    return found or (supposed,)


def describe(member: Member, world: World) -> Description:
    """Collect what concerns a workload."""
    policies = world.policies_for(member.workload)
    tokens = world.token_rules_for(member.workload)
    backings = world.registry.backings(member)
    modes = tuple(_modes(member, backings, world))
    return Description(
        workload=member.name,
        labels=member.labels,
        identity=member.identity(world.config.trust_domain),
        has_proxy=member.has_proxy,
        modes=modes,
        services=tuple(_service(one, world) for one in backings),
        authorization=tuple(_policy(policy) for policy in sorted(policies, key=_order)),
        tokens=tuple(_tokens(one) for one in tokens),
        remarks=(
            *_unread(member, world),
            *_remarks(member, modes, policies, tokens),
            *(f"{one.key}: {text}" for one in (*policies, *tokens) if (text := unenforced(one))),
        ),
    )


_ORDER = (Action.CUSTOM, Action.AUDIT, Action.DENY, Action.ALLOW)
"""The order in which the actions are asked."""


def _order(policy: AuthorizationPolicy) -> tuple[int, str]:
    return _ORDER.index(policy.spec.action), policy.key


def _modes(member: Member, backings: tuple[Backing, ...], world: World) -> Iterator[PortMode]:
    """Yield the mode of every port that anybody speaks of, and that of all others."""
    effective = world.modes(member.workload)
    known = {*effective.ports, *member.ports.values(), *(one.target_port for one in backings)}
    for port in sorted(known):
        yield _mode(port, effective.of_port(port))
    yield _mode(None, effective.workload)


def _mode(port: int | None, mode: Mode) -> PortMode:
    by = "" if mode.decided_by is None else mode.decided_by.key
    return PortMode(port=port, mode=str(mode.mode), decided_by=by)


def _service(backing: Backing, world: World) -> ServiceLine:
    tls = world.outbound.tls_for(
        Client(namespace=backing.member.namespace),
        world.registry.service(backing.host, backing.entry, backing.port),
        endpoint_of(backing.member, backing.target_port),
        service_port=backing.port.number,
    )
    return ServiceLine(
        host=backing.host,
        port=backing.port.number,
        target_port=backing.target_port,
        protocol=backing.port.protocol or "detected",
        clients=str(tls.security),
        why=tls.why,
    )


def _policy(policy: AuthorizationPolicy) -> PolicyLine:
    return PolicyLine(
        name=policy.key,
        action=str(policy.spec.action),
        rules=len(policy.spec.rules),
        dry_run=is_dry_run(policy),
    )


def _tokens(check: RequestAuthentication) -> TokenLine:
    issuers = tuple(rule.issuer or "any issuer" for rule in check.spec.jwt_rules)
    return TokenLine(name=check.key, issuers=issuers)


def _unread(member: Member, world: World) -> Iterator[str]:
    for unread in world.not_understood(member.workload):
        yield f"{unread} never was good: while it is there, its proxy lets nobody in"


def _remarks(
    member: Member,
    modes: tuple[PortMode, ...],
    policies: list[AuthorizationPolicy],
    tokens: list[RequestAuthentication],
) -> Iterator[str]:
    if not member.has_proxy:
        yield "it has no proxy: nobody enforces any of this, and clients speak plaintext to it"
    allowing = [one for one in policies if one.spec.action is Action.ALLOW and not is_dry_run(one)]
    if allowing:
        yield "it has ALLOW policies: whatever none of their rules allows is denied"
    elif not policies:
        yield "no AuthorizationPolicy applies: everybody who can connect may do everything"
    if any(mode.mode == MtlsMode.PERMISSIVE for mode in modes):
        yield "PERMISSIVE takes plaintext too: such callers have no identity"
    if tokens:
        yield "requests without a token still pass: an AuthorizationPolicy must ask for one"
