"""AuthorizationPolicies as Istio writes them for Envoy: the RBAC filter's own language.

Written from Istio's documented translation, to hold our decisions against an Envoy's. The caller's
identity comes from filter state, as in Istio's waypoints, so that no TLS is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from mesh.policy.trust_domains import TrustDomains
from mesh.resources.checks import is_template
from mesh.resources.security import Action, AuthorizationPolicy, Condition, Operation, Source, Texts
from tests.interop.envoy import Json

PEER_KEY = "io.istio.peer_principal"
URI_TEMPLATE = "type.googleapis.com/envoy.extensions.path.match.uri_template.v3"

Translate = Callable[[str], Json]


def rules(
    policies: Iterable[AuthorizationPolicy], action: Action, domains: TrustDomains
) -> Json | None:
    """Return the rules of one action, None if no policy has it."""
    chosen = [policy for policy in policies if policy.spec.action is action]
    if not chosen:
        return None
    named: Json = {}
    for policy in chosen:
        namespace, name = policy.metadata.namespace, policy.metadata.name
        for index, rule in enumerate(policy.spec.rules):
            common = [part for one in rule.when for part in _condition(one, namespace, domains)]
            sources = [_source(entry.source, namespace, domains) for entry in rule.from_] or [[]]
            operations = [_operation(target.operation) for target in rule.to] or [[]]
            named[f"ns[{namespace}]-policy[{name}]-rule[{index}]"] = {
                "principals": [
                    {"and_ids": {"ids": [*source, *common] or [{"any": True}]}}
                    for source in sources
                ],
                "permissions": [
                    {"and_rules": {"rules": operation or [{"any": True}]}}
                    for operation in operations
                ],
            }
    return {"action": str(action), "policies": named}


def _source(source: Source, namespace: str, domains: TrustDomains) -> list[Json]:
    return [
        *_ids(
            domains.migrate_principals(source.principals),
            domains.migrate_principals(source.not_principals),
            _principal,
        ),
        *_ids(source.namespaces, source.not_namespaces, _namespace),
        *_ids(source.service_accounts, source.not_service_accounts, _account(namespace)),
    ]


def _operation(operation: Operation) -> list[Json]:
    return [
        *_permissions(operation.methods, operation.not_methods, _header(":method")),
        *_permissions(operation.hosts, operation.not_hosts, _host),
        *_permissions(operation.paths, operation.not_paths, _path),
    ]


def _condition(condition: Condition, namespace: str, domains: TrustDomains) -> list[Json]:
    values, not_values = condition.values, condition.not_values
    match condition.key:
        case "source.principal":
            migrate = domains.migrate_principals
            return _ids(migrate(values), migrate(not_values), _principal)
        case "source.namespace":
            return _ids(values, not_values, _namespace)
        case "source.serviceAccount":
            return _ids(values, not_values, _account(namespace))
        case key:
            name = key.removeprefix("request.headers[").removesuffix("]")
            return _ids(values, not_values, _header(name))


def _ids(values: Texts, not_values: Texts, one: Translate) -> list[Json]:
    found: list[Json] = []
    if values:
        found.append({"or_ids": {"ids": [one(value) for value in values]}})
    if not_values:
        found.append({"not_id": {"or_ids": {"ids": [one(value) for value in not_values]}}})
    return found


def _permissions(values: Texts, not_values: Texts, one: Translate) -> list[Json]:
    found: list[Json] = []
    if values:
        found.append({"or_rules": {"rules": [one(value) for value in values]}})
    if not_values:
        found.append({"not_rule": {"or_rules": {"rules": [one(value) for value in not_values]}}})
    return found


def _text(value: str, *, prefix: str = "", ignore_case: bool = False) -> Json:
    if value == "*":
        return _regex(".+")
    if value.startswith("*"):
        if prefix:
            return _regex(f"{prefix}.*{_literal(value[1:])}")
        return {"suffix": value[1:], "ignore_case": ignore_case}
    if value.endswith("*"):
        return {"prefix": prefix + value[:-1], "ignore_case": ignore_case}
    return {"exact": prefix + value, "ignore_case": ignore_case}


def _regex(pattern: str) -> Json:
    return {"safe_regex": {"regex": pattern}}


def _literal(text: str) -> str:
    return re.sub(r"([.+*?()\[\]{}|^$\\])", r"\\\1", text)


def _peer(matcher: Json) -> Json:
    return {"filter_state": {"key": PEER_KEY, "string_match": matcher}}


def _principal(value: str) -> Json:
    return _peer(_text(value, prefix="spiffe://"))


def _namespace(value: str) -> Json:
    pattern = ".*".join(_literal(part) for part in value.split("*"))
    return _peer(_regex(f".*/ns/{pattern}/.*"))


def _account(policy_namespace: str) -> Translate:
    def translate(value: str) -> Json:
        namespace, slash, name = value.partition("/")
        if not slash:
            namespace, name = policy_namespace, value
        return _peer(_regex(f"spiffe://.+/ns/{namespace}/(.+/|)sa/{name}(/.+)?"))

    return translate


def _header(name: str) -> Translate:
    def translate(value: str) -> Json:
        if value == "*":
            return {"header": {"name": name, "present_match": True}}
        return {"header": {"name": name, "string_match": _text(value)}}

    return translate


def _host(value: str) -> Json:
    if value == "*":
        return {"header": {"name": ":authority", "present_match": True}}
    return {"header": {"name": ":authority", "string_match": _text(value, ignore_case=True)}}


def _path(value: str) -> Json:
    if not is_template(value):
        return {"url_path": {"path": _text(value)}}
    template = value.replace("{*}", "*").replace("{**}", "**")
    config = {"@type": f"{URI_TEMPLATE}.UriTemplateMatchConfig", "path_template": template}
    return {"uri_template": {"name": "path", "typed_config": config}}
