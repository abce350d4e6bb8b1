"""Services and what is behind them: Istio's rules for ports, labels, accounts and order."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from mesh.resources.networking import ServiceEntry, WorkloadEntry
from proxy.registry import Registry, ServiceAt
from tests.proxy.control import resources

INLINE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: httpbin, namespace: foo}
spec:
  hosts: [httpbin.foo.test]
  addresses: [240.0.0.1, 240.1.0.0/16]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - {number: 80, name: http, protocol: TCP, targetPort: 8080}
  - {number: 81, name: plain, protocol: TCP}
  endpoints:
  - {address: 10.0.0.1, serviceAccount: a}
  - {address: 10.0.0.2, serviceAccount: b, ports: {http: 9090}, weight: 3}
  - {address: 10.0.0.3, labels: {security.istio.io/tlsMode: istio}}
  - {address: 10.0.0.4, serviceAccount: a, labels: {security.istio.io/tlsMode: disabled}}
  - {address: 10.0.0.5}
"""

SELECTED = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: by-label, namespace: foo}
spec:
  hosts: [by-label.test]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: tcp, protocol: TCP}]
  workloadSelector: {labels: {app: x}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: one, namespace: foo}
spec: {address: 10.1.0.1, labels: {app: x}, serviceAccount: x}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: by-metadata, namespace: foo, labels: {app: x}}
spec: {address: 10.1.0.2, labels: {app: y}, serviceAccount: y}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: other-namespace, namespace: bar}
spec: {address: 10.1.0.3, labels: {app: x}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: other-label, namespace: foo}
spec: {address: 10.1.0.4, labels: {app: z}}
"""


def registry(*texts: str, namespace: str = "client", trust_domain: str = "td") -> Registry:
    found = resources("\n---\n".join(texts))
    return Registry(
        [one for one in found if isinstance(one, ServiceEntry)],
        [one for one in found if isinstance(one, WorkloadEntry)],
        namespace=namespace,
        trust_domain=trust_domain,
    )


def at(registry: Registry, host: str, port: int = 80) -> ServiceAt:
    found = registry.by_host(host, port)
    assert found is not None
    return found


def places(service: ServiceAt) -> list[tuple[str, int]]:
    return [(one.address, one.endpoint.port) for one in service.instances]


def test_an_endpoints_port_is_its_own_else_the_target_port() -> None:
    assert places(at(registry(INLINE), "httpbin.foo.test"))[:2] == [
        ("10.0.0.1", 8080),
        ("10.0.0.2", 9090),
    ]


def test_without_a_target_port_the_service_port_is_meant() -> None:
    assert places(at(registry(INLINE), "httpbin.foo.test", 81))[0] == ("10.0.0.1", 81)


def test_who_takes_mutual_tls_is_told_by_label_or_else_by_account() -> None:
    found = at(registry(INLINE), "httpbin.foo.test").instances
    assert [one.endpoint.takes_mtls for one in found] == [True, True, True, False, False]


def test_the_identities_are_those_of_all_accounts_behind_the_service() -> None:
    service = at(registry(INLINE), "httpbin.foo.test").service
    assert service.identities == ("spiffe://td/ns/foo/sa/a", "spiffe://td/ns/foo/sa/b")


def test_an_at_sign_in_a_trust_domain_is_written_as_a_dot() -> None:
    service = at(registry(INLINE, trust_domain="a@b"), "httpbin.foo.test").service
    assert service.identities[0] == "spiffe://a.b/ns/foo/sa/a"


def test_weights_count_from_one() -> None:
    found = at(registry(INLINE), "httpbin.foo.test").instances
    assert [one.weight for one in found] == [1, 3, 1, 1, 1]


def test_workloads_are_selected_in_the_entrys_namespace_by_all_their_labels() -> None:
    service = at(registry(SELECTED), "by-label.test")
    assert sorted(places(service)) == [("10.1.0.1", 80), ("10.1.0.2", 80)]
    assert set(service.service.identities) == {
        "spiffe://td/ns/foo/sa/x",
        "spiffe://td/ns/foo/sa/y",
    }


def test_hosts_are_found_in_any_case_and_only_with_their_port() -> None:
    found = registry(INLINE)
    assert found.by_host("HTTPBIN.foo.TEST", 80) is not None
    assert found.by_host("httpbin.foo.test", 82) is None
    assert found.by_host("other.test", 80) is None


def service(name: str, spec: str, namespace: str = "foo", created: str = "2026-01-01") -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: "{created}T00:00:00Z"}}
spec: {{{spec}, ports: [{{number: 80, name: http, protocol: HTTP}}]}}
"""


@pytest.mark.parametrize(
    ("host", "entry"),
    [
        ("a.b.test", "exact"),
        ("x.b.test", "long"),
        ("x.y.test", "short"),
        ("b.test", "short"),
    ],
)
def test_the_most_specific_host_wins(host: str, entry: str) -> None:
    found = registry(
        service("short", 'hosts: ["*.test"]'),
        service("exact", "hosts: [a.b.test]"),
        service("long", 'hosts: ["*.b.test"]'),
    )
    assert at(found, host).entry.metadata.name == entry


def test_of_two_with_the_same_host_the_own_namespaces_wins_then_the_older() -> None:
    young_own = service("own", "hosts: [a.test]", namespace="client", created="2026-03-01")
    old = service("old", "hosts: [a.test]")
    middle = service("middle", "hosts: [a.test]", created="2026-02-01")
    assert at(registry(middle, old, young_own), "a.test").entry.metadata.name == "own"
    assert at(registry(middle, old), "a.test").entry.metadata.name == "old"


@pytest.mark.parametrize(
    ("export", "seen"),
    [("['*']", True), ("['.']", False), ("[client]", True), ("[other]", False), ("['~']", False)],
)
def test_only_what_is_exported_to_the_client_is_seen(export: str, *, seen: bool) -> None:
    found = registry(service("a", f"hosts: [a.test], exportTo: {export}"))
    assert (found.by_host("a.test", 80) is not None) == seen


def test_by_name_without_endpoints_the_host_itself_is_the_endpoint_outside_the_mesh() -> None:
    found = at(registry(service("a", "hosts: [a.test], resolution: DNS")), "a.test")
    assert places(found) == [("a.test", 80)]
    assert not found.instances[0].endpoint.takes_mtls
    assert found.service.mesh_external


def test_virtual_addresses_lead_to_the_service_the_narrowest_block_first() -> None:
    found = registry(
        INLINE, service("wide", "hosts: [w.test], addresses: [240.0.0.0/8], resolution: STATIC")
    )

    def entry(address: str, port: int = 80) -> str | None:
        service = found.by_address(ip_address(address), port)
        return None if service is None else service.entry.metadata.name

    assert entry("240.0.0.1") == "httpbin"
    assert entry("240.1.2.3") == "httpbin"
    assert entry("240.2.2.3") == "wide"
    assert entry("240.2.2.3", 81) is None
    assert entry("10.9.9.9") is None


def test_an_endpoints_address_leads_to_its_service_by_its_target_port() -> None:
    found = registry(INLINE).by_endpoint(ip_address("10.0.0.2"), 9090)
    assert found is not None
    assert found[0].host == "httpbin.foo.test"
    assert found[1].address == "10.0.0.2"
    assert registry(INLINE).by_endpoint(ip_address("10.0.0.2"), 8080) is None


def test_addresses_that_admission_would_have_refused_are_passed_over() -> None:
    import yaml

    from mesh.resources.loader import load_objects

    (one,) = yaml.safe_load_all(service("a", "hosts: [a.test], addresses: [nonsense]"))
    loaded = load_objects([one], already_admitted=True)
    found = Registry(
        [one for one in loaded.resources if isinstance(one, ServiceEntry)],
        [],
        namespace="foo",
        trust_domain="td",
    )
    assert found.by_address(ip_address("10.0.0.1"), 80) is None
    assert found.by_host("a.test", 80) is not None
