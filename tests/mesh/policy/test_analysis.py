from __future__ import annotations

from typing import Any

import pytest

from mesh.policy.analysis import Kind, analyze
from mesh.policy.inventory import Inventory

NETWORKING = ("DestinationRule", "Gateway", "VirtualService")


def an(kind: str, name: str = "x", namespace: str = "foo", spec: Any = None, **meta: Any) -> Any:
    core = kind in {"Namespace", "Pod", "Deployment"}
    group = "networking" if kind in NETWORKING else "security"
    return {
        "apiVersion": "v1" if core else f"{group}.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, **meta},
        "spec": {} if spec is None else spec,
    }


def namespace(name: str) -> Any:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def pod(name: str = "p", namespace: str = "foo", *, proxy: bool = True, **labels: str) -> Any:
    containers = [{"name": "server"}, *([{"name": "istio-proxy"}] if proxy else [])]
    return an("Pod", name, namespace, {"containers": containers}, labels=labels)


def told(*objects: Any) -> list[tuple[Kind, str]]:
    return [(one.kind, one.resource) for one in analyze(Inventory.of(objects))]


POLICY = "AuthorizationPolicy foo/x"


def sources(**given: Any) -> dict[str, Any]:
    return {"rules": [{"from": [{"source": given}]}]}


@pytest.mark.parametrize(
    ("pattern", "missing"),
    [
        ("foo", False), ("FOO", False), ("fo*", False), ("*oo", False), ("*", False),
        ("bar", True), ("b*", True), ("*ar", True), ("f*o", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("field", ["namespaces", "notNamespaces"])
def test_namespaces_that_are_named_must_exist(pattern: str, missing: bool, field: str) -> None:
    policy = an("AuthorizationPolicy", spec=sources(**{field: [pattern]}))
    expected = [(Kind.NOT_FOUND, POLICY)] if missing else []
    assert told(namespace("foo"), pod(), policy) == expected


def test_each_missing_namespace_is_told() -> None:
    policy = an("AuthorizationPolicy", spec=sources(namespaces=["a", "foo"], notNamespaces=["b"]))
    assert told(namespace("foo"), pod(), policy) == [(Kind.NOT_FOUND, POLICY)] * 2


@pytest.mark.parametrize(
    ("where", "selector", "pods", "told_of"),
    [
        ("foo", None, [pod()], False),
        ("foo", None, [], True),
        ("foo", None, [pod(namespace="bar")], True),
        ("foo", None, [pod(proxy=False)], True),
        ("foo", {"app": "a"}, [pod(app="a")], False),
        ("foo", {"app": "a"}, [pod(app="b")], True),
        ("foo", {"app": "a"}, [pod(namespace="bar", app="a")], True),
        ("foo", {"app": "a"}, [pod(proxy=False, app="a")], True),
        ("istio-system", None, [], False),
        ("istio-system", {"app": "a"}, [pod(namespace="bar", app="a")], False),
        ("istio-system", {"app": "a"}, [pod(app="b")], True),
    ],
)
def test_a_policy_should_select_something_in_the_mesh(
    where: str, selector: Any, pods: list[Any], told_of: bool
) -> None:
    spec = {} if selector is None else {"selector": {"matchLabels": selector}}
    policy = an("AuthorizationPolicy", namespace=where, spec=spec)
    name = f"AuthorizationPolicy {where}/x"
    assert told(*pods, policy) == ([(Kind.NO_WORKLOADS, name)] if told_of else [])


ENABLED = {"labels": {"istio-injection": "enabled"}}


@pytest.mark.parametrize(
    ("namespace_meta", "pod_meta", "in_mesh"),
    [
        ({}, {}, False),
        (ENABLED, {}, True),
        ({"labels": {"istio-injection": "disabled"}}, {}, False),
        (ENABLED, {"labels": {"sidecar.istio.io/inject": "false"}}, False),
        (ENABLED, {"annotations": {"sidecar.istio.io/inject": "false"}}, False),
        ({}, {"labels": {"sidecar.istio.io/inject": "true"}}, True),
        ({}, {"annotations": {"sidecar.istio.io/inject": "true"}}, True),
        ({}, {"annotations": {"ambient.istio.io/redirection": "enabled"}}, True),
        (
            {},
            {
                "labels": {"sidecar.istio.io/inject": "false"},
                "annotations": {"sidecar.istio.io/inject": "true"},
            },
            False,
        ),
    ],
)
def test_a_pod_is_in_the_mesh_if_injection_puts_it_there(
    namespace_meta: Any, pod_meta: Any, in_mesh: bool
) -> None:
    home = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "foo", **namespace_meta}}
    bare = an("Pod", "p", spec={"containers": [{"name": "server"}]}, **pod_meta)
    policy = an("AuthorizationPolicy")
    assert told(bare, policy, home) == ([] if in_mesh else [(Kind.NO_WORKLOADS, POLICY)])


def istiod(*variables: Any, app: str = "istiod") -> Any:
    containers = [{"name": "other"}, {"name": "discovery", "env": list(variables)}]
    spec = {
        "selector": {"matchLabels": {"app": app}},
        "template": {"spec": {"containers": containers}},
    }
    return an("Deployment", "istiod", "istio-system", spec, labels={"app": app})


def test_a_control_plane_should_not_fetch_key_sets_from_anywhere() -> None:
    check = an("RequestAuthentication", spec={"jwtRules": [{"issuer": "a"}]})
    found = [(Kind.KEYS_FROM_ANYWHERE, "Deployment istio-system/istiod")]
    blocked = {"name": "BLOCKED_CIDRS_IN_JWKS_URIS", "value": "10.0.0.0/8"}
    assert told(check, istiod()) == found
    assert told(check, istiod(blocked | {"value": ""}, {"name": "A", "value": "b"})) == found
    assert told(check, istiod(blocked)) == []
    assert told(check, istiod(app="other")) == []
    assert told(check) == []
    assert told(istiod()) == []


def test_problems_and_warnings_of_resources_are_messages() -> None:
    invalid = an("PeerAuthentication", "bad", spec={"mtls": {"mode": "OPEN"}})
    doubtful = an("PeerAuthentication", "doubtful", spec={"selector": {}})
    found = told(invalid, doubtful)
    assert found == [
        (Kind.INVALID, "PeerAuthentication foo/bad"),
        (Kind.DOUBTFUL, "PeerAuthentication foo/doubtful"),
    ]


@pytest.mark.parametrize(
    ("tls", "told_of"),
    [
        ({"mode": "SIMPLE"}, True),
        ({"mode": "MUTUAL", "clientCertificate": "a", "privateKey": "b"}, True),
        ({"mode": "SIMPLE", "caCertificates": "a"}, False),
        ({"mode": "SIMPLE", "credentialName": "a"}, True),
        ({"mode": "SIMPLE", "insecureSkipVerify": True}, True),
        ({"mode": "ISTIO_MUTUAL"}, False),
        ({"mode": "DISABLE"}, False),
    ],
)
def test_tls_should_verify_the_server(tls: Any, told_of: bool) -> None:
    rule = an("DestinationRule", spec={"host": "a.b", "trafficPolicy": {"tls": tls}})
    name = "DestinationRule foo/x"
    assert told(rule) == ([(Kind.UNVERIFIED, name)] if told_of else [])
    ports = [{"port": {"number": 80}, "tls": tls}, {"port": {"number": 81}, "tls": tls}]
    rule = an(
        "DestinationRule", spec={"host": "a.b", "trafficPolicy": {"portLevelSettings": ports}}
    )
    assert told(rule) == ([(Kind.UNVERIFIED_PORT, name)] * 2 if told_of else [])


def test_a_credential_verifies_only_for_selected_workloads() -> None:
    tls = {"mode": "SIMPLE", "credentialName": "a"}
    policy = {"tls": tls, "portLevelSettings": [{"port": {"number": 80}, "tls": tls}]}
    spec: dict[str, Any] = {"host": "a.b", "trafficPolicy": policy}
    selector = {"workloadSelector": {"matchLabels": {"app": "a"}}}
    name = "DestinationRule foo/x"
    assert told(an("DestinationRule", spec=spec)) == [
        (Kind.UNVERIFIED, name),
        (Kind.UNVERIFIED_PORT, name),
    ]
    assert told(an("DestinationRule", spec=spec | selector)) == []


def test_a_rule_without_tls_is_no_concern() -> None:
    assert told(an("DestinationRule", spec={"host": "a.b"})) == []


GATEWAY_POD: dict[str, Any] = {"gateway.networking.k8s.io/gateway-name": "gw", "app": "gw"}


@pytest.mark.parametrize("kind", ["AuthorizationPolicy", "RequestAuthentication"])
def test_a_selector_does_not_reach_a_gateway_of_the_gateway_api(kind: str) -> None:
    gateway = pod(**GATEWAY_POD)
    selecting = an(kind, spec={"selector": {"matchLabels": {"app": "gw"}}})
    assert told(gateway, selecting) == [(Kind.INEFFECTIVE_SELECTOR, f"{kind} foo/x")]
    root = an(kind, namespace="istio-system", spec={"selector": {"matchLabels": {"app": "gw"}}})
    assert told(pod(), gateway, root) == []  # Istio looks in the policy's own namespace.
    elsewhere = pod(namespace="bar", **GATEWAY_POD)
    assert told(elsewhere, pod(app="gw"), selecting) == []
    target = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gw"}
    assert told(gateway, an(kind, spec={"targetRef": target})) == []


CLAIM = {"@request.auth.claims.group": {"exact": "admin"}}


def route(headers: str = "headers", gateways: tuple[str, ...] = ("mesh", "gw")) -> Any:
    http = [{"match": [{"uri": {}}, {headers: CLAIM}]}]
    return an("VirtualService", "vs", spec={"gateways": list(gateways), "http": http})


GATEWAY = an("Gateway", "gw", spec={"selector": {"app": "gw"}})
UNCHECKED = [(Kind.CLAIMS_UNCHECKED, "VirtualService foo/vs")]


@pytest.mark.parametrize("headers", ["headers", "withoutHeaders"])
def test_routes_by_claims_need_someone_who_checks_tokens(headers: str) -> None:
    objects = (GATEWAY, pod(app="gw"), route(headers))
    assert told(*objects) == UNCHECKED
    check = {"selector": {"matchLabels": {"app": "gw"}}, "jwtRules": [{"issuer": "a"}]}
    assert told(*objects, an("RequestAuthentication", spec=check)) == []
    assert told(*objects, an("RequestAuthentication", namespace="istio-system", spec=check)) == []
    assert told(*objects, an("RequestAuthentication", namespace="bar", spec=check)) == UNCHECKED
    other = {"selector": {"matchLabels": {"app": "other"}}}
    assert told(*objects, an("RequestAuthentication", spec=other)) == UNCHECKED


def test_routes_that_are_no_concern() -> None:
    plain = an("VirtualService", spec={"http": [{"match": [{"headers": {"x": {}}}]}]})
    assert told(GATEWAY, pod(app="gw"), plain) == []
    assert told(GATEWAY, pod(app="other"), route()) == []
    assert told(pod(app="gw"), route()) == []
    assert told(GATEWAY, pod(app="gw"), route(gateways=("bar/gw", "mesh"))) == []
    assert told(GATEWAY, pod(app="gw"), route(gateways=("foo/gw",))) == UNCHECKED


def test_other_kinds_and_odd_shapes_are_passed_over() -> None:
    odd = {"apiVersion": "v1", "kind": "Pod", "metadata": 5}
    assert told(odd, an("Deployment"), "text", None, []) == []


def test_what_istio_does_not_say() -> None:
    permissive = an("PeerAuthentication", spec={"mtls": {"mode": "PERMISSIVE"}})
    second = an("PeerAuthentication", "y", spec={"mtls": {"mode": "STRICT"}})
    conflicting = an(
        "DestinationRule", spec={"host": "a.b", "trafficPolicy": {"tls": {"mode": "DISABLE"}}}
    )
    assert told(permissive, second, conflicting) == []


def test_a_message_reads_like_istioctls() -> None:
    policy = an("AuthorizationPolicy", spec=sources(namespaces=["bar"]))
    (message,) = analyze(Inventory.of([pod(), policy]))
    assert str(message) == f"Error [IST0101] ({POLICY}) there is no namespace 'bar'"
    assert message.kind.istio_name == "ReferencedResourceNotFound"
