"""Holds authorization decisions to the sample of Istio's own expectations."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from mesh.policy.authorization import authorization_for
from mesh.policy.errors import PathRefused
from mesh.policy.facts import Connection, HttpRequest
from mesh.policy.path import normalize_target
from mesh.policy.selection import Workload, applicable, by_action
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.security import AuthorizationPolicy
from mesh.spiffe import SpiffeId
from tests.policy_cases import Case, read_cases, read_mesh, read_policies

FILES = (
    "authz_integration",
    "authz_jwt",
    "authz_matchers",
    "authz_tcp",
    "authz_trust_domain",
)


def checks() -> Iterator[Any]:
    for name in FILES:
        for suite in read_cases(name, "authz", entry="suites"):
            for check in suite["checks"]:
                yield pytest.param(suite, check, id=f"{name}-{suite['id']}-{check['name']}")


def policies_of(case: Case) -> list[AuthorizationPolicy]:
    resources = read_policies(case["policies"])
    return [one for one in resources if isinstance(one, AuthorizationPolicy)]


def connection_of(check: Case) -> Connection:
    conn = check.get("conn", {})
    remote = conn.get("remoteIp")
    return Connection(
        peer=SpiffeId.parse(conn["peer"]) if "peer" in conn else None,
        source_ip=ip_address(conn.get("srcIp", "10.9.9.9")),
        destination_ip=ip_address(conn.get("dstIp", "10.8.8.8")),
        destination_port=conn.get("dstPort", 80),
        sni=conn.get("sni"),
        remote_ip=ip_address(remote) if remote else None,
    )


def request_of(check: Case, mesh: MeshConfig) -> HttpRequest | None:
    """Build the request; raises PathRefused."""
    if check["protocol"] == "tcp":
        return None
    request = check["request"]
    lines = [
        (name, value)
        for name, values in request.get("headers", {}).items()
        for value in (values if isinstance(values, list) else [values])
    ]
    return HttpRequest.of(
        request["method"],
        normalize_target(request["path"], mesh.path_normalization.normalization),
        request.get("host", "httpbin.foo"),
        lines,
        claims=check.get("claims"),
        space_delimited_claims=check.get("spaceDelimitedClaims", ()),
    )


@pytest.mark.parametrize(("suite", "check"), list(checks()))
def test_decision_is_istios(suite: Case, check: Case) -> None:
    mesh = read_mesh(suite.get("mesh"))
    workload = Workload(
        namespace=suite["workload"]["namespace"], labels=suite["workload"].get("labels", {})
    )
    authorization = authorization_for(policies_of(suite), workload, mesh)
    expected = check["expect"]
    if expected.get("code") == 400:
        with pytest.raises(PathRefused) as refused:
            request_of(check, mesh)
        assert refused.value.status == 400
        return
    request = request_of(check, mesh)
    decision = authorization.decide(connection_of(check), request)
    assert ("allow" if decision.allowed else "deny") == expected["decision"], decision.sentence
    if "matchedPolicy" in expected:
        assert decision.policy_id == expected["matchedPolicy"]
    assert decision.sentence


@pytest.mark.parametrize(
    "case", read_cases("authz_selection", "authz-selection"), ids=lambda case: str(case["id"])
)
def test_selection_is_istios(case: Case) -> None:
    mesh = read_mesh(case.get("mesh"))
    workload = Workload(
        namespace=case["workload"]["namespace"], labels=case["workload"].get("labels", {})
    )
    chosen = by_action(applicable(policies_of(case), workload, mesh.root_namespace))
    found = {str(action): sorted(one.key for one in some) for action, some in chosen.items()}
    assert found == {action: sorted(keys) for action, keys in case["expect"].items()}
