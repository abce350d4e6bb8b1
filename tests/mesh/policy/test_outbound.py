from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from mesh.policy.destination import Client, DestinationRules, host_matches
from mesh.policy.outbound import (
    Endpoint,
    OutboundPolicies,
    OutboundTls,
    Security,
    Service,
    automatic_sni,
    name_accepted,
)
from mesh.policy.peer_authentication import PeerAuthentications
from mesh.policy.reachability import reach
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.networking import DestinationRule
from mesh.resources.security import MtlsMode, PeerAuthentication
from mesh.resources.values import Resource
from tests.mesh.policy.builders import destination_rule, peer_authn

HOST = "b.ns.svc.cluster.local"
CLIENT = Client(namespace="client", labels={"app": "a"})
ENDPOINT = Endpoint("ns", 8080, {"app": "b"}, takes_mtls=True)
IDENTITY = "spiffe://cluster.local/ns/ns/sa/b"
SERVICE = Service(host=HOST, namespace="ns", identities=(IDENTITY,), endpoints=(ENDPOINT,))
ISTIO_MUTUAL = {"mode": "ISTIO_MUTUAL"}
DISABLE = {"mode": "DISABLE"}


def policies(*resources: Resource, config: MeshConfig | None = None) -> OutboundPolicies:
    chosen = config or MeshConfig()
    root = chosen.root_namespace
    return OutboundPolicies(
        config=chosen,
        rules=DestinationRules(
            [one for one in resources if isinstance(one, DestinationRule)], root_namespace=root
        ),
        modes=PeerAuthentications(
            [one for one in resources if isinstance(one, PeerAuthentication)], root_namespace=root
        ),
    )


def tls_of(
    *resources: Resource,
    client: Client = CLIENT,
    service: Service = SERVICE,
    endpoint: Endpoint = ENDPOINT,
    port: int = 80,
    subset: str = "",
    config: MeshConfig | None = None,
) -> OutboundTls:
    return policies(*resources, config=config).tls_for(
        client, service, endpoint, service_port=port, subset=subset
    )


def rule(tls: Any = None, name: str = "dr", namespace: str = "ns", **spec: Any) -> DestinationRule:
    policy = {} if tls is None else {"trafficPolicy": {"tls": tls}}
    stamp = spec.pop("created", None)
    metadata = {} if stamp is None else {"creationTimestamp": stamp}
    given = {"host": HOST, **policy, **spec}
    return destination_rule(given, name, namespace=namespace, **metadata)


def mode(
    mode: str, namespace: str = "ns", name: str = "default", **spec: Any
) -> PeerAuthentication:
    return peer_authn({"mtls": {"mode": mode}, **spec}, name, namespace=namespace)


SELECTED: dict[str, Any] = {"selector": {"matchLabels": {"app": "b"}}}


@pytest.mark.parametrize(
    ("resources", "security"),
    [
        ([], Security.ISTIO_MUTUAL),
        ([mode("STRICT", "istio-system")], Security.ISTIO_MUTUAL),
        ([mode("PERMISSIVE")], Security.ISTIO_MUTUAL),
        ([mode("DISABLE", "istio-system")], Security.PLAINTEXT),
        ([mode("DISABLE")], Security.PLAINTEXT),
        ([mode("DISABLE", "istio-system"), mode("STRICT")], Security.ISTIO_MUTUAL),
        ([mode("STRICT", "istio-system"), mode("UNSET")], Security.ISTIO_MUTUAL),
        ([mode("DISABLE", "client")], Security.ISTIO_MUTUAL),
        ([mode("DISABLE", **SELECTED)], Security.PLAINTEXT),
        # portLevelMtls is about the target port, never the service port.
        (
            [mode("UNSET", **SELECTED, portLevelMtls={"8080": {"mode": "DISABLE"}})],
            Security.PLAINTEXT,
        ),
        (
            [mode("UNSET", **SELECTED, portLevelMtls={"80": {"mode": "DISABLE"}})],
            Security.ISTIO_MUTUAL,
        ),
        (
            [mode("DISABLE", **SELECTED, portLevelMtls={"8080": {"mode": "STRICT"}})],
            Security.ISTIO_MUTUAL,
        ),
        # Istio's own gap: STRICT below a DISABLE namespace goes unnoticed.
        ([mode("DISABLE"), mode("STRICT", name="x", **SELECTED)], Security.PLAINTEXT),
    ],
)  # fmt: skip
def test_auto_mtls_follows_the_servers_mode(resources: list[Resource], security: Security) -> None:
    assert tls_of(*resources).security is security


def test_auto_mtls_needs_the_setting_the_mesh_and_a_proxy() -> None:
    assert tls_of(config=MeshConfig(enable_auto_mtls=False)).security is Security.PLAINTEXT
    outside = replace(SERVICE, mesh_external=True)
    assert tls_of(service=outside).security is Security.PLAINTEXT
    bare = replace(ENDPOINT, takes_mtls=False)
    found = tls_of(endpoint=bare)
    assert found.security is Security.PLAINTEXT
    assert "no proxy" in found.why


@pytest.mark.parametrize(
    ("ready", "security"),
    [
        ([], Security.PLAINTEXT),
        ([True], Security.ISTIO_MUTUAL),
        ([True, False], Security.PLAINTEXT),
        ([False], Security.PLAINTEXT),
    ],
)
def test_a_headless_service_needs_a_proxy_everywhere(ready: list[bool], security: Security) -> None:
    endpoints = tuple(replace(ENDPOINT, takes_mtls=takes) for takes in ready)
    headless = replace(SERVICE, passthrough=True, endpoints=endpoints)
    assert tls_of(service=headless).security is security
    by_rule = rule(trafficPolicy={"loadBalancer": {"simple": "PASSTHROUGH"}})
    assert tls_of(by_rule, service=replace(SERVICE, endpoints=endpoints)).security is security
    # With several ordinary endpoints each is judged alone.
    mixed = replace(SERVICE, endpoints=endpoints)
    assert tls_of(service=mixed).security is Security.ISTIO_MUTUAL


def test_the_guess_for_a_whole_service() -> None:
    found = policies(mode("STRICT"))
    assert found.service_mode(CLIENT, SERVICE) is MtlsMode.STRICT
    assert found.service_mode(CLIENT, replace(SERVICE, mesh_external=True)) is None
    assert found.service_mode(CLIENT, replace(SERVICE, passthrough=True)) is MtlsMode.STRICT
    empty = replace(SERVICE, passthrough=True, endpoints=())
    assert found.service_mode(CLIENT, empty) is MtlsMode.DISABLE
    assert policies().service_mode(CLIENT, SERVICE) is MtlsMode.PERMISSIVE


@pytest.mark.parametrize(
    ("tls", "security"),
    [
        ({}, Security.PLAINTEXT),
        (DISABLE, Security.PLAINTEXT),
        ({"mode": "SIMPLE"}, Security.SIMPLE),
        ({"mode": "MUTUAL", "credentialName": "x"}, Security.MUTUAL),
        (ISTIO_MUTUAL, Security.ISTIO_MUTUAL),
    ],
)
def test_a_tls_block_decides_alone(tls: Any, security: Security) -> None:
    bare = replace(ENDPOINT, takes_mtls=False)
    for server_mode, endpoint in itertools.product(("STRICT", "DISABLE"), (ENDPOINT, bare)):
        found = tls_of(rule(tls), mode(server_mode), endpoint=endpoint)
        assert found.security is security
        assert "DestinationRule ns/dr" in found.why
    off = MeshConfig(enable_auto_mtls=False)
    assert tls_of(rule(tls), config=off).security is security


def test_a_rule_without_tls_leaves_it_to_auto_mtls() -> None:
    other = rule(trafficPolicy={"loadBalancer": {"simple": "RANDOM"}})
    assert tls_of(other).security is Security.ISTIO_MUTUAL
    assert tls_of(other, mode("DISABLE")).security is Security.PLAINTEXT


def test_names_of_the_mesh_and_of_a_rule() -> None:
    found = tls_of()
    assert found.sans == (IDENTITY,)
    assert found.sni == f"outbound_.80_._.{HOST}"
    found = tls_of(rule({**ISTIO_MUTUAL, "subjectAltNames": ["x"], "sni": "y"}))
    assert (found.sans, found.sni) == (("x",), "y")
    found = tls_of(rule(ISTIO_MUTUAL), port=443, subset="v1")
    assert (found.sans, found.sni) == ((IDENTITY,), f"outbound_.443_.v1_.{HOST}")


def test_names_of_other_servers() -> None:
    listed = replace(SERVICE, subject_alt_names=("from-entry",))
    simple = rule({"mode": "SIMPLE"})
    assert tls_of(simple, service=listed).sans == ("from-entry",)
    assert tls_of(rule({"mode": "SIMPLE", "subjectAltNames": ["x"]}), service=listed).sans == ("x",)
    found = tls_of(simple)
    assert (found.sans, found.sni) == ((), "")
    assert found.settings is not None


def test_expected_names_hold_every_account_every_alias_and_the_listed_ones() -> None:
    service = replace(
        SERVICE,
        identities=("spiffe://td1/ns/ns/sa/a", "spiffe://td1/ns/ns/sa/b"),
        subject_alt_names=("dns.name", "spiffe://td1/ns/ns/sa/a"),
    )
    config = MeshConfig(trust_domain="td1", trust_domain_aliases=("td2",))
    assert set(tls_of(service=service, config=config).sans) == {
        "spiffe://td1/ns/ns/sa/a", "spiffe://td1/ns/ns/sa/b",
        "spiffe://td2/ns/ns/sa/a", "spiffe://td2/ns/ns/sa/b", "dns.name",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "presented", "accepted"),
    [
        ((), (), True), ((), ("x",), True), (("x",), ("x",), True), (("x",), (), False),
        (("x",), ("xy",), False), (("x", "y"), ("z", "y"), True), (("x",), ("X",), False),
    ],
)  # fmt: skip
def test_secure_naming_compares_exactly(
    expected: tuple[str, ...], presented: tuple[str, ...], accepted: bool
) -> None:
    assert name_accepted(expected, presented) == accepted


def test_the_automatic_server_name() -> None:
    assert automatic_sni("b.ns.svc.cluster.local", 80) == "outbound_.80_._.b.ns.svc.cluster.local"


@pytest.mark.parametrize(
    ("policy", "port", "security"),
    [
        ({"tls": DISABLE, "portLevelSettings": [{"port": {"number": 80}, "tls": ISTIO_MUTUAL}]},
         80, Security.ISTIO_MUTUAL),
        ({"tls": DISABLE, "portLevelSettings": [{"port": {"number": 80}, "tls": ISTIO_MUTUAL}]},
         81, Security.PLAINTEXT),
        # The port is the service's, not the endpoint's 8080.
        ({"tls": DISABLE, "portLevelSettings": [{"port": {"number": 8080}, "tls": ISTIO_MUTUAL}]},
         80, Security.PLAINTEXT),
        ({"tls": DISABLE, "portLevelSettings": [{"port": {"number": 80}, "loadBalancer": {}}]},
         80, Security.PLAINTEXT),
        ({"portLevelSettings": [{"port": {"number": 80}, "tls": DISABLE}]}, 81,
         Security.ISTIO_MUTUAL),
    ],
)  # fmt: skip
def test_port_settings_beat_the_destinations(policy: Any, port: int, security: Security) -> None:
    assert tls_of(rule(trafficPolicy=policy), port=port).security is security


@pytest.mark.parametrize(
    ("subset_policy", "subset", "security"),
    [
        ({"tls": ISTIO_MUTUAL}, "v1", Security.ISTIO_MUTUAL),
        ({"tls": ISTIO_MUTUAL}, "", Security.PLAINTEXT),
        ({"tls": ISTIO_MUTUAL}, "v2", Security.PLAINTEXT),
        ({"portLevelSettings": [{"port": {"number": 80}, "tls": ISTIO_MUTUAL}]}, "v1",
         Security.ISTIO_MUTUAL),
        ({"portLevelSettings": [{"port": {"number": 81}, "tls": ISTIO_MUTUAL}]}, "v1",
         Security.PLAINTEXT),
        ({"loadBalancer": {}}, "v1", Security.PLAINTEXT),
        (None, "v1", Security.PLAINTEXT),
    ],
)  # fmt: skip
def test_a_subset_has_its_own_tls_or_the_rules(
    subset_policy: Any, subset: str, security: Security
) -> None:
    subsets = [{"name": "v1", "trafficPolicy": subset_policy}]
    assert tls_of(rule(DISABLE, subsets=subsets), subset=subset).security is security


def test_namespaces_are_asked_clients_services_root() -> None:
    of_client = rule(DISABLE, namespace="client")
    of_service = rule({"mode": "SIMPLE"}, namespace="ns")
    of_root = rule(ISTIO_MUTUAL, namespace="istio-system")
    assert tls_of(of_root, of_service, of_client).security is Security.PLAINTEXT
    assert tls_of(of_root, of_service).security is Security.SIMPLE
    assert tls_of(of_root).security is Security.ISTIO_MUTUAL
    elsewhere = rule(DISABLE, namespace="other")
    assert tls_of(elsewhere).security is Security.ISTIO_MUTUAL
    assert "auto" in tls_of(elsewhere).why


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("a.b", "a.b", True), ("A.b", "a.B", True), ("a.b", "x.a.b", False), ("*", "a.b", True),
        ("*.b", "a.b", True), ("*.b", "b", False), ("*b", "ab", True), ("*.b", "*.b", True),
    ],
)  # fmt: skip
def test_hosts_of_rules(pattern: str, host: str, expected: bool) -> None:
    assert host_matches(pattern, host) == expected


def test_the_most_specific_host_of_a_namespace_wins() -> None:
    widest = rule(DISABLE, name="a", host="*")
    wide = rule({"mode": "SIMPLE"}, name="b", host="*.svc.cluster.local")
    narrow = rule(
        {"mode": "MUTUAL", "credentialName": "x"}, name="c", host="*.ns.svc.cluster.local"
    )
    exact = rule(ISTIO_MUTUAL, name="d")
    assert tls_of(widest, wide, narrow, exact).security is Security.ISTIO_MUTUAL
    assert tls_of(widest, wide, narrow).security is Security.MUTUAL
    assert tls_of(widest, wide).security is Security.SIMPLE
    assert tls_of(widest).security is Security.PLAINTEXT
    # A nearer namespace wins with any host, however wide.
    near = rule(DISABLE, host="*", namespace="client")
    assert tls_of(near, exact).security is Security.PLAINTEXT


def test_short_hosts_belong_to_the_rules_namespace() -> None:
    assert tls_of(rule(DISABLE, host="b")).security is Security.PLAINTEXT
    of_client = rule(DISABLE, host="b", namespace="client")
    assert tls_of(of_client).security is Security.ISTIO_MUTUAL


@pytest.mark.parametrize(
    ("namespace", "export_to", "reached"),
    [
        ("ns", [], True), ("ns", ["*"], True), ("ns", ["client"], True), ("ns", ["."], False),
        ("ns", ["other"], False), ("client", ["."], True), ("client", ["client"], True),
        ("client", ["other"], False), ("istio-system", ["."], False), ("istio-system", [], True),
    ],
)  # fmt: skip
def test_a_rule_reaches_the_namespaces_it_is_exported_to(
    namespace: str, export_to: list[str], reached: bool
) -> None:
    found = tls_of(rule(DISABLE, namespace=namespace, exportTo=export_to))
    assert (found.security is Security.PLAINTEXT) == reached


def test_a_rule_for_selected_clients_beats_the_one_for_all() -> None:
    selecting = rule(
        DISABLE,
        name="z",
        namespace="client",
        workloadSelector={"matchLabels": {"app": "a"}},
    )
    for_all = rule({"mode": "SIMPLE"}, name="a", namespace="client")
    assert tls_of(for_all, selecting).security is Security.PLAINTEXT
    other = Client(namespace="client", labels={"app": "x"})
    assert tls_of(for_all, selecting, client=other).security is Security.SIMPLE
    assert tls_of(selecting, client=other).security is Security.ISTIO_MUTUAL
    # Clients of other namespaces are never selected.
    of_service = rule(DISABLE, workloadSelector={"matchLabels": {"app": "a"}})
    assert tls_of(of_service).security is Security.ISTIO_MUTUAL


def test_rules_for_one_host_are_merged_the_oldest_first() -> None:
    old = rule(
        name="z",
        created="2020-01-01T00:00:01Z",
        subsets=[{"name": "v1", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}],
    )
    young = rule(
        DISABLE,
        name="a",
        created="2020-01-01T00:00:02Z",
        subsets=[
            {"name": "v1", "trafficPolicy": {"tls": ISTIO_MUTUAL}},
            {"name": "v2", "trafficPolicy": {"tls": ISTIO_MUTUAL}},
        ],
    )
    assert tls_of(young, old).security is Security.PLAINTEXT
    assert tls_of(young, old, subset="v1").security is Security.SIMPLE
    assert tls_of(young, old, subset="v2").security is Security.ISTIO_MUTUAL
    assert "ns/z" in tls_of(young, old).why


@pytest.mark.parametrize(
    ("security", "server_mode", "success", "mtls"),
    [
        (Security.PLAINTEXT, None, True, False),
        (Security.PLAINTEXT, MtlsMode.DISABLE, True, False),
        (Security.PLAINTEXT, MtlsMode.PERMISSIVE, True, False),
        (Security.PLAINTEXT, MtlsMode.STRICT, False, False),
        (Security.ISTIO_MUTUAL, None, False, False),
        (Security.ISTIO_MUTUAL, MtlsMode.DISABLE, False, False),
        (Security.ISTIO_MUTUAL, MtlsMode.PERMISSIVE, True, True),
        (Security.ISTIO_MUTUAL, MtlsMode.STRICT, True, True),
        (Security.SIMPLE, None, False, False),
        (Security.SIMPLE, MtlsMode.STRICT, False, False),
        (Security.MUTUAL, MtlsMode.PERMISSIVE, False, False),
    ],
)
def test_what_comes_of_a_connection(
    security: Security, server_mode: MtlsMode | None, success: bool, mtls: bool
) -> None:
    found = reach(security, server_mode)
    assert (found.success, found.mtls) == (success, mtls)
    assert found.why
