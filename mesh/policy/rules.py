"""AuthorizationPolicies compiled to tests, once for TCP and once for HTTP.

Istio, for what a connection without HTTP cannot tell: an ALLOW rule that asks for it never
matches; in any other rule the asking is dropped, so the rule reaches further. Both err on the
side of denying. A value that cannot be compared at all is treated the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mesh.policy import matchers
from mesh.policy.facts import Facts
from mesh.policy.matchers import Context, Predicate
from mesh.policy.rule_items import OPERATION_ITEMS, SOURCE_ITEMS, Item, condition_item
from mesh.policy.trust_domains import TrustDomains
from mesh.resources.security import (
    Action,
    AuthorizationPolicy,
    Condition,
    Operation,
    Rule,
    Source,
    Texts,
)
from mesh.resources.validate_common import DRY_RUN, dry_run_flag


class _NeverMatches(Exception):
    """Some item of an ALLOW rule cannot be compared, so the rule allows nothing."""


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """One rule of a policy: its name in logs, its test, and the anchors of a RuleSet.

    Without one of its `anchors` no identity of Istio's shape can match; None promises nothing.
    """

    id: str
    namespace: str
    policy: str
    index: int
    matches: Predicate
    anchors: frozenset[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledPolicy:
    """A policy ready for evaluation; a rule that can never match is not in its list."""

    namespace: str
    name: str
    action: Action
    dry_run: bool
    provider: str
    tcp: tuple[CompiledRule, ...]
    http: tuple[CompiledRule, ...]
    names_domains: frozenset[str] = frozenset()
    """The trust domains that an ALLOW policy names outright, without a wildcard."""


def compile_policy(policy: AuthorizationPolicy, trust_domains: TrustDomains) -> CompiledPolicy:
    """Compile one policy; it depends on no other, so a changed policy is compiled alone."""
    context = Context(policy.metadata.namespace, trust_domains)
    spec = policy.spec
    return CompiledPolicy(
        namespace=policy.metadata.namespace,
        name=policy.metadata.name,
        action=spec.action,
        # CUSTOM cannot be tried dry (admission refuses it), and not asking would open the door.
        dry_run=spec.action is not Action.CUSTOM and is_dry_run(policy),
        provider="" if spec.provider is None else spec.provider.name,
        tcp=_compile_rules(policy, context, http=False),
        http=_compile_rules(policy, context, http=True),
        names_domains=frozenset(_named_domains(policy)),
    )


def _named_domains(policy: AuthorizationPolicy) -> Iterator[str]:
    if policy.spec.action is not Action.ALLOW:
        return
    sources = (one.source for rule in policy.spec.rules or () for one in rule.from_ or ())
    for source in sources:
        principals = (principal.split("/")[0] for principal in source.principals)
        yield from (name for name in (*principals, *source.trust_domains) if "*" not in name)


def is_dry_run(policy: AuthorizationPolicy) -> bool:
    """Tell whether a policy is only tried; Istio enforces one whose annotation is unreadable."""
    value = policy.metadata.annotations.get(DRY_RUN)
    return value is not None and dry_run_flag(value) is True


def rule_id(policy: AuthorizationPolicy, index: int) -> str:
    """Name a rule as Istio's access logs do."""
    prefix = ""
    if policy.spec.action is Action.CUSTOM:
        provider = "" if policy.spec.provider is None else policy.spec.provider.name
        prefix = f"istio-ext-authz-{provider}-" if provider else "istio-ext-authz-"
    namespace, name = policy.metadata.namespace, policy.metadata.name
    return f"{prefix}ns[{namespace}]-policy[{name}]-rule[{index}]"


def _compile_rules(
    policy: AuthorizationPolicy, context: Context, *, http: bool
) -> tuple[CompiledRule, ...]:
    compiler = _Compiler(context, allow=policy.spec.action is Action.ALLOW, http=http)
    compiled: list[CompiledRule] = []
    for index, rule in enumerate(policy.spec.rules):
        try:
            matches = compiler.rule(rule)
            anchors = compiler.anchors(rule)
        except _NeverMatches:
            continue
        name = policy.metadata.name
        compiled.append(
            CompiledRule(rule_id(policy, index), context.namespace, name, index, matches, anchors)
        )
    return tuple(compiled)


@dataclass(frozen=True, slots=True)
class _Compiler:
    """Compiles rules for one policy and one protocol."""

    context: Context
    allow: bool
    http: bool

    def rule(self, rule: Rule) -> Predicate:
        """Compile a rule; raises _NeverMatches."""
        sources = [_all_of(self._fields(entry.source, SOURCE_ITEMS)) for entry in rule.from_]
        operations = [_all_of(self._fields(entry.operation, OPERATION_ITEMS)) for entry in rule.to]
        conditions = [test for condition in rule.when for test in self._condition(condition)]
        parts = [_any_of(sources)] if sources else []
        parts += [_any_of(operations)] if operations else []
        return _all_of([*parts, *conditions])

    def anchors(self, rule: Rule) -> frozenset[str] | None:
        """Return the identities a rule is about: every one of its sources must name some."""
        for condition in rule.when:
            item = condition_item(condition.key)
            if condition.values and item.anchors is not None:
                anchors = item.anchors(condition.values, self.context)
                if anchors is not None:
                    return anchors
        found: frozenset[str] = frozenset()
        for entry in rule.from_:
            anchors = self._source_anchors(entry.source)
            if anchors is None:
                return None
            found |= anchors
        return found or None

    def _source_anchors(self, source: Source) -> frozenset[str] | None:
        for name, item in SOURCE_ITEMS.items():
            values: Texts = getattr(source, name)
            if values and item.anchors is not None:
                anchors = item.anchors(values, self.context)
                if anchors is not None:
                    return anchors
        return None

    def _fields(self, value: Source | Operation, items: Mapping[str, Item]) -> list[Predicate]:
        tests: list[Predicate] = []
        for name, item in items.items():
            values: Texts = getattr(value, name)
            not_values: Texts = getattr(value, f"not_{name}")
            tests.extend(self._item(item, values, not_values))
        return tests

    def _condition(self, condition: Condition) -> list[Predicate]:
        return self._item(condition_item(condition.key), condition.values, condition.not_values)

    def _item(self, item: Item, values: Texts, not_values: Texts) -> list[Predicate]:
        tests: list[Predicate] = []
        if values := self._comparable(item, values):
            tests.append(item.maker(values, self.context))
        if not_values := self._comparable(item, not_values):
            tests.append(_not(item.maker(not_values, self.context)))
        return tests

    def _comparable(self, item: Item, values: Texts) -> Texts:
        """Return the values that can be compared here; none means that the item is dropped."""
        good = values
        if item.http_only and not self.http:
            good = ()
        elif item.bad is not None:
            good = matchers.usable(item.bad, values)
        if self.allow and len(good) < len(values):
            raise _NeverMatches
        return good


def _not(test: Predicate) -> Predicate:
    return lambda facts: not test(facts)


def _always(_facts: Facts) -> bool:
    return True


def _all_of(tests: list[Predicate]) -> Predicate:
    match [test for test in tests if test is not _always]:
        case []:
            return _always
        case [only]:
            return only
        case [first, second]:
            return lambda facts: first(facts) and second(facts)
        case [first, second, third]:
            return lambda facts: first(facts) and second(facts) and third(facts)
        case many:
            return lambda facts: all(test(facts) for test in many)


def _any_of(tests: list[Predicate]) -> Predicate:
    if _always in tests:
        return _always
    match tests:
        case [only]:
            return only
        case [first, second]:
            return lambda facts: first(facts) or second(facts)
        case _:
            return lambda facts: any(test(facts) for test in tests)
