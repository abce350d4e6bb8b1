"""Services and the workloads behind them, both ways."""

from __future__ import annotations

import pytest

from remora.policy_tools.registry import Registry, target_port
from tests.remora.policy_tools.shop import CATALOG, REGISTRY, world

EXTERNAL = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: partners, namespace: out}
spec:
  hosts: ["*.partner.example", exact.partner.example]
  exportTo: ["."]
  ports: [{number: 443, name: tls, protocol: TLS}]
  subjectAltNames: [partner.example]
"""

INLINE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: shop}
spec:
  hosts: [db.shop.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 5432, name: sql, protocol: TCP}]
  endpoints:
  - {address: 10.0.1.1, labels: {security.istio.io/tlsMode: istio}}
  - {address: 10.0.1.2, serviceAccount: db, ports: {sql: 6000}}
  - {address: 10.0.1.3, serviceAccount: db, labels: {security.istio.io/tlsMode: disabled}}
"""


GROUP = """
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: web, namespace: NAMESPACE}
spec:
  metadata: {labels: {app: web}}
  template: {serviceAccount: web, ports: {http: 8443}, labels: {app: old, tier: front}}
"""

WEB_SERVICE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: shop}
spec:
  hosts: [web.shop.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: web}}
"""


def registry(*documents: str) -> Registry:
    return world(*documents).registry


def test_a_workload_knows_its_services_and_their_ports() -> None:
    found = registry(REGISTRY)
    backings = found.backings(found.members["shop/catalog-1"])
    assert [(one.host, one.port.number, one.target_port) for one in backings] == [
        (CATALOG, 80, 8080),
        (CATALOG, 9000, 9001),  # The workload's own port of that name.
    ]
    assert found.backings(found.members["shop/web-1"]) == ()


def test_the_number_is_the_port_if_nobody_says_otherwise() -> None:
    found = registry(REGISTRY)
    entry = found.entry_for(CATALOG, "shop")
    assert entry is not None
    assert target_port(found.members["shop/web-1"], entry.spec.ports[1]) == 9000


def test_a_service_knows_the_identities_behind_it() -> None:
    found = registry(REGISTRY)
    entry = found.entry_for(CATALOG, "shop")
    assert entry is not None
    service = found.service(CATALOG, entry, entry.spec.ports[0])
    assert service.identities == ("spiffe://cluster.local/ns/shop/sa/catalog",)
    assert [(one.port, one.takes_mtls) for one in service.endpoints] == [(8080, True)]
    assert not service.mesh_external


@pytest.mark.parametrize(("index", "takes_mtls"), [(0, True), (1, True), (2, False)])
def test_a_workload_takes_mtls_by_its_label_or_else_by_its_account(
    index: int, takes_mtls: bool
) -> None:
    found = registry(INLINE)
    entry = found.entry_for("db.shop.svc.cluster.local", "any")
    assert entry is not None
    assert found.members_of(entry)[index].has_proxy is takes_mtls
    assert found.service("db", entry, entry.spec.ports[0]).endpoints[1].port == 6000


def test_without_account_or_label_there_is_no_proxy() -> None:
    assert not registry(REGISTRY).members["shop/old-1"].has_proxy


def test_exact_hosts_come_before_wildcards_and_exports_count() -> None:
    found = registry(EXTERNAL)
    assert found.entry_for("a.partner.example", "out") is not None
    assert found.entry_for("EXACT.partner.example", "out") is not None
    assert found.entry_for("a.partner.example", "shop") is None
    assert found.entry_for("partner.example", "out") is None
    entry = found.entry_for("a.partner.example", "out")
    assert entry is not None
    service = found.service("a.partner.example", entry, entry.spec.ports[0])
    assert service.mesh_external
    assert service.passthrough
    assert service.subject_alt_names == ("partner.example",)


def test_of_several_services_of_one_host_the_nearest_counts() -> None:
    def again(name: str, namespace: str) -> str:
        return (
            EXTERNAL.replace("partners", name)
            .replace(": out", f": {namespace}")
            .replace('exportTo: ["."]', "")
        )

    found = registry(again("old", "far"), again("own", "near"))
    for client, expected in (("near", "near/own"), ("far", "far/old"), ("other", "far/old")):
        entry = found.entry_for("exact.partner.example", client)
        assert entry is not None
        assert entry.key == expected


def test_labels_of_the_metadata_count_and_win() -> None:
    labelled = REGISTRY.replace(
        "metadata: {name: web-1, namespace: shop}",
        "metadata: {name: web-1, namespace: shop, labels: {app: catalog, tier: front}}",
    )
    found = registry(labelled)
    assert found.members["shop/web-1"].labels == {"app": "catalog", "tier": "front"}
    assert len(found.backings(found.members["shop/web-1"])) == 2


def test_where_nobody_has_registered_yet_the_group_says_who_will() -> None:
    group = GROUP.replace("NAMESPACE", "shop")
    found = registry(WEB_SERVICE, group, GROUP.replace("NAMESPACE", "other"))
    [member] = found.members_of(found.services[0][1])
    assert member.name == "shop/web (any of this WorkloadGroup)"
    assert member.has_proxy
    assert member.identity("td") == "spiffe://td/ns/shop/sa/web"
    assert target_port(member, found.services[0][1].spec.ports[0]) == 8443
    assert member.labels["app"] == "web", "metadata wins over the template, as at registration"
    assert found.members == {}
    with_entries = registry(WEB_SERVICE, group, REGISTRY)
    entry = dict(with_entries.services)["web.shop.svc.cluster.local"]
    assert [one.name for one in with_entries.members_of(entry)] == ["shop/web-1"]
