"""Advice on AuthorizationPolicies: what can never match, and what matches more than it seems."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from mesh.policy.authorization import providers_of
from mesh.policy.rule_items import OPERATION_ITEMS, SOURCE_ITEMS, Item, condition_item
from mesh.policy.trust_domains import LOCAL
from mesh.resources.security import (
    Action,
    AuthorizationPolicy,
    MtlsMode,
    Operation,
    Rule,
    Source,
    Texts,
)
from mesh.resources.validate_registry import HTTP_PROTOCOLS
from mesh.spiffe import SCHEME
from remora.policy_tools.advice.message import Advice, Code, advice
from remora.policy_tools.registry import Member
from remora.policy_tools.world import World

Members = Mapping[str, Sequence[Member]]
"""The known workloads that each policy selects, by the policy's key."""

IDENTITY_FIELDS = ("principals", "namespaces", "service_accounts", "trust_domains")
POSITIVE_FIELDS = (*IDENTITY_FIELDS, "request_principals")
IDENTITY_KEYS = frozenset(
    {"source.principal", "source.namespace", "source.serviceAccount", "source.trustDomain"}
)


def rule_advice(world: World, members: Members) -> Iterator[Advice]:
    """Yield everything on AuthorizationPolicies; `members` is who they select."""
    for policy in world.authorizations:
        selected = members.get(policy.key, ())
        yield from _provider(policy, world)
        for index, rule in enumerate(policy.spec.rules):
            place = f"AuthorizationPolicy {policy.key}"
            for reason in _never(rule, policy, world, selected):
                yield advice(Code.NEVER_MATCHES, place, f"rule {index}: {reason}")
            if reason := _unverified_token(rule, world, selected):
                yield advice(Code.UNVERIFIED_TOKEN, place, f"rule {index}: {reason}")
            if reason := _open_to_plaintext(rule, policy, world, selected):
                yield advice(Code.OPEN_TO_PLAINTEXT, place, f"rule {index}: {reason}")


def _provider(policy: AuthorizationPolicy, world: World) -> Iterator[Advice]:
    spec = policy.spec
    if spec.action is Action.CUSTOM and spec.provider is not None:
        known = providers_of(world.config)
        if spec.provider.name not in known:
            names = ", ".join(known) or "none"
            text = (
                f"asks the provider {spec.provider.name!r}, which the mesh settings do not have "
                f"(they have {names}): whatever its rules match is denied"
            )
            yield advice(Code.UNKNOWN_PROVIDER, f"AuthorizationPolicy {policy.key}", text)


def _never(
    rule: Rule, policy: AuthorizationPolicy, world: World, selected: Sequence[Member]
) -> Iterator[str]:
    for field, values, not_values in _lists(rule):
        yield from _contradiction(field, values, not_values)
        for value in values:
            if reason := _hopeless(field, value, world):
                yield f"{field} {value!r} never matches: {reason}"
    yield from _disjoint_ports(rule)
    if policy.spec.action is Action.ALLOW and _looks_at_http(rule) and _only_tcp(selected, world):
        yield (
            "it looks at HTTP, but every service of the selected workloads is declared TCP, where "
            "such an ALLOW rule never matches: declare the port HTTP, or drop what is HTTP"
        )


def _lists(rule: Rule) -> Iterator[tuple[str, Texts, Texts]]:
    """Yield every list of values of a rule with its negative twin, and the field's name."""
    for entry in rule.from_:
        yield from _shown(_fields(entry.source, SOURCE_ITEMS))
    for target in rule.to:
        yield from _shown(_fields(target.operation, OPERATION_ITEMS))
    for condition in rule.when:
        yield condition.key, condition.values, condition.not_values


def _shown(fields: Iterable[tuple[str, Texts, Texts]]) -> Iterator[tuple[str, Texts, Texts]]:
    """Name fields as the resource does: serviceAccounts."""
    for name, values, not_values in fields:
        first, *others = name.split("_")
        yield first + "".join(map(str.capitalize, others)), values, not_values


def _fields(value: Source | Operation, names: Iterable[str]) -> Iterator[tuple[str, Texts, Texts]]:
    for name in names:
        values: Texts = getattr(value, name)
        not_values: Texts = getattr(value, f"not_{name}")
        yield name, values, not_values


def _contradiction(field: str, values: Texts, not_values: Texts) -> Iterator[str]:
    if values and not_values and ("*" in not_values or set(values) <= set(not_values)):
        yield f"{field} never matches: all that it takes is excluded again"


def _hopeless(field: str, value: str, world: World) -> str:
    match field:
        case "principals" | "source.principal":
            return _hopeless_principal(value, world)
        case "paths" if not value.startswith(("/", "*")):
            return "paths begin with /"
        case "methods" if value != value.upper():
            return "methods are compared case and all, and are written in capitals"
        case _:
            return ""


def _hopeless_principal(value: str, world: World) -> str:
    if value.startswith(SCHEME):
        return f"write it without {SCHEME}"
    domain, *rest = value.split("/")
    known = {LOCAL, *world.trust_domains.names}
    if len(rest) == 4 and "*" not in domain and domain not in known:
        return (
            f"no certificate of this mesh has the trust domain {domain}; "
            "list it in trustDomainAliases if it should count"
        )
    return ""


def _disjoint_ports(rule: Rule) -> Iterator[str]:
    wanted = [set(one.operation.ports) for one in rule.to]
    for condition in rule.when:
        ports = set(condition.values)
        compared = condition.key == "destination.port" and ports and wanted and all(wanted)
        if compared and not any(ports & some for some in wanted):
            yield "the ports in `to` and those of destination.port have none in common"


def _looks_at_http(rule: Rule) -> bool:
    """Tell whether anything in a rule asks for HTTP: then an ALLOW rule as a whole does."""
    return (
        any(condition_item(condition.key).http_only for condition in rule.when)
        or any(_http_fields(entry.source, SOURCE_ITEMS) for entry in rule.from_)
        or any(_http_fields(target.operation, OPERATION_ITEMS) for target in rule.to)
    )


def _http_fields(value: Source | Operation, items: Mapping[str, Item]) -> bool:
    return any(
        values or not_values
        for name, values, not_values in _fields(value, items)
        if items[name].http_only
    )


def _only_tcp(selected: Sequence[Member], world: World) -> bool:
    """Tell whether all ports that anybody declares for the workloads are no HTTP."""
    protocols = [
        backing.port.protocol.upper()
        for member in selected
        for backing in world.registry.backings(member)
    ]
    return bool(protocols) and all(one and one not in HTTP_PROTOCOLS for one in protocols)


def _asks_for_token(rule: Rule) -> bool:
    """Tell whether no request without a token can match a rule."""
    sources = [entry.source.request_principals for entry in rule.from_]
    return (bool(sources) and all(sources)) or any(
        condition.key.startswith("request.auth.") and condition.values for condition in rule.when
    )


def _unverified_token(rule: Rule, world: World, selected: Sequence[Member]) -> str:
    if not _asks_for_token(rule) or not selected:
        return ""
    if any(world.token_rules_for(member.workload) for member in selected):
        return ""
    return (
        f"it asks for a token, but no RequestAuthentication verifies any for {selected[0].name}: "
        "add one, or the rule never matches"
    )


def _open_to_plaintext(
    rule: Rule, policy: AuthorizationPolicy, world: World, selected: Sequence[Member]
) -> str:
    """Plaintext satisfies every negative identity match: an ALLOW without a positive is open."""
    if policy.spec.action is not Action.ALLOW or not _only_negative(rule):
        return ""
    if selected:
        open_to = any(_takes_plaintext(member, world) for member in selected)
    else:
        mode = world.outbound.modes.namespace_mode(policy.metadata.namespace)
        open_to = mode is not MtlsMode.STRICT
    if not open_to:
        return ""
    return (
        "it excludes identities and asks for none, so that callers in plaintext, who have none, "
        "are allowed: ask for principals ['*'] too, or set STRICT"
    )


def _only_negative(rule: Rule) -> bool:
    """Tell whether a rule can match by what the caller's identity is not."""
    conditions = [one for one in rule.when if one.key in IDENTITY_KEYS]
    if any(one.values for one in conditions):
        return False
    loose = [one.source for one in rule.from_ if not _some(one.source, POSITIVE_FIELDS, "")]
    if rule.from_ and not loose:
        return False
    return any(one.not_values for one in conditions) or any(
        _some(source, IDENTITY_FIELDS, "not_") for source in loose
    )


def _some(source: Source, fields: Iterable[str], prefix: str) -> bool:
    return any(getattr(source, prefix + name) for name in fields)


def _takes_plaintext(member: Member, world: World) -> bool:
    modes = world.modes(member.workload)
    found = {modes.workload.mode, *(one.mode for one in modes.ports.values())}
    return found != {MtlsMode.STRICT}
