"""Holds effective mutual TLS modes to the sample of Istio's own expectations."""

from __future__ import annotations

import pytest

from mesh.policy.peer_authentication import PeerAuthentications
from mesh.policy.selection import Workload
from mesh.resources.security import PeerAuthentication
from tests.policy_cases import Case, read_cases, read_mesh, read_policies

CASES = read_cases("peer_authentication_effective", "peerauthn-effective")


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["id"]))
def test_modes_are_istios(case: Case) -> None:
    resources = read_policies(case["policies"])
    policies = PeerAuthentications(
        (one for one in resources if isinstance(one, PeerAuthentication)),
        root_namespace=read_mesh(case.get("mesh")).root_namespace,
    )
    workload = Workload(
        namespace=case["workload"]["namespace"], labels=case["workload"].get("labels", {})
    )
    expected = case["expect"]
    modes = policies.effective(workload)
    if "mode" in expected:
        assert str(modes.workload.mode) == expected["mode"]
    for port, mode in expected.get("ports", {}).items():
        assert str(modes.of_port(int(port)).mode) == mode
    if "namespaceMode" in expected:
        found = policies.namespace_mode(workload.namespace)
        assert (str(found) if found else "UNKNOWN") == expected["namespaceMode"]
