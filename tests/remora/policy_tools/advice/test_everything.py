"""Istio's messages and ours together, and what is left unsaid because nothing is known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mesh.policy.analysis import Kind
from remora.policy_tools.advice.message import Code, Level
from tests.remora.policy_tools.advice.told import authz, findings, request_authn, told
from tests.remora.policy_tools.shop import REGISTRY, STRICT

NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}"
PODS = """
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata: {name: p, namespace: shop, labels: {app: catalog}}
  spec: {containers: [{name: istio-proxy}]}
"""
SOURCE = "[{from: [{source: {namespaces: [nowhere]}}]}]"


def test_a_selector_is_checked_against_entries_and_pods() -> None:
    policy = authz("[{}]", selector="app: nobody")
    found = [("IST0127", "AuthorizationPolicy shop/p")]
    assert told(policy) == []
    assert told(policy, REGISTRY) == found
    assert told(policy, PODS) == found
    assert told(authz("[{}]", selector="app: catalog"), PODS) == []
    assert "selectors were not checked" in findings(policy).unchecked[0]


def test_namespaces_are_checked_if_any_is_known() -> None:
    policy = authz(SOURCE)
    assert told(policy) == []
    assert any("Namespace" in one for one in findings(policy).unchecked)
    assert told(policy, NAMESPACE, REGISTRY) == [("IST0101", "AuthorizationPolicy shop/p")]
    assert findings(policy, NAMESPACE, REGISTRY).unchecked == ()


def test_selectors_of_token_checks_are_ours_to_check() -> None:
    assert told(request_authn("app: x"), REGISTRY) == [
        ("REM0005", "RequestAuthentication shop/jwt")
    ]
    assert told(request_authn("app: web"), REGISTRY) == []
    assert told(request_authn("app: web"), PODS) == [("REM0005", "RequestAuthentication shop/jwt")]


def test_bad_resources_are_told_of_and_the_others_analysed() -> None:
    bad = authz("[{from: []}]")
    assert told(bad, STRICT.replace("STRICT", "PERMISSIVE")) == [
        ("IST0106", "AuthorizationPolicy shop/p"),
        ("REM0001", "PeerAuthentication istio-system/default"),
    ]


def test_unknown_kinds_are_errors_unless_they_are_wanted() -> None:
    typo = STRICT.replace("kind: PeerAuthentication", "kind: PeerAuthentcation")
    (message,) = [one for one in findings(typo).advice if one.code == "REM0014"]
    assert "did you mean PeerAuthentication" in message.text
    assert told(NAMESPACE, PODS) == []
    assert [one.code for one in findings(typo, skip=True).advice] == ["REM0001"]


def test_what_proxies_do_not_enforce_yet_is_told_of() -> None:
    custom = authz("[{}]", "CUSTOM\n  provider: {name: opa}")
    known = "extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: a, port: 1}}]"
    (message,) = findings(custom, STRICT, mesh=known).advice
    assert (message.code, message.level) == ("REM0015", Level.WARNING)
    assert "whatever its rules match is denied" in message.text
    (message,) = findings(request_authn("app: web"), STRICT).advice
    assert (message.code, message.resource) == ("REM0015", "RequestAuthentication shop/jwt")
    assert "no token is verified" in message.text
    assert findings(authz("[{}]"), STRICT).advice == ()


def test_the_worst_comes_first() -> None:
    levels = [one.level for one in findings(authz("[{from: []}]"), STRICT, STRICT).advice]
    assert levels == sorted(levels, key=list(Level).index, reverse=True)
    assert Level.ERROR.reaches(Level.WARNING)
    assert not Level.INFO.reaches(Level.WARNING)


DOCUMENT = (Path(__file__).parents[4] / "docs" / "analysis.md").read_text()


@pytest.mark.parametrize("kind", [*Code, *Kind], ids=lambda kind: kind.name)
def test_every_message_is_explained(kind: Code | Kind) -> None:
    code, name, level = kind.value
    row = rf"^\| {code} \| {name} \| {level} \|"
    assert re.search(row, DOCUMENT, re.MULTILINE), f"{code} is not in docs/analysis.md"
