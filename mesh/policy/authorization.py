"""AuthorizationPolicy: which connections and requests may reach a workload.

Istio's order: CUSTOM, then AUDIT, then DENY, then ALLOW. A DENY rule that matches ends it; if any
ALLOW policy is enforced for the workload, some rule of some of them must match. Namespaces, age
and order of the policies do not matter.

Token authentication belongs between CUSTOM and the rest: the caller verifies tokens and puts their
claims into the request. An external authorizer fits in at the same place: ask `custom_check`
first, send the question to its provider, and pass the answer to `decide`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mesh.policy.decision import Decision, Shadow, Why
from mesh.policy.facts import Connection, Facts, HttpRequest
from mesh.policy.rule_set import RuleSet
from mesh.policy.rules import CompiledPolicy, CompiledRule, compile_policy
from mesh.policy.selection import Workload, applicable
from mesh.policy.trust_domains import TrustDomains
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.security import Action, AuthorizationPolicy


@dataclass(frozen=True, slots=True)
class CustomCheck:
    """A CUSTOM rule that matches: its provider must be asked; None as provider is a broken one."""

    rule: CompiledRule
    provider: str | None


@dataclass(frozen=True, slots=True)
class _Rules:
    """The rules of one protocol."""

    custom: RuleSet
    audit: RuleSet
    deny: RuleSet
    allow: RuleSet
    shadow_deny: RuleSet
    shadow_allow: RuleSet


class Authorization:
    """All that is decided for one workload: built once, asked for every connection."""

    def __init__(
        self,
        policies: Iterable[CompiledPolicy],
        *,
        providers: Mapping[str, bool] | None = None,
        not_understood: Iterable[str] = (),
    ) -> None:
        """Take the policies that apply to the workload.

        `providers` maps each external authorizer of the mesh to whether it can judge plain TCP.
        `not_understood` names policies for the workload that could not be read: while there are
        any, everything is denied.
        """
        chosen = list(policies)
        self._not_understood = tuple(not_understood)
        custom = {policy.provider for policy in chosen if policy.action is Action.CUSTOM}
        known = providers or {}
        self._provider = custom.pop() if len(custom) == 1 else None
        if self._provider not in known:
            self._provider = None
        judges_tcp = self._provider is None or known[self._provider]
        self._default_deny = any(
            policy.action is Action.ALLOW and not policy.dry_run for policy in chosen
        )
        dry = [policy for policy in chosen if policy.dry_run]
        self._shadowed = tuple(
            action
            for action in (Action.DENY, Action.ALLOW)
            if any(policy.action is action for policy in dry)
        )
        self._named = {(p.namespace, p.name): p.names_domains for p in chosen}
        self._http = _rules_of([(policy, policy.http) for policy in chosen], custom=True)
        self._tcp = _rules_of([(policy, policy.tcp) for policy in chosen], custom=judges_tcp)

    def names(self, rule: CompiledRule | None, domain: str) -> bool:
        """Tell whether the policy of the rule that decided names a trust domain outright.

        A wildcard was written with the members of one's own mesh in mind.
        """
        if rule is None:
            return False
        return domain in self._named.get((rule.namespace, rule.policy), ())

    def custom_check(
        self, connection: Connection, request: HttpRequest | None = None
    ) -> CustomCheck | None:
        """Return the question for the external authorizer, or None if no CUSTOM rule matches."""
        rules = self._tcp if request is None else self._http
        rule = rules.custom.first_match(Facts(connection, request))
        return None if rule is None else CustomCheck(rule, self._provider)

    def decide(
        self,
        connection: Connection,
        request: HttpRequest | None = None,
        *,
        custom_answer: bool | None = None,
    ) -> Decision:
        """Decide on a request, or on a connection that carries no HTTP.

        `custom_answer` is what the provider of `custom_check` said, None if nobody asked it.
        """
        if self._not_understood:
            return Decision(
                allowed=False, why=Why.NOT_UNDERSTOOD, not_understood=self._not_understood
            )
        facts = Facts(connection, request)
        rules = self._tcp if request is None else self._http
        if refused := self._custom(rules, facts, answer=custom_answer):
            return refused
        audited = rules.audit.matching(facts) if rules.audit else ()
        shadows = self._shadows(rules, facts) if self._shadowed else ()
        allowed, why, rule = self._enforced(rules, facts)
        return Decision(
            allowed=allowed,
            why=why,
            rule=rule,
            plaintext=facts.identity is None,
            audited=audited,
            shadows=shadows,
        )

    def _custom(self, rules: _Rules, facts: Facts, *, answer: bool | None) -> Decision | None:
        rule = rules.custom.first_match(facts)
        if rule is None:
            return None
        if self._provider is None:
            why = Why.CUSTOM_BAD_PROVIDER
        elif answer is None:
            why = Why.CUSTOM_UNSUPPORTED
        elif not answer:
            why = Why.CUSTOM_DENIED
        else:
            return None
        return Decision(allowed=False, why=why, rule=rule)

    def _enforced(self, rules: _Rules, facts: Facts) -> tuple[bool, Why, CompiledRule | None]:
        rule = rules.deny.first_match(facts)
        if rule is not None:
            return False, Why.DENY_RULE, rule
        if not self._default_deny:
            return True, Why.NOTHING_APPLIES, None
        rule = rules.allow.first_match(facts)
        if rule is not None:
            return True, Why.ALLOW_RULE, rule
        return False, Why.NO_ALLOW_RULE, None

    def _shadows(self, rules: _Rules, facts: Facts) -> tuple[Shadow, ...]:
        shadows: list[Shadow] = []
        if Action.DENY in self._shadowed:
            rule = rules.shadow_deny.first_match(facts)
            shadows.append(Shadow("deny", rule is None, rule))
        if Action.ALLOW in self._shadowed:
            rule = rules.shadow_allow.first_match(facts)
            shadows.append(Shadow("allow", rule is not None, rule))
        return tuple(shadows)


def authorization_for(
    policies: Iterable[AuthorizationPolicy], workload: Workload, config: MeshConfig
) -> Authorization:
    """Select and compile the policies of one workload.

    Who serves many workloads compiles each policy once with `compile_policy` instead, and builds
    each Authorization from those that `applicable` returns.
    """
    domains = TrustDomains.of(config)
    chosen = applicable(policies, workload, config.root_namespace)
    return Authorization(
        [compile_policy(policy, domains) for policy in chosen], providers=providers_of(config)
    )


def providers_of(config: MeshConfig) -> Mapping[str, bool]:
    """Map each external authorizer of the mesh to whether it can judge plain TCP: gRPC can."""
    return {
        provider.name: provider.envoy_ext_authz_grpc is not None
        for provider in config.extension_providers
        if provider.envoy_ext_authz_grpc is not None or provider.envoy_ext_authz_http is not None
    }


def _rules_of(
    policies: list[tuple[CompiledPolicy, tuple[CompiledRule, ...]]], *, custom: bool
) -> _Rules:
    def pick(action: Action, *, dry: bool) -> RuleSet:
        return RuleSet(
            rule
            for policy, rules in policies
            if policy.action is action and policy.dry_run is dry
            for rule in rules
        )

    return _Rules(
        custom=pick(Action.CUSTOM, dry=False) if custom else RuleSet(()),
        audit=pick(Action.AUDIT, dry=False),
        deny=pick(Action.DENY, dry=False),
        allow=pick(Action.ALLOW, dry=False),
        shadow_deny=pick(Action.DENY, dry=True),
        shadow_allow=pick(Action.ALLOW, dry=True),
    )
