"""Ways out: by the registry, DestinationRules and the mesh settings, and what is out of reach."""

from __future__ import annotations

import pytest

from mesh.address import Address
from mesh.discovery.codec import encode_resource, encode_unreadable
from mesh.discovery.types import MESH_CONFIG_URL, URL_OF
from mesh.policy.destination import Client
from mesh.policy.outbound import Security
from mesh.resources.mesh_config import MeshConfig, OutboundMode, OutboundTrafficPolicy
from mesh.resources.networking import Balancing, DestinationRule, ServiceEntry, WorkloadEntry
from mesh.resources.problem import Refused
from mesh.resources.security import PeerAuthentication
from proxy.discovery_state import DiscoveryState
from proxy.route import Blocked, Ejection, Forward, Route
from proxy.router import PASSTHROUGH, Router
from tests.proxy.control import resources, respond, told
from tests.proxy.test_registry import INLINE, SELECTED

CLIENT = Client(namespace="client", labels={"app": "caller"})

REGISTRY_ONLY = MeshConfig(
    outbound_traffic_policy=OutboundTrafficPolicy(mode=OutboundMode.REGISTRY_ONLY)
)


def rule(policy: str, host: str = "httpbin.foo.test", more: str = "") -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: rule, namespace: foo}}
spec: {{host: "{host}", trafficPolicy: {{{policy}}}{more}}}
"""


def router(*texts: str, config: MeshConfig | None = None) -> Router:
    return routing(told(*resources("\n---\n".join(texts)), config=config))


def routing(state: DiscoveryState) -> Router:
    return Router(state.received, CLIENT)


def way(found: Route) -> Forward:
    assert isinstance(found, Forward), found
    return found


def to(text: str) -> Address:
    return Address.parse(text)


def securities(found: Route) -> list[Security]:
    return [one.tls.security for one in way(found).candidates]


PLAIN, MUTUAL = Security.PLAINTEXT, Security.ISTIO_MUTUAL


def test_auto_mtls_is_decided_per_endpoint() -> None:
    found = way(router(INLINE).route(to("httpbin.foo.test:80")))
    assert securities(found) == [MUTUAL, MUTUAL, MUTUAL, PLAIN, PLAIN]
    first = found.candidates[0].tls
    assert first.sans == (
        "spiffe://cluster.local/ns/foo/sa/a",
        "spiffe://cluster.local/ns/foo/sa/b",
    )
    assert first.sni == "outbound_.80_._.httpbin.foo.test"
    assert found.name == "outbound|80||httpbin.foo.test"
    assert found.balancing is Balancing.LEAST_REQUEST
    assert [one.weight for one in found.candidates] == [1, 3, 1, 1, 1]


def test_identities_are_expected_under_every_alias() -> None:
    config = MeshConfig(trust_domain="td1", trust_domain_aliases=("td2",))
    found = way(router(INLINE, config=config).route(to("httpbin.foo.test:80")))
    assert "spiffe://td2/ns/foo/sa/a" in found.candidates[0].tls.sans


def test_an_endpoints_own_policy_decides_for_it_alone() -> None:
    policy = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: disabled, namespace: foo}
spec: {selector: {matchLabels: {app: x}}, mtls: {mode: DISABLE}}
"""
    found = router(SELECTED, policy).route(to("by-label.test:80"))
    assert [(one.address, one.tls.security) for one in way(found).candidates] == [
        ("10.1.0.2", PLAIN),
        ("10.1.0.1", PLAIN),
    ]
    other = router(SELECTED, policy.replace("app: x", "app: none"))
    assert set(securities(other.route(to("by-label.test:80")))) == {MUTUAL}


@pytest.mark.parametrize(
    ("tls", "expected"),
    [
        ("mode: DISABLE", PLAIN),
        ("mode: ISTIO_MUTUAL", MUTUAL),
        ("mode: SIMPLE", Security.SIMPLE),
        ("mode: MUTUAL, clientCertificate: /c, privateKey: /k", Security.MUTUAL),
    ],
)
def test_a_destination_rule_decides_alone(tls: str, expected: Security) -> None:
    found = router(INLINE, rule(f"tls: {{{tls}}}")).route(to("httpbin.foo.test:80"))
    assert set(securities(found)) == {expected}


def test_a_port_of_a_destination_rule_is_the_service_port() -> None:
    found = router(INLINE, rule("portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]"))
    assert set(securities(found.route(to("httpbin.foo.test:80")))) == {PLAIN}
    assert MUTUAL in securities(found.route(to("httpbin.foo.test:81")))


def test_a_virtual_address_means_the_service() -> None:
    found = router(INLINE)
    assert found.route(to("240.0.0.1:80")) == found.route(to("httpbin.foo.test:80"))


def test_an_endpoints_address_means_that_endpoint_secured_as_the_service_is() -> None:
    found = way(router(INLINE).route(to("10.0.0.2:9090")))
    assert [(one.address, one.port) for one in found.candidates] == [("10.0.0.2", 9090)]
    assert found.candidates[0].tls.security is MUTUAL
    assert found.candidates[0].tls.sni == "outbound_.80_._.httpbin.foo.test"


@pytest.mark.parametrize("destination", ["other.test:80", "10.9.9.9:80", "httpbin.foo.test:99"])
def test_what_the_registry_does_not_know_goes_where_it_wants_in_plaintext(
    destination: str,
) -> None:
    found = way(router(INLINE).route(to(destination)))
    assert found.name == PASSTHROUGH
    assert [f"{one.address}:{one.port}" for one in found.candidates] == [destination]
    assert securities(found) == [PLAIN]


@pytest.mark.parametrize("destination", ["other.test:80", "10.9.9.9:80", "httpbin.foo.test:99"])
def test_or_nowhere_with_registry_only(destination: str) -> None:
    found = router(INLINE, config=REGISTRY_ONLY).route(to(destination))
    assert isinstance(found, Blocked)
    assert found.kind.reason == "outbound_blocked"
    assert destination in found.why
    way(router(INLINE, config=REGISTRY_ONLY).route(to("httpbin.foo.test:80")))


def test_with_resolution_none_a_connection_goes_to_the_very_address() -> None:
    entry = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: any, namespace: foo}
spec:
  hosts: ["*.any.test"]
  addresses: [10.7.0.0/16]
  location: MESH_INTERNAL
  resolution: NONE
  ports: [{number: 80, name: tcp, protocol: TCP}]
"""
    found = way(router(entry).route(to("10.7.1.2:80")))
    assert [(one.address, one.port) for one in found.candidates] == [("10.7.1.2", 80)]
    assert securities(found) == [PLAIN]
    forced = rule("tls: {mode: ISTIO_MUTUAL}", host="*.any.test")
    found = way(router(entry, forced).route(to("x.any.test:80")))
    assert [(one.address, one.port) for one in found.candidates] == [("x.any.test", 80)]
    assert securities(found) == [MUTUAL]


SUBSETS = rule(
    "tls: {mode: ISTIO_MUTUAL}",
    more=", subsets: [{name: tls, labels: {security.istio.io/tlsMode: istio}},"
    " {name: plain, labels: {security.istio.io/tlsMode: disabled},"
    " trafficPolicy: {tls: {mode: DISABLE}, loadBalancer: {simple: RANDOM}}}]",
)


def test_a_subset_has_its_own_endpoints_and_its_own_settings() -> None:
    found = router(INLINE, SUBSETS)
    one = way(found.route(to("httpbin.foo.test:80"), "tls"))
    assert [(one.address, one.tls.security) for one in one.candidates] == [("10.0.0.3", MUTUAL)]
    assert one.candidates[0].tls.sni == "outbound_.80_.tls_.httpbin.foo.test"
    off = way(found.route(to("httpbin.foo.test:80"), "plain"))
    assert [(one.address, one.tls.security) for one in off.candidates] == [("10.0.0.4", PLAIN)]
    assert off.balancing is Balancing.RANDOM


def test_a_subset_that_nobody_defined_has_no_endpoints() -> None:
    found = router(INLINE).route(to("httpbin.foo.test:80"), "v9")
    assert isinstance(found, Blocked)
    assert found.kind.reason == "no_endpoints"
    assert "in subset v9 (ServiceEntry foo/httpbin)" in found.why


def test_balancing_ejection_and_timeout_are_the_rules() -> None:
    found = way(
        router(
            INLINE,
            rule(
                "loadBalancer: {simple: ROUND_ROBIN}, connectionPool: {tcp: {connectTimeout: 2s}},"
                " outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 1m,"
                " interval: 5s, maxEjectionPercent: 50}"
            ),
        ).route(to("httpbin.foo.test:80"))
    )
    assert found.balancing is Balancing.ROUND_ROBIN
    assert found.connect_timeout == 2.0
    assert found.ejection == Ejection(failures=2, base=60.0, interval=5.0, max_percent=50)


def test_a_way_to_a_service_is_worked_out_once() -> None:
    found = router(INLINE)
    assert found.route(to("httpbin.foo.test:80")) is found.route(to("HTTPBIN.foo.test:80"))


# What cannot be read.


def blocked(state: DiscoveryState, destination: str) -> str:
    found = routing(state).route(to(destination))
    if isinstance(found, Blocked):
        assert found.kind.reason == "registry_not_understood"
        return found.why
    return ""


def test_nothing_is_reached_while_the_mesh_settings_are_not_understood() -> None:
    state = told(*resources(INLINE))
    state.take(respond(MESH_CONFIG_URL, removed=["mesh"]))
    assert "the mesh settings" in blocked(state, "httpbin.foo.test:80")
    assert blocked(state, "other.test:1")


def newer(kind: str, hosts: str) -> DiscoveryState:
    """A registry in which one resource has a field of the future."""
    state = told(*resources(INLINE))
    (one,) = resources(f"""
apiVersion: networking.istio.io/v1
kind: {kind}
metadata: {{name: new, namespace: foo}}
spec: {{{hosts}, exportTo: ["*"]{", ports: [{number: 80, name: a}]" * (kind == "ServiceEntry")}}}
""")
    envelope = encode_resource(one, "9")
    envelope.resource.value = envelope.resource.value.replace(b"exportTo", b"exportTx")
    url = URL_OF[ServiceEntry if kind == "ServiceEntry" else DestinationRule]
    assert state.take(respond(url, envelope)).HasField("error_detail")
    return state


@pytest.mark.parametrize(
    ("kind", "hosts"),
    [
        ("ServiceEntry", "hosts: [new.test]"),
        ("DestinationRule", "host: new.test"),
        ("DestinationRule", "host: new"),
    ],
)
def test_the_hosts_of_what_is_not_understood_are_out_of_reach(kind: str, hosts: str) -> None:
    state = newer(kind, hosts)
    host = "new.foo.svc.cluster.local" if hosts.endswith(" new") else "new.test"
    assert f"{kind} foo/new" in blocked(state, f"{host}:80")
    assert not blocked(state, "httpbin.foo.test:80")
    assert not blocked(state, "240.0.0.1:80")


def test_an_unknown_address_may_be_that_of_a_service_that_is_not_understood() -> None:
    state = newer("ServiceEntry", "hosts: [new.test]")
    assert "ServiceEntry foo/new" in blocked(state, "10.9.9.9:80")


def test_a_rule_that_is_not_understood_covers_its_services_addresses_too() -> None:
    state = newer("DestinationRule", 'host: "*.foo.test"')
    assert blocked(state, "240.0.0.1:80")
    assert blocked(state, "10.0.0.2:9090")


@pytest.mark.parametrize("kind", [ServiceEntry, DestinationRule])
def test_when_its_hosts_are_unknown_everything_is_out_of_reach(kind: type) -> None:
    state = told(*resources(INLINE))
    state.take(respond(URL_OF[kind], encode_unreadable(Refused("x", "foo", "new"), "1")))
    assert blocked(state, "httpbin.foo.test:80")
    assert blocked(state, "other.test:80")


def test_a_workload_that_is_not_understood_closes_the_services_it_may_be_behind() -> None:
    state = told(*resources(f"{INLINE}\n---\n{SELECTED}"))
    broken = encode_unreadable(Refused("WorkloadEntry", "foo", "new"), "1")
    state.take(respond(URL_OF[WorkloadEntry], broken))
    assert "WorkloadEntry foo/new" in blocked(state, "by-label.test:80")
    assert not blocked(state, "httpbin.foo.test:80")
    assert blocked(state, "10.9.9.9:80")


@pytest.mark.parametrize(
    ("namespace", "reached"), [("foo", False), ("istio-system", False), ("bar", True)]
)
def test_a_mode_that_is_not_understood_closes_the_services_it_may_be_about(
    namespace: str, reached: bool
) -> None:
    """It may be what makes calls to them mutual TLS; another may say plaintext meanwhile."""
    state = told(*resources(INLINE))
    refused = encode_unreadable(Refused("PeerAuthentication", namespace, "new"), "1")
    state.take(respond(URL_OF[PeerAuthentication], refused))
    found = routing(state).route(to("httpbin.foo.test:80"))
    assert isinstance(found, Forward) is reached


@pytest.mark.parametrize("destination", ["other.test:80", "httpbin.foo.test:89", "10.9.9.9:80"])
def test_what_a_flag_names_must_be_in_the_registry(destination: str) -> None:
    found = router(INLINE).route(to(destination), named=True)
    assert isinstance(found, Blocked)
    assert found.kind.reason == "outbound_blocked"
    way(router(INLINE).route(to(destination)))
    way(router(INLINE).route(to("httpbin.foo.test:80"), named=True))
