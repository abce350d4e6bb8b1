"""Holds RequestAuthentication to the sample of Istio's own expectations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from mesh.policy.facts import HttpRequest
from mesh.policy.request_authentication import Passed, Refused, RequestAuthenticator
from mesh.policy.selection import Workload, applicable
from mesh.resources.security import RequestAuthentication
from tests.policy_cases import Case, read_cases, read_mesh, read_policies
from tests.token_makers import jwks, token

NOW = 1_700_000_000.0


def checks() -> Iterator[Any]:
    for suite in read_cases("request_authentication", "requestauthn", entry="suites"):
        for check in suite["checks"]:
            yield pytest.param(suite, check, id=f"{suite['id']}-{check['name']}")


def with_keys(value: Any) -> Any:
    """Replace `@jwks(key-1,key-2)` and its like everywhere in a policy."""
    if isinstance(value, dict):
        return {key: with_keys(child) for key, child in value.items() if child != "@unreachable"}
    if isinstance(value, list):
        return [with_keys(child) for child in value]
    if isinstance(value, str) and (match := re.fullmatch(r"@jwks(Private)?\((.*)\)", value)):
        return jwks(*match[2].split(","), private=match[1] is not None)
    return value


def written(given: Case) -> str:
    if "raw" in given:
        return str(given["raw"])
    claims = dict(given.get("claims", {}))
    for name in ("exp", "nbf", "iat"):
        if f"{name}Offset" in given:
            claims[name] = int(NOW) + given[f"{name}Offset"]
    if not given.get("noExp"):
        claims.setdefault("exp", int(NOW) + 3600)
    kid = given.get("kid")
    text = token(
        claims,
        given.get("signedBy", "key-1"),
        kid=None if kid == "" else kid or "",
        algorithm=given.get("alg", "RS256"),
    )
    if given.get("tamper"):
        head, _, signature = text.rpartition(".")
        text = f"{head}.{signature[::-1]}"
    return text


def request_of(given: Case) -> tuple[HttpRequest, list[str]]:
    lines = [(name, value) for name, value in given.get("headers", {}).items()]
    target, tokens = given["path"], []
    for one in given.get("tokens", ()):
        text = written(one["token"])
        tokens.append(text)
        prefixed = one.get("prefix", "") + text
        match one["in"]:
            case "header":
                lines.append((one["name"], prefixed))
            case "cookie":
                lines.append(("cookie", f"{one['name']}={prefixed}"))
            case _:
                target += f"{'&' if '?' in target else '?'}{one['name']}={prefixed}"
    return HttpRequest.of(given["method"], target, given.get("host", "b.ns1"), lines), tokens


@pytest.mark.parametrize(("suite", "check"), list(checks()))
def test_outcome_is_istios(suite: Case, check: Case) -> None:
    policies = [
        one
        for one in read_policies(with_keys(suite["policies"]))
        if isinstance(one, RequestAuthentication)
    ]
    workload = Workload(
        namespace=suite["workload"]["namespace"], labels=suite["workload"].get("labels", {})
    )
    root = read_mesh(suite.get("mesh")).root_namespace
    authenticator = RequestAuthenticator(applicable(policies, workload, root), lambda _rule: None)
    request, tokens = request_of(check["request"])
    outcome = authenticator.authenticate(request, NOW)
    expected = check["expect"]
    if isinstance(outcome, Refused):
        assert outcome.status == expected["code"], outcome.body
        assert outcome.body == expected.get("body", outcome.body)
        headers = expected.get("responseHeaders", {})
        assert headers.get("www-authenticate", outcome.www_authenticate) == outcome.www_authenticate
        return
    assert expected["code"] == 200
    assert isinstance(outcome, Passed)
    seen = outcome.request
    for name, value in expected.get("upstreamHeaders", {}).items():
        wanted = (
            {"@payload": tokens[0].split(".")[1], "@token": f"Bearer {tokens[0]}"} if tokens else {}
        )
        assert seen.header_lines(name) == (wanted.get(value, value),)
    for name in expected.get("upstreamHeadersAbsent", ()):
        assert seen.header_lines(name) == ()
    assert seen.target == expected.get("upstreamPath", seen.target)
