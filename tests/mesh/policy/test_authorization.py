"""The order of actions, what counts on TCP, dry runs, CUSTOM, and what a decision tells."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.authorization import Authorization, authorization_for
from mesh.policy.decision import Why
from mesh.policy.facts import Facts
from mesh.policy.rule_set import RuleSet
from mesh.policy.rules import compile_policy
from mesh.policy.selection import Workload, applicable, by_action
from mesh.policy.trust_domains import TrustDomains
from mesh.resources.mesh_config import ExtensionProvider, MeshConfig
from mesh.resources.security import Action, AuthorizationPolicy
from tests.mesh.policy.builders import (
    HTTPBIN,
    SLEEP,
    authorization,
    authz,
    connection,
    mesh,
    request,
)

EVERYTHING: dict[str, Any] = {"rules": [{}]}
NOTHING: dict[str, Any] = {}
MTLS, PLAINTEXT = connection(), connection(None)


def source(**given: Any) -> dict[str, Any]:
    return {"from": [{"source": given}]}


def operation(**given: Any) -> dict[str, Any]:
    return {"to": [{"operation": given}]}


def deny(*rules: Any, **metadata: Any) -> AuthorizationPolicy:
    return authz({"action": "DENY", "rules": list(rules)}, **metadata)


@pytest.mark.parametrize("http", [None, request()])
@pytest.mark.parametrize(
    ("specs", "why"),
    [
        ([], Why.NOTHING_APPLIES),
        ([NOTHING], Why.NO_ALLOW_RULE),
        ([{"rules": []}], Why.NO_ALLOW_RULE),
        ([EVERYTHING], Why.ALLOW_RULE),
        ([NOTHING, EVERYTHING], Why.ALLOW_RULE),
        ([{"action": "DENY", **EVERYTHING}], Why.DENY_RULE),
        ([{"action": "DENY", **EVERYTHING}, EVERYTHING], Why.DENY_RULE),
        ([{"action": "DENY", "rules": [source(principals=["x"])]}], Why.NOTHING_APPLIES),
        ([{"action": "AUDIT", **EVERYTHING}], Why.NOTHING_APPLIES),
        ([{"action": "AUDIT"}], Why.NOTHING_APPLIES),
        ([{"action": "AUDIT", **EVERYTHING}, NOTHING], Why.NO_ALLOW_RULE),
        ([{"rules": [source(principals=["x"])]}], Why.NO_ALLOW_RULE),
    ],
)
def test_actions_together(specs: list[Any], why: Why, http: Any) -> None:
    policies = [authz(spec, name=f"p{index}") for index, spec in enumerate(specs)]
    decision = authorization(*policies).decide(MTLS, http)
    assert decision.why is why
    assert decision.allowed == (why in {Why.NOTHING_APPLIES, Why.ALLOW_RULE})


def test_policies_of_the_root_and_the_own_namespace_are_pooled() -> None:
    root = authz({"rules": [source(principals=["x"])]}, namespace="istio-system")
    own = authz(EVERYTHING)
    assert authorization(root, own).decide(MTLS).allowed
    assert not authorization(root).decide(MTLS).allowed
    assert not authorization(deny({}, namespace="istio-system"), own).decide(MTLS).allowed


HTTP_ONLY_ITEMS: list[dict[str, Any]] = [
    *(
        operation(**{name: ["/x"]})
        for name in ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")
    ),
    source(requestPrincipals=["x"]),
    source(notRequestPrincipals=["x"]),
    *(
        {"when": [{"key": key, values: ["x"]}]}
        for key in (
            "request.headers[x]", "request.experimental.inline.headers[x]",
            "request.auth.principal", "request.auth.audiences", "request.auth.presenter",
            "request.auth.claims[x]",
        )
        for values in ("values", "notValues")
    ),
]  # fmt: skip


@pytest.mark.parametrize("item", HTTP_ONLY_ITEMS)
def test_an_allow_rule_that_asks_for_http_never_matches_tcp(item: dict[str, Any]) -> None:
    decision = authorization(authz({"rules": [item]})).decide(MTLS)
    assert decision.why is Why.NO_ALLOW_RULE
    # The rule spoils none of its siblings, and one good entry does not mend a rule.
    siblings = authz({"rules": [item, source(namespaces=["foo"])]})
    assert authorization(siblings).decide(MTLS).allowed
    for side, other in (
        ("from", {"source": {"namespaces": ["foo"]}}),
        ("to", {"operation": {"ports": ["80"]}}),
    ):
        if side in item:
            mixed = authz({"rules": [{side: [*item[side], other]}]})
            assert not authorization(mixed).decide(MTLS).allowed


@pytest.mark.parametrize("item", HTTP_ONLY_ITEMS)
def test_a_deny_rule_that_asks_for_http_denies_all_tcp(item: dict[str, Any]) -> None:
    assert authorization(deny(item)).decide(MTLS).why is Why.DENY_RULE
    assert authorization(deny(item)).decide(PLAINTEXT).why is Why.DENY_RULE


@pytest.mark.parametrize(
    ("rule", "conn", "denied"),
    [
        (operation(methods=["GET"], ports=["9000"]), connection(port=9000), True),
        (operation(methods=["GET"], ports=["9000"]), connection(port=9001), False),
        ({**source(namespaces=["dev"]), **operation(methods=["GET"])},
         connection("td/ns/dev/sa/x", port=9000), True),
        ({**source(namespaces=["dev"]), **operation(methods=["GET"])}, MTLS, False),
        (source(requestPrincipals=["x"], namespaces=["dev"]), MTLS, False),
        (source(requestPrincipals=["x"], namespaces=["foo"]), MTLS, True),
        # One source with nothing left matches anyone.
        ({"from": [{"source": {"requestPrincipals": ["x"]}}, {"source": {"namespaces": ["dev"]}}]},
         MTLS, True),
        (operation(methods=["GET"], notPorts=["80"]), MTLS, False),
    ],
)  # fmt: skip
def test_what_is_left_of_a_deny_rule_decides_on_tcp(rule: Any, conn: Any, denied: bool) -> None:
    assert authorization(deny(rule)).decide(conn).allowed != denied


def test_audit_and_custom_reach_further_on_tcp_as_deny_does() -> None:
    audit = authz({"action": "AUDIT", "rules": [operation(methods=["GET"])]})
    assert len(authorization(audit).decide(MTLS).audited) == 1
    custom = authz(
        {"action": "CUSTOM", "provider": {"name": "x"}, "rules": [operation(paths=["/x"])]}
    )
    assert not authorization(custom, config=mesh(providers=("x",))).decide(MTLS).allowed


def test_the_decision_names_the_smallest_of_the_rules_that_match() -> None:
    never = source(principals=["never"])
    policies = [
        deny(never, {}, {}, name="b"),
        deny({}, name="a", namespace="istio-system"),
        deny(never, name="a"),
        authz(EVERYTHING, name="0"),
    ]
    decision = authorization(*policies).decide(MTLS)
    assert decision.policy_id == "ns[foo]-policy[b]-rule[1]"
    assert decision.detail == "rbac_access_denied_matched_policy[ns[foo]-policy[b]-rule[1]]"
    assert decision.sentence == "denied by rule 1 of AuthorizationPolicy foo/b"


def test_what_other_decisions_tell() -> None:
    decision = authorization(authz(NOTHING)).decide(PLAINTEXT)
    assert decision.policy_id == "none"
    assert decision.detail == "rbac_access_denied_matched_policy[none]"
    assert "plaintext" in decision.sentence
    assert "plaintext" not in authorization(authz(NOTHING)).decide(MTLS).sentence
    decision = authorization(authz(EVERYTHING)).decide(MTLS)
    assert decision.sentence == "allowed by rule 0 of AuthorizationPolicy foo/p"
    assert decision.detail == ""
    assert authorization().decide(MTLS).sentence.startswith("allowed: no")


def test_audit_only_marks() -> None:
    audit = authz({"action": "AUDIT", "rules": [{}, source(principals=["x"]), {}]}, name="watch")
    decision = authorization(audit).decide(MTLS)
    assert decision.allowed
    assert [rule.id for rule in decision.audited] == [
        "ns[foo]-policy[watch]-rule[0]",
        "ns[foo]-policy[watch]-rule[2]",
    ]


DRY = {"annotations": {"istio.io/dry-run": "true"}}


def test_a_dry_allow_policy_neither_grants_nor_triggers_the_default_deny() -> None:
    dry = authz({"rules": [source(principals=["x"])]}, name="dry", **DRY)
    decision = authorization(dry).decide(MTLS)
    assert decision.why is Why.NOTHING_APPLIES
    (shadow,) = decision.shadows
    assert (shadow.action, shadow.result, shadow.policy_id) == ("allow", "denied", "")
    dry = authz(EVERYTHING, name="dry", **DRY)
    decision = authorization(dry, authz(NOTHING)).decide(MTLS)
    assert decision.why is Why.NO_ALLOW_RULE
    (shadow,) = decision.shadows
    assert (shadow.result, shadow.policy_id) == ("allowed", "ns[foo]-policy[dry]-rule[0]")


def test_a_dry_deny_policy_is_only_counted() -> None:
    decision = authorization(deny({}, name="dry", **DRY), authz(EVERYTHING)).decide(MTLS)
    assert decision.allowed
    (shadow,) = decision.shadows
    assert (shadow.action, shadow.result) == ("deny", "denied")
    decision = authorization(deny(source(principals=["x"]), **DRY)).decide(MTLS)
    assert [shadow.result for shadow in decision.shadows] == ["allowed"]


@pytest.mark.parametrize(
    ("value", "enforced"), [("false", True), ("0", True), ("maybe", True), ("T", False)]
)
def test_only_a_true_annotation_makes_a_dry_run(value: str, enforced: bool) -> None:
    policy = deny({}, annotations={"istio.io/dry-run": value})
    assert authorization(policy).decide(MTLS).allowed != enforced


def custom(provider: str, *rules: Any, name: str = "ext") -> AuthorizationPolicy:
    spec = {"action": "CUSTOM", "provider": {"name": provider}, "rules": list(rules) or [{}]}
    return authz(spec, name=name)


def test_custom_is_denied_until_its_provider_is_asked() -> None:
    decide = authorization(custom("x"), config=mesh(providers=("x",))).decide
    decision = decide(MTLS, request())
    assert decision.why is Why.CUSTOM_UNSUPPORTED
    assert decision.policy_id == "istio-ext-authz-x-ns[foo]-policy[ext]-rule[0]"
    assert "external authorizer" in decision.sentence
    assert decide(MTLS, request(), custom_answer=True).allowed
    assert decide(MTLS, request(), custom_answer=False).why is Why.CUSTOM_DENIED


def test_custom_bypasses_neither_deny_nor_allow() -> None:
    config = mesh(providers=("x",))
    for other, why in ((deny({}), Why.DENY_RULE), (authz(NOTHING), Why.NO_ALLOW_RULE)):
        decide = authorization(custom("x"), other, config=config).decide
        assert decide(MTLS, request(), custom_answer=True).why is why
        assert decide(MTLS, request(), custom_answer=False).why is Why.CUSTOM_DENIED


def test_custom_leaves_alone_what_it_does_not_match() -> None:
    policy = custom("x", operation(paths=["/admin*"]))
    auth = authorization(policy, config=mesh(providers=("x",)))
    assert auth.decide(MTLS, request(target="/x")).allowed
    assert auth.custom_check(MTLS, request(target="/x")) is None
    check = auth.custom_check(MTLS, request(target="/admin"))
    assert check is not None
    assert check.provider == "x"


def test_a_missing_provider_denies_even_what_is_answered() -> None:
    decide = authorization(custom("gone"), config=mesh(providers=("x",))).decide
    decision = decide(MTLS, request(), custom_answer=True)
    assert decision.why is Why.CUSTOM_BAD_PROVIDER
    assert decision.policy_id == (
        "istio-ext-authz-gone-ns[foo]-policy[ext]-rule[0]-deny-due-to-bad-CUSTOM-action"
    )
    assert not decide(MTLS).allowed


def test_two_providers_for_one_workload_are_none() -> None:
    policies = [
        custom("x", operation(paths=["/a"]), name="a"),
        custom("y", operation(paths=["/b"])),
    ]
    decide = authorization(*policies, config=mesh(providers=("x", "y"))).decide
    assert decide(MTLS, request(target="/b"), custom_answer=True).why is Why.CUSTOM_BAD_PROVIDER
    assert decide(MTLS, request(target="/c")).allowed


def test_a_provider_that_speaks_only_http_is_not_asked_about_tcp() -> None:
    providers = (
        ExtensionProvider(name="web", envoy_ext_authz_http={}),
        ExtensionProvider(name="other"),
    )
    config = MeshConfig(extension_providers=providers)
    decide = authorization(custom("web"), config=config).decide
    assert decide(MTLS).allowed
    assert not decide(MTLS, request()).allowed
    # A provider of another sort is no authorizer at all.
    assert authorization(custom("other"), config=config).decide(MTLS).why is Why.CUSTOM_BAD_PROVIDER


def test_a_policy_that_is_not_understood_denies_and_says_so() -> None:
    auth = Authorization([], not_understood=["foo/from-the-future"])
    decision = auth.decide(MTLS, request(), custom_answer=True)
    assert decision.why is Why.NOT_UNDERSTOOD
    assert "foo/from-the-future" in decision.sentence
    assert not decision.allowed


@pytest.mark.parametrize(
    ("spec", "namespace", "chosen"),
    [
        ({}, "foo", True),
        ({}, "bar", False),
        ({}, "istio-system", True),
        ({"selector": {"matchLabels": {"app": "httpbin"}}}, "foo", True),
        ({"selector": {"matchLabels": {"app": "httpbin"}}}, "istio-system", True),
        ({"selector": {"matchLabels": {"app": "other"}}}, "istio-system", False),
        ({"selector": {"matchLabels": {"app": "httpbin", "version": "v1"}}}, "foo", False),
        ({"selector": {}}, "foo", True),
        ({"selector": {"matchLabels": {}}}, "foo", True),
        ({"targetRef": {"kind": "Service", "name": "x"}}, "foo", False),
        ({"targetRefs": [{"kind": "Service", "name": "x"}]}, "foo", False),
        (
            {"selector": {"matchLabels": {"app": "httpbin"}},
             "targetRef": {"kind": "Service", "name": "x"}},
            "foo",
            False,
        ),
    ],
)  # fmt: skip
def test_which_policies_are_about_a_workload(spec: Any, namespace: str, chosen: bool) -> None:
    policy = authz(spec, namespace=namespace)
    found = applicable([policy], HTTPBIN, "istio-system")
    assert found == ([policy] if chosen else [])
    assert by_action(found)[Action.ALLOW] == tuple(found)


def test_an_empty_label_value_is_not_a_missing_label() -> None:
    policy = authz({"selector": {"matchLabels": {"app": ""}}})
    assert applicable([policy], Workload(namespace="foo"), "istio-system") == []
    labelled = Workload(namespace="foo", labels={"app": ""})
    assert applicable([policy], labelled, "istio-system") == [policy]


RULES: list[dict[str, Any]] = [
    {},
    source(principals=[SLEEP]),
    source(principals=["*/sa/sleep"]),
    source(notPrincipals=[SLEEP]),
    source(namespaces=["foo", "bar"]),
    source(namespaces=["f*"]),
    source(notNamespaces=["foo"]),
    source(serviceAccounts=["sleep", "bar/x"]),
    source(trustDomains=["td1"]),
    source(ipBlocks=["10.1.0.0/16"]),
    source(namespaces=["foo"], ipBlocks=["10.2.0.0/16"]),
    {"from": [{"source": {"namespaces": ["ns"]}}, {"source": {"serviceAccounts": ["foo/x"]}}]},
    {"from": [{"source": {"namespaces": ["bar"]}}, {"source": {"ipBlocks": ["10.2.0.1"]}}]},
    {"when": [{"key": "source.namespace", "values": ["foo"]}]},
    {"when": [{"key": "source.principal", "notValues": [SLEEP]}]},
    operation(ports=["80"]),
    operation(methods=["GET"]),
    operation(paths=["/a*"], ports=["80"]),
]
PEERS = [
    None, SLEEP, "td1/ns/foo/sa/x", "td1/ns/bar/sa/x", "td1/ns/ns/sa/foo", "ns/foo/sa/x",
    "td1/ns/foo/pod/p/sa/sleep", "td1/other", "td1/ns/foo/sa/sleep/x",
]  # fmt: skip
CONNECTIONS = [
    connection(peer, source_ip=address, port=port)
    for peer in PEERS
    for address in ("10.1.0.1", "10.2.0.1")
    for port in (80, 81)
]
REQUESTS = [None, request(), request("POST", "/abc")]
some_rules = st.lists(st.sampled_from(RULES), min_size=1, max_size=3)
connections = st.sampled_from(CONNECTIONS)
requests = st.sampled_from(REQUESTS)


def policies(actions: list[str]) -> Any:
    spec = st.fixed_dictionaries({"action": st.sampled_from(actions), "rules": some_rules})
    specs = st.lists(spec, max_size=4)
    return specs.map(lambda all_of: [authz(one, name=f"p{n}") for n, one in enumerate(all_of)])


@given(policies(["ALLOW", "DENY"]), some_rules, connections, requests)
def test_one_more_deny_never_allows_more(some: Any, rules: Any, conn: Any, http: Any) -> None:
    before = authorization(*some).decide(conn, http).allowed
    after = authorization(*some, deny(*rules, name="more")).decide(conn, http).allowed
    assert not after or before


@given(policies(["ALLOW", "DENY"]), some_rules, connections, requests)
def test_one_allow_rule_less_never_allows_more(some: Any, rules: Any, conn: Any, http: Any) -> None:
    more = authz({"rules": rules}, name="allow")
    less = authz({"rules": rules[:-1]}, name="allow")
    before = authorization(*some, more).decide(conn, http).allowed
    after = authorization(*some, less).decide(conn, http).allowed
    assert not after or before


@given(policies(["ALLOW", "DENY", "AUDIT"]), connections, requests, st.randoms())
def test_the_order_of_documents_never_matters(some: Any, conn: Any, http: Any, random: Any) -> None:
    before = authorization(*some).decide(conn, http)
    random.shuffle(some)
    after = authorization(*some).decide(conn, http)
    assert (before.allowed, before.policy_id) == (after.allowed, after.policy_id)


@given(policies(["ALLOW"]), connections)
def test_looking_rules_up_finds_what_trying_all_finds(some: Any, conn: Any) -> None:
    rules = [
        rule for one in some for rule in compile_policy(one, TrustDomains(("cluster.local",))).tcp
    ]
    facts = Facts(conn)
    matching = sorted(rule.id for rule in rules if rule.matches(facts))
    found = RuleSet(rules).first_match(facts)
    assert (found.id if found else None) == (matching[0] if matching else None)
    assert [rule.id for rule in RuleSet(rules).matching(facts)] == matching


def test_anchored_rules_are_really_looked_up() -> None:
    compiled = compile_policy(
        authz({"rules": [source(namespaces=["bar"]), source(principals=[SLEEP]), {}]}),
        TrustDomains(("cluster.local",)),
    )
    assert [rule.anchors for rule in compiled.tcp] == [
        frozenset({"n:bar"}),
        frozenset({f"p:{SLEEP}"}),
        None,
    ]


def test_one_set_of_policies_serves_many_workloads() -> None:
    some = [authz(EVERYTHING), deny({}, name="d", namespace="bar")]
    for namespace, allowed in (("foo", True), ("bar", False), ("baz", True)):
        auth = authorization_for(some, Workload(namespace=namespace), mesh())
        assert auth.decide(MTLS).allowed == allowed
