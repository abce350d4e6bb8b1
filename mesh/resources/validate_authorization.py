"""Istio's admission rules for an AuthorizationPolicy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from mesh.resources.checks import (
    network,
    path_pattern,
    port_text,
    service_account,
    trust_domain_pattern,
)
from mesh.resources.problem import Finding
from mesh.resources.security import (
    MAX_SERVICE_ACCOUNTS,
    Action,
    AuthorizationPolicySpec,
    Condition,
    Operation,
    Rule,
    Source,
    Texts,
)
from mesh.resources.tree import Path
from mesh.resources.validate_common import each, not_empty, selector_findings, target_findings

Check = Callable[[str], str | None]

SOURCE_CHECKS: Mapping[str, tuple[str, Check]] = {
    "principals": ("principals", not_empty),
    "notPrincipals": ("not_principals", not_empty),
    "requestPrincipals": ("request_principals", not_empty),
    "notRequestPrincipals": ("not_request_principals", not_empty),
    "namespaces": ("namespaces", not_empty),
    "notNamespaces": ("not_namespaces", not_empty),
    "serviceAccounts": ("service_accounts", service_account),
    "notServiceAccounts": ("not_service_accounts", service_account),
    "trustDomains": ("trust_domains", trust_domain_pattern),
    "notTrustDomains": ("not_trust_domains", trust_domain_pattern),
    "ipBlocks": ("ip_blocks", network),
    "notIpBlocks": ("not_ip_blocks", network),
    "remoteIpBlocks": ("remote_ip_blocks", network),
    "notRemoteIpBlocks": ("not_remote_ip_blocks", network),
}
"""Fields of a source: Istio's name, ours, and the form of one value."""

OPERATION_CHECKS: Mapping[str, tuple[str, Check]] = {
    "hosts": ("hosts", not_empty),
    "notHosts": ("not_hosts", not_empty),
    "ports": ("ports", port_text),
    "notPorts": ("not_ports", port_text),
    "methods": ("methods", not_empty),
    "notMethods": ("not_methods", not_empty),
    "paths": ("paths", path_pattern),
    "notPaths": ("not_paths", path_pattern),
}
"""Fields of an operation: Istio's name, ours, and the form of one value."""

CONDITION_CHECKS: Mapping[str, Check] = {
    "source.ip": network,
    "remote.ip": network,
    "source.namespace": not_empty,
    "source.principal": not_empty,
    "source.serviceAccount": service_account,
    "source.trustDomain": trust_domain_pattern,
    "request.auth.principal": not_empty,
    "request.auth.audiences": not_empty,
    "request.auth.presenter": not_empty,
    "destination.ip": network,
    "destination.port": port_text,
    "connection.sni": not_empty,
}
"""Condition keys that are whole words, and the form of one value."""

BRACKETED_KEYS = (
    "request.headers",
    "request.experimental.inline.headers",
    "request.auth.claims",
    "experimental.envoy.filters.",
)
"""Beginnings of condition keys that end in a name in brackets."""

_REPLACED_KEYS = {
    "destination.namespace": "the policy's own namespace says it",
    "destination.labels": "the policy's selector says it",
    "destination.name": "it went with v1alpha1",
    "destination.user": "it went with v1alpha1",
    "source.user": "use source.principal",
}
_IP_FIELDS = frozenset({"ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks"})
_NOT_FOR_CUSTOM = frozenset(
    {"source.namespace", "source.principal", "source.serviceAccount", "source.trustDomain"}
)
_HTTP_ONLY_SOURCE = frozenset({"requestPrincipals", "notRequestPrincipals"})


def authorization_findings(spec: AuthorizationPolicySpec) -> Iterator[Finding]:
    """Yield what is wrong or doubtful in an AuthorizationPolicy."""
    yield from target_findings(spec.selector, spec.target_ref, spec.target_refs)
    yield from selector_findings(spec.selector)
    yield from _action_findings(spec)
    for index, rule in enumerate(spec.rules):
        path = ("spec", "rules", index)
        yield from _rule_findings(rule, path)
        if spec.action is Action.CUSTOM:
            yield from _custom_findings(rule, path)
        if spec.action is Action.DENY and _denies_all_tcp(rule):
            yield Finding(
                path,
                "this DENY rule looks only at HTTP, so it denies every TCP connection in its "
                "scope: name the ports it is meant for",
                warning=True,
            )


def _action_findings(spec: AuthorizationPolicySpec) -> Iterator[Finding]:
    if spec.action in {Action.DENY, Action.CUSTOM} and not spec.rules:
        yield Finding(
            ("spec", "rules"),
            f"a {spec.action} policy without rules never applies: add a rule, or {{}} for all",
        )
    if spec.action is not Action.CUSTOM and spec.provider is not None:
        yield Finding(("spec", "provider"), f"a {spec.action} policy has no provider")
    if spec.action is Action.CUSTOM and not (spec.provider and spec.provider.name):
        yield Finding(("spec", "provider", "name"), "a CUSTOM policy must name its provider")


def _rule_findings(rule: Rule, path: Path) -> Iterator[Finding]:
    for index, entry in enumerate(rule.from_):
        yield from _source_findings(entry.source, (*path, "from", index, "source"))
    for index, target in enumerate(rule.to):
        yield from _fields_findings(
            target.operation, OPERATION_CHECKS, (*path, "to", index, "operation")
        )
    for index, condition in enumerate(rule.when):
        yield from _condition_findings(condition, (*path, "when", index))


def _source_findings(source: Source, path: Path) -> Iterator[Finding]:
    yield from _fields_findings(source, SOURCE_CHECKS, path)
    accounts = source.service_accounts or source.not_service_accounts
    principals = source.principals or source.not_principals
    if accounts and (principals or source.namespaces or source.not_namespaces):
        yield Finding(path, "serviceAccounts cannot stand beside principals or namespaces")


def _fields_findings(
    value: Source | Operation, checks: Mapping[str, tuple[str, Check]], path: Path
) -> Iterator[Finding]:
    empty = True
    for shown, (name, check) in checks.items():
        texts: Texts = getattr(value, name)
        empty = empty and not texts
        for index, text in enumerate(texts):
            if wrong := not_empty(text) or check(text):
                yield Finding((*path, shown, index), wrong)
    if empty:
        yield Finding(path, f"must say something: an empty {path[-1]} is refused")


def _condition_findings(condition: Condition, path: Path) -> Iterator[Finding]:
    if not condition.values and not condition.not_values:
        yield Finding(path, f"the condition {condition.key!r} needs values or notValues")
    check = _condition_check(condition.key)
    if isinstance(check, str):
        yield Finding((*path, "key"), check)
        return
    for shown, texts in (("values", condition.values), ("notValues", condition.not_values)):
        yield from each((*path, shown), texts, lambda text: not_empty(text) or check(text))
        if condition.key == "source.serviceAccount" and len(texts) > MAX_SERVICE_ACCOUNTS:
            yield Finding((*path, shown), f"at most {MAX_SERVICE_ACCOUNTS} accounts are allowed")


def _condition_check(key: str) -> Check | str:
    """Return the form of a key's values, or the sentence that refuses the key."""
    if key in CONDITION_CHECKS:
        return CONDITION_CHECKS[key]
    if key.startswith(BRACKETED_KEYS):
        opened = key.find("[")
        if key.endswith("]") and 0 < opened < len(key) - 2:
            return not_empty
        return f"the key {key!r} needs a name in brackets, as in request.headers[x-id]"
    for replaced, instead in _REPLACED_KEYS.items():
        if key == replaced or (replaced == "destination.labels" and key.startswith(replaced)):
            return f"the key {key!r} is no longer used: {instead}"
    return f"there is no attribute {key!r}"


def _custom_findings(rule: Rule, path: Path) -> Iterator[Finding]:
    """Refuse what CUSTOM cannot see: tokens are read after it, and Istio bars identities too."""
    for index, entry in enumerate(rule.from_):
        for shown, (name, _) in SOURCE_CHECKS.items():
            if shown not in _IP_FIELDS and getattr(entry.source, name):
                place = (*path, "from", index, "source", shown)
                yield Finding(place, f"a CUSTOM policy cannot use {shown}")
    for index, condition in enumerate(rule.when):
        if condition.key in _NOT_FOR_CUSTOM or condition.key.startswith("request.auth."):
            yield Finding((*path, "when", index), f"a CUSTOM policy cannot use {condition.key}")


def _denies_all_tcp(rule: Rule) -> bool:
    """Istio: a `to` without any port, or a `from` alone without anything that TCP has."""
    if rule.to:
        return not any(entry.operation.ports or entry.operation.not_ports for entry in rule.to)
    return bool(rule.from_) and not any(
        getattr(entry.source, name)
        for entry in rule.from_
        for shown, (name, _) in SOURCE_CHECKS.items()
        if shown not in _HTTP_ONLY_SOURCE
    )
