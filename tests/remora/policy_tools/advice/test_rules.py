from __future__ import annotations

import pytest

from tests.remora.policy_tools.advice.told import authz, findings, peers, request_authn, told
from tests.remora.policy_tools.shop import REGISTRY, STRICT

POLICY = "AuthorizationPolicy shop/p"
PORT_80 = "{operation: {ports: ['80']}}"
PORT_IS = "{key: destination.port, values:"
NOT_X = "{source: {notNamespaces: [x]}}"
NEVER = [("REM0008", POLICY)]


def source(text: str) -> str:
    return f"[{{from: [{{source: {{{text}}}}}]}}]"


def operation(text: str) -> str:
    return f"[{{to: [{{operation: {{{text}}}}}]}}]"


def when(text: str) -> str:
    return f"[{{when: [{{{text}}}]}}]"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (source("principals: ['spiffe://cluster.local/ns/a/sa/b']"), NEVER),
        (source("principals: [cluster.local/ns/a/sa/b, td/ns/a/sa/b, 't*/ns/a/sa/b']"), []),
        (source("principals: [other/ns/a/sa/b]"), NEVER),
        (source("principals: [other/ns/a/sa/b], notPrincipals: [x]"), NEVER),
        (source("namespaces: [a], notNamespaces: [a, b]"), NEVER),
        (source("namespaces: [a], notNamespaces: ['*']"), NEVER),
        (source("namespaces: [a, c], notNamespaces: [a, b]"), []),
        (operation("paths: [admin]"), NEVER),
        (operation("paths: [/admin, '*admin', '/{*}']"), []),
        (operation("methods: [get]"), NEVER),
        (operation("methods: [GET, '*']"), []),
        (when("key: source.principal, values: ['spiffe://x']"), NEVER),
        (when("key: 'request.headers[x]', values: [a], notValues: [a]"), NEVER),
        (f"[{{to: [{PORT_80}], when: [{PORT_IS} ['81']}}]}}]", NEVER),
        (f"[{{to: [{PORT_80}], when: [{PORT_IS} ['80']}}]}}]", []),
        (f"[{{to: [{PORT_80}, {{operation: {{hosts: [x]}}}}], when: [{PORT_IS} ['81']}}]}}]", []),
    ],
)
def test_rules_that_can_never_match(rules: str, expected: list[tuple[str, str]]) -> None:
    assert told(authz(rules), mesh="trustDomainAliases: [td]") == expected


@pytest.mark.parametrize(
    ("rules", "action", "expected"),
    [
        (operation("methods: [GET]"), "ALLOW", NEVER),
        (source("notRequestPrincipals: [x]"), "ALLOW", NEVER),
        (when("key: 'request.headers[x]', values: [a]"), "ALLOW", NEVER),
        (operation("ports: ['8080']"), "ALLOW", []),
    ],
)
def test_http_on_tcp_ports(rules: str, action: str, expected: list[tuple[str, str]]) -> None:
    policy = authz(rules, action, selector="app: catalog")
    assert told(policy, REGISTRY.replace("HTTP", "TCP")) == expected
    assert told(policy, REGISTRY) == []
    assert told(policy, REGISTRY.replace("protocol: TCP", "").replace("HTTP", "TCP")) == []


def test_an_http_deny_on_tcp_ports_matches_and_is_warned_of_otherwise() -> None:
    policy = authz(operation("methods: [GET]"), "DENY", selector="app: catalog")
    assert told(policy, REGISTRY.replace("HTTP", "TCP")) == [("IST0133", POLICY)]


TOKEN = [("REM0009", POLICY)]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (source("requestPrincipals: ['*']"), TOKEN),
        (when("key: request.auth.principal, values: ['*']"), TOKEN),
        (when("key: 'request.auth.claims[a]', values: [b]"), TOKEN),
        (when("key: 'request.auth.claims[a]', notValues: [b]"), []),
        ("[{from: [{source: {requestPrincipals: ['*']}}, {source: {namespaces: [a]}}]}]", []),
        (source("notRequestPrincipals: ['*']"), []),
    ],
)
def test_tokens_that_nobody_verifies(rules: str, expected: list[tuple[str, str]]) -> None:
    policy = authz(rules, selector="app: catalog")
    assert told(policy, REGISTRY) == expected
    assert told(policy, REGISTRY, request_authn("app: catalog")) == []
    assert told(policy, REGISTRY, request_authn("app: web")) == expected
    assert told(policy) == []  # Nobody is known to be selected.


OPEN = [("REM0010", POLICY)]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (source("notPrincipals: [x]"), OPEN),
        (source("notNamespaces: [x], ipBlocks: [10.0.0.1]"), OPEN),
        (when("key: source.namespace, notValues: [x]"), OPEN),
        (source("notNamespaces: [x], principals: ['*']"), []),
        (source("notNamespaces: [x], requestPrincipals: [i/s]"), []),
        (f"[{{from: [{NOT_X}], when: [{{key: source.principal, values: ['*']}}]}}]", []),
        ("[{from: [{source: {namespaces: [x]}}, {source: {notNamespaces: [x]}}]}]", OPEN),
        (source("ipBlocks: [10.0.0.1]"), []),
        ("[{}]", []),
    ],
)
def test_allow_rules_that_let_plaintext_in(rules: str, expected: list[tuple[str, str]]) -> None:
    policy = authz(rules, selector="app: catalog")
    tokens = request_authn("app: catalog")
    assert told(policy, REGISTRY, tokens) == expected
    assert told(policy) == expected
    assert told(policy, REGISTRY, tokens, STRICT) == []
    assert told(policy, STRICT) == []
    assert told(authz(rules, "DENY", selector="app: catalog"), REGISTRY, tokens) == []


def test_one_open_port_is_enough() -> None:
    policy = authz(source("notPrincipals: [x]"), selector="app: catalog")
    port = peers(
        "a",
        "{selector: {matchLabels: {app: catalog}}, mtls: {mode: STRICT},"
        " portLevelMtls: {8080: {mode: DISABLE}}}",
    )
    assert told(policy, REGISTRY, port) == OPEN


def test_fields_are_named_as_in_the_resource() -> None:
    policy = authz(source("serviceAccounts: [a], notServiceAccounts: [a]"))
    (message,) = findings(policy, STRICT).advice
    assert message.text == (
        "rule 0: serviceAccounts never matches: all that it takes is excluded again"
    )


def test_an_external_authorizer_must_be_known() -> None:
    policy = authz("[{}]", "CUSTOM\n  provider: {name: opa}")
    assert told(policy) == [("REM0011", POLICY)]
    known = "extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: a, port: 1}}]"
    assert told(policy, mesh=known) == []
    unknown, _ = findings(policy, STRICT).advice
    assert unknown.code == "REM0011"
    assert "denied" in unknown.text
