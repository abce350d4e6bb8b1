"""Holds outbound TLS, reachability and trust domains to the sample of Istio's expectations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from mesh.policy.destination import Client, DestinationRules
from mesh.policy.outbound import Endpoint, OutboundPolicies, Security, Service, name_accepted
from mesh.policy.peer_authentication import PeerAuthentications
from mesh.policy.reachability import reach
from mesh.policy.selection import Workload
from mesh.policy.trust_domains import TrustDomains
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.networking import DestinationRule
from mesh.resources.security import MtlsMode, PeerAuthentication
from mesh.resources.values import Resource
from tests.policy_cases import Case, read_cases, read_mesh, read_policies

CLIENT = Client(namespace="client-namespace")


def policies_of(resources: Iterable[Resource], mesh: MeshConfig) -> OutboundPolicies:
    found = tuple(resources)
    root = mesh.root_namespace
    rules = [one for one in found if isinstance(one, DestinationRule)]
    modes = [one for one in found if isinstance(one, PeerAuthentication)]
    return OutboundPolicies(
        config=mesh,
        rules=DestinationRules(rules, root_namespace=root),
        modes=PeerAuthentications(modes, root_namespace=root),
    )


def endpoint_of(given: Mapping[str, Any]) -> Endpoint:
    sidecar = given.get("sidecar", True)
    takes_mtls = sidecar and given.get("tlsModeLabel", "istio") == "istio"
    return Endpoint(
        given["namespace"], given.get("targetPort", 0), given.get("labels", {}), takes_mtls
    )


def service_of(case: Case) -> Service:
    destination = case["destination"]
    endpoint = case.get("endpoint")
    others = [endpoint_of(one) for one in case.get("endpoints", ())]
    if endpoint and not others:
        others = [endpoint_of(endpoint)]
    account = endpoint.get("serviceAccount") if endpoint else None
    namespace = endpoint["namespace"] if endpoint else destination["host"].split(".")[1]
    trust_domain = read_mesh(case.get("mesh")).trust_domain
    identity = f"spiffe://{trust_domain}/ns/{namespace}/sa/{account}"
    return Service(
        host=destination["host"],
        namespace=namespace,
        mesh_external=destination.get("meshExternal", False),
        passthrough=destination.get("resolution", "").lower()
        in {"none", "passthrough", "headless"},
        identities=(identity,) if account else (),
        endpoints=tuple(others),
    )


@pytest.mark.parametrize(
    "case", read_cases("outbound_mtls", "outbound-mtls"), ids=lambda case: str(case["id"])
)
def test_outbound_tls_is_istios(case: Case) -> None:
    policies = policies_of(read_policies(case["policies"]), read_mesh(case.get("mesh")))
    service = service_of(case)
    expected = case["expect"]
    if "serviceMode" in expected:
        mode = policies.service_mode(CLIENT, service)
        assert (str(mode) if mode else "UNKNOWN") == expected["serviceMode"]
        return
    found = policies.tls_for(
        CLIENT,
        service,
        endpoint_of(case["endpoint"]),
        service_port=case["endpoint"]["servicePort"],
        subset=case["destination"].get("subset", ""),
    )
    assert str(found.security) == expected["tls"], found.why
    if "sans" in expected:
        assert set(found.sans) == set(expected["sans"])
    if "sni" in expected:
        assert found.sni == expected["sni"]


def reachability_calls() -> list[Any]:
    return [
        pytest.param(case, call, id=f"{case['id']}-{call['fromSidecar']}-{call['toSidecar']}")
        for case in read_cases("reachability", "reachability")
        for call in case["calls"]
    ]


@pytest.mark.parametrize(("case", "call"), reachability_calls())
def test_reachability_is_istios(case: Case, call: Case) -> None:
    resources = read_policies(case["policies"])
    policies = policies_of(resources, read_mesh(case.get("mesh")))
    subset, labels = "", {"app": "b"}
    if case["id"].startswith("migration"):
        subset = "vistio" if call["toSidecar"] else "vlegacy"
        labels = {"version": subset}
    endpoint = Endpoint("ns1", 8080, labels, call["toSidecar"])
    service = Service(host="b.ns1.svc.cluster.local", namespace="ns1", endpoints=(endpoint,))
    security = Security.PLAINTEXT
    if call["fromSidecar"]:
        security = policies.tls_for(
            CLIENT, service, endpoint, service_port=80, subset=subset
        ).security
    mode: MtlsMode | None = None
    if call["toSidecar"]:
        modes = policies.modes.effective(Workload(namespace="ns1", labels=labels))
        mode = modes.of_port(8080).mode
    found = reach(security, mode)
    assert found.success == call["expect"]["success"], found.why
    if found.success:
        assert found.mtls == call["expect"]["mtls"]


def trust_domain_calls(name: str) -> list[Any]:
    return [
        pytest.param(case, call, id=f"{case['id']}-{call['name']}")
        for case in read_cases("trust_domain_tls", "trust-domain-tls")
        for call in case.get(name, ())
    ]


@pytest.mark.parametrize(("case", "call"), trust_domain_calls("calls"))
def test_client_certificates_are_judged_as_istio_judges_them(case: Case, call: Case) -> None:
    mesh = read_mesh(case.get("mesh"))
    policies = policies_of(read_policies(case["policies"]), mesh)
    workload = Workload(
        namespace=case["workload"]["namespace"], labels=case["workload"].get("labels", {})
    )
    mode = policies.modes.effective(workload).of_port(call["port"]).mode
    if call.get("certificate") == "dns-only":
        accepted = False
    elif "peer" not in call:
        accepted = mode is not MtlsMode.STRICT
    else:
        accepted = TrustDomains.of(mesh).accepts(call["peer"]) and call.get(
            "signedByMeshRoot", True
        )
    assert accepted == call["expect"]["accepted"]


def test_client_calls_expect_the_names_of_every_alias() -> None:
    for case in read_cases("trust_domain_tls", "trust-domain-tls"):
        for call in case.get("clientCalls", ()):
            mesh = read_mesh(case.get("mesh"))
            account = call["destinationServiceAccount"]
            expected = TrustDomains.of(mesh).expand_identities((account,))
            accepted = name_accepted(expected, (call["presented"],))
            assert accepted == call["expect"]["accepted"]
