"""Tables for Istio's admission rules, one line for each sentence of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from mesh.resources.loader import Loaded, load_objects

RSA = {"kty": "RSA", "n": "0vx7", "e": "AQAB"}


def load(kind: str, spec: Any, annotations: Mapping[str, str] | None = None) -> Loaded:
    networking = kind in {"DestinationRule", "ServiceEntry", "WorkloadEntry", "WorkloadGroup"}
    group = "networking.istio.io/v1" if networking else "security.istio.io/v1"
    metadata = {"name": "x", "namespace": "ns", "annotations": annotations or {}}
    return load_objects([{"apiVersion": group, "kind": kind, "metadata": metadata, "spec": spec}])


def fields(kind: str, spec: Any) -> list[str]:
    return [problem.field for problem in load(kind, spec).problems]


def source(**given: Any) -> dict[str, Any]:
    return {"rules": [{"from": [{"source": given}]}]}


def operation(**given: Any) -> dict[str, Any]:
    return {"rules": [{"to": [{"operation": given}]}]}


def when(key: str, *values: str) -> dict[str, Any]:
    return {"rules": [{"when": [{"key": key, "values": list(values)}]}]}


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"rules": [{}]},
        {"rules": []},
        {"action": "AUDIT"},
        {"action": "DENY", "rules": [{}]},
        {"action": "CUSTOM", "rules": [{}], "provider": {"name": "p"}},
        {"rules": [{"from": [{"source": {"ipBlocks": ["10.1.2.3/8"]}}]}]},
        {"targetRef": {"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "g"}},
        {"targetRefs": [{"kind": "Service", "name": "g"}, {"kind": "Service", "name": "h"}]},
        {"targetRef": {"kind": "ServiceEntry", "group": "networking.istio.io", "name": "g"}},
        {"targetRef": {"kind": "GatewayClass", "group": "gateway.networking.k8s.io", "name": "g"}},
        source(serviceAccounts=["sa", "ns/sa"]),
        source(serviceAccounts=["sa"], ipBlocks=["::1"], trustDomains=["td"]),
        source(namespaces=["*a*"], principals=["*"]),
        operation(ports=["0", "65535"], paths=["/{*}", "*", "/a/**"]),
        when("source.serviceAccount", "sa"),
        when("source.trustDomain", "td*"),
        when("request.headers[x]", "*"),
        when("request.experimental.inline.headers[x]", "v"),
        when("request.auth.claims[a][b]", "v"),
        when("experimental.envoy.filters.a.b[c]", "v"),
        when("connection.sni", "*.x"),
        when("destination.port", "80"),
        {"rules": [{"when": [{"key": "source.ip", "notValues": ["::/0"]}]}]},
        {"rules": [{}] * 512},
        source(serviceAccounts=[f"sa{n}" for n in range(16)]),
        {"selector": {"matchLabels": {"a": ""}}},
    ],
)
def test_authorization_policies_that_are_good(spec: Any) -> None:
    loaded = load("AuthorizationPolicy", spec)
    assert loaded.problems == ()
    assert loaded.warnings == ()


RULE = "spec.rules[0]"
SOURCE = "spec.rules[0].from[0].source"
OPERATION = "spec.rules[0].to[0].operation"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"action": "allow"}, "spec.action"),
        ({"action": "DENY"}, "spec.rules"),
        ({"action": "DENY", "rules": []}, "spec.rules"),
        ({"action": "CUSTOM", "provider": {"name": "p"}}, "spec.rules"),
        ({"action": "CUSTOM", "rules": [{}]}, "spec.provider.name"),
        ({"action": "CUSTOM", "rules": [{}], "provider": {}}, "spec.provider.name"),
        ({"action": "CUSTOM", "rules": [{}], "provider": {"name": ""}}, "spec.provider.name"),
        ({"provider": {"name": "p"}, "rules": [{}]}, "spec.provider"),
        ({"action": "DENY", "provider": {}, "rules": [{}]}, "spec.provider"),
        ({"rules": [None]}, RULE),
        ({"rules": [{}] * 513}, "spec.rules"),
        ({"rules": [{"from": []}]}, RULE + ".from"),
        ({"rules": [{"to": []}]}, RULE + ".to"),
        ({"rules": [{"from": [None]}]}, RULE + ".from[0]"),
        ({"rules": [{"from": [{}]}]}, RULE + ".from[0]"),
        ({"rules": [{"to": [{}]}]}, RULE + ".to[0]"),
        ({"rules": [{"from": [{"source": {"ipBlocks": ["::1"]}}] * 513}]}, RULE + ".from"),
        (source(), SOURCE),
        (source(principals=[]), SOURCE),
        (operation(), OPERATION),
        (operation(hosts=[]), OPERATION),
        *(
            (source(**{name: ["ok", ""]}), f"{SOURCE}.{name}[1]")
            for name in (
                "principals",
                "notPrincipals",
                "requestPrincipals",
                "notRequestPrincipals",
                "namespaces",
                "notNamespaces",
                "serviceAccounts",
                "notServiceAccounts",
                "trustDomains",
                "notTrustDomains",
            )
        ),
        *(
            (source(**{name: ["::1", text]}), f"{SOURCE}.{name}[1]")
            for name in ("ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks")
            for text in ("", "ip", "1.2.3.4/33", "1.2.3.4/8/8")
        ),
        *(
            (operation(**{name: ["ok", ""]}), f"{OPERATION}.{name}[1]")
            for name in ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")
        ),
        *(
            (operation(**{name: [text]}), f"{OPERATION}.{name}[0]")
            for name in ("ports", "notPorts")
            for text in ("", "http", "-1", "65536", "80-90")
        ),
        *(
            (operation(**{name: ["/{a}"]}), f"{OPERATION}.{name}[0]")
            for name in ("paths", "notPaths")
        ),
        (operation(ports=[80]), f"{OPERATION}.ports[0]"),
        *(
            (source(**{accounts: ["a"], other: ["b"]}), SOURCE)
            for accounts in ("serviceAccounts", "notServiceAccounts")
            for other in ("principals", "notPrincipals", "namespaces", "notNamespaces")
        ),
        (source(serviceAccounts=[f"sa{n}" for n in range(17)]), f"{SOURCE}.serviceAccounts"),
        (source(serviceAccounts=["a*"]), f"{SOURCE}.serviceAccounts[0]"),
        (source(serviceAccounts=["a/b/c"]), f"{SOURCE}.serviceAccounts[0]"),
        (source(trustDomains=["*a*"]), f"{SOURCE}.trustDomains[0]"),
        ({"rules": [{"when": [{"values": ["a"]}]}]}, RULE + ".when[0]"),
        ({"rules": [{"when": [{"key": "", "values": ["a"]}]}]}, RULE + ".when[0].key"),
        ({"rules": [{"when": [{"key": "source.ip"}]}]}, RULE + ".when[0]"),
        (when("source.ip"), RULE + ".when[0]"),
        *(
            (when(key, "v"), RULE + ".when[0].key")
            for key in (
                "source.user",
                "destination.labels",
                "destination.labels[a]",
                "destination.name",
                "destination.namespace",
                "destination.user",
                "x",
                "source.Ip",
                "request.headers",
                "request.headers[]",
                "request.headers[x",
                "request.auth.claims",
                "connection.sni[x]",
                "experimental.envoy.filters.a.b.x",
                "request.auth.claims[]",
            )
        ),
        *(
            (when(key, "v", text), RULE + ".when[0].values[1]")
            for key, text in (
                ("source.namespace", ""),
                ("source.principal", ""),
                ("request.headers[x]", ""),
                ("request.auth.claims[x]", ""),
                ("connection.sni", ""),
                ("source.serviceAccount", "*"),
                ("source.trustDomain", "a/b"),
            )
        ),
        (when("source.ip", "::1", "x"), RULE + ".when[0].values[1]"),
        (when("remote.ip", "::1", "x"), RULE + ".when[0].values[1]"),
        (when("destination.ip", "::1", "x"), RULE + ".when[0].values[1]"),
        (when("destination.port", "80", "x"), RULE + ".when[0].values[1]"),
        (
            {"rules": [{"when": [{"key": "source.ip", "values": ["::1"], "notValues": ["x"]}]}]},
            RULE + ".when[0].notValues[0]",
        ),
        (when("source.serviceAccount", *[f"a{n}" for n in range(17)]), RULE + ".when[0].values"),
        *(
            (
                {**source(**{name: ["x"]}), "action": "CUSTOM", "provider": {"name": "p"}},
                f"{SOURCE}.{name}",
            )
            for name in (
                "principals",
                "notPrincipals",
                "requestPrincipals",
                "notRequestPrincipals",
                "namespaces",
                "notNamespaces",
                "serviceAccounts",
                "notServiceAccounts",
                "trustDomains",
                "notTrustDomains",
            )
        ),
        *(
            ({**when(key, "x"), "action": "CUSTOM", "provider": {"name": "p"}}, RULE + ".when[0]")
            for key in (
                "source.namespace",
                "source.principal",
                "source.serviceAccount",
                "source.trustDomain",
                "request.auth.principal",
                "request.auth.claims[a]",
                "request.auth.audiences",
                "request.auth.presenter",
            )
        ),
        ({"selector": {}, "targetRef": {"kind": "Service", "name": "s"}}, "spec"),
        (
            {
                "targetRefs": [{"kind": "Service", "name": "s"}],
                "targetRef": {"kind": "Service", "name": "s"},
            },
            "spec",
        ),
        ({"targetRef": {"kind": "Service"}}, "spec.targetRef"),
        ({"targetRef": {"kind": "Service", "name": ""}}, "spec.targetRef.name"),
        (
            {"targetRef": {"kind": "Service", "name": "s", "namespace": "n"}},
            "spec.targetRef.namespace",
        ),
        ({"targetRef": {"kind": "Serv_ice", "name": "s"}}, "spec.targetRef"),
        ({"targetRef": {"kind": "Pod", "name": "s"}}, "spec.targetRef"),
        (
            {"targetRef": {"kind": "Gateway", "name": "s", "group": "networking.istio.io"}},
            "spec.targetRef",
        ),
        ({"targetRefs": [{"kind": "Service", "name": "s"}] * 17}, "spec.targetRefs"),
        ({"targetRefs": [{"kind": "Pod", "name": "s"}]}, "spec.targetRefs[0]"),
        ({"selector": {"matchLabels": {"": "x"}}}, "spec.selector.matchLabels."),
        ({"selector": {"matchLabels": {"a*": "x"}}}, "spec.selector.matchLabels.a*"),
        ({"selector": {"matchLabels": {"a": "x*"}}}, "spec.selector.matchLabels.a"),
        ({"selector": {"matchLabels": {"a": "x" * 64}}}, "spec.selector.matchLabels.a"),
    ],
)
def test_authorization_policies_that_are_refused(spec: Any, field: str) -> None:
    loaded = load("AuthorizationPolicy", spec)
    assert [problem.field for problem in loaded.problems] == [field]
    assert loaded.resources == ()


@pytest.mark.parametrize(
    ("rule", "warned"),
    [
        ({"to": [{"operation": {"methods": ["GET"]}}]}, True),
        ({"to": [{"operation": {"methods": ["GET"], "ports": ["80"]}}]}, False),
        ({"to": [{"operation": {"methods": ["GET"], "notPorts": ["80"]}}]}, False),
        ({"from": [{"source": {"requestPrincipals": ["x"]}}]}, True),
        ({"from": [{"source": {"notRequestPrincipals": ["x"]}}]}, True),
        ({"from": [{"source": {"requestPrincipals": ["x"], "namespaces": ["x"]}}]}, False),
        ({"from": [{"source": {"ipBlocks": ["::1"]}}]}, False),
        (
            {"from": [{"source": {"namespaces": ["x"]}}], "to": [{"operation": {"hosts": ["x"]}}]},
            True,
        ),
        ({}, False),
        ({"when": [{"key": "request.headers[x]", "values": ["y"]}]}, False),
    ],
)
def test_a_deny_rule_that_would_deny_all_tcp_is_warned_of(rule: Any, warned: bool) -> None:
    loaded = load("AuthorizationPolicy", {"action": "DENY", "rules": [rule]})
    assert loaded.problems == ()
    assert [warning.field for warning in loaded.warnings] == ([RULE] if warned else [])
    assert load("AuthorizationPolicy", {"rules": [rule]}).warnings == ()


@pytest.mark.parametrize(
    "kind", ["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"]
)
@pytest.mark.parametrize("selector", [{}, {"matchLabels": {}}])
def test_a_selector_without_labels_is_warned_of(kind: str, selector: Any) -> None:
    loaded = load(kind, {"selector": selector})
    assert loaded.problems == ()
    assert len(loaded.warnings) == 1


@pytest.mark.parametrize(
    ("kind", "spec", "value", "accepted"),
    [
        *(
            ("AuthorizationPolicy", {}, value, True)
            for value in ("1", "t", "T", "TRUE", "true", "True")
        ),
        *(("AuthorizationPolicy", {}, value, True) for value in ("0", "f", "F", "FALSE", "false")),
        *(("AuthorizationPolicy", {}, value, False) for value in ("", "foo", "yes", "tRue")),
        ("AuthorizationPolicy", {"action": "DENY", "rules": [{}]}, "true", True),
        ("AuthorizationPolicy", {"action": "AUDIT"}, "true", False),
        (
            "AuthorizationPolicy",
            {"action": "CUSTOM", "rules": [{}], "provider": {"name": "p"}},
            "true",
            False,
        ),
        ("PeerAuthentication", {}, "true", False),
        ("RequestAuthentication", {}, "false", False),
    ],
)
def test_the_dry_run_annotation(kind: str, spec: Any, value: str, accepted: bool) -> None:
    assert bool(load(kind, spec, {"istio.io/dry-run": value}).resources) == accepted


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({"issuer": "a"}, None),
        ({"jwksUri": "https://a"}, None),
        ({"jwks_uri": "https://a"}, None),
        ({"issuer": "a", "jwks": json.dumps({"keys": [RSA]})}, None),
        ({"issuer": "a", "jwks": json.dumps(RSA)}, None),
        ({"issuer": "a", "jwks": json.dumps({"keys": []})}, None),
        ({"issuer": "a", "timeout": "1m30s", "presence": "REQUIRED"}, None),
        ({"issuer": "a", "spaceDelimitedClaims": ["x"] * 64}, None),
        ({}, ""),
        ({"jwks": json.dumps(RSA)}, ""),
        ({"issuer": ""}, ".issuer"),
        ({"issuer": "", "jwksUri": "https://a"}, ".issuer"),
        ({"issuer": "a", "jwksUri": "a.b"}, ".jwksUri"),
        ({"issuer": "a", "jwksUri": "tcp://a"}, ".jwksUri"),
        ({"issuer": "a", "jwksUri": "http://a:x"}, ".jwksUri"),
        ({"issuer": "a", "jwksUri": "http://a/" + "x" * 2048}, ".jwksUri"),
        ({"issuer": "a", "jwksUri": "http://a", "jwks_uri": "http://a"}, ".jwks_uri"),
        ({"issuer": "a", "jwksUri": "http://a", "jwks": json.dumps(RSA)}, ".jwks"),
        ({"issuer": "a", "jwks": "not json"}, ".jwks"),
        ({"issuer": "a", "jwks": "[1]"}, ".jwks"),
        ({"issuer": "a", "jwks": "[" * 100_000}, ".jwks"),
        ({"issuer": "a", "jwks": '{"keys": [{"kty": "RSA"}]}'}, ".jwks"),
        ({"issuer": "a", "jwks": '{"keys": [{"kty": 1}]}'}, ".jwks"),
        ({"issuer": "a", "jwks": '{"keys": [{"kty": "EC", "x": "a", "y": "b"}]}'}, ".jwks"),
        ({"issuer": "a", "jwks": '{"keys": 1}'}, ".jwks"),
        *(
            ({"issuer": "a", name: [""]}, f".{name}[0]")
            for name in ("audiences", "fromParams", "fromCookies", "spaceDelimitedClaims")
        ),
        ({"issuer": "a", "spaceDelimitedClaims": ["x"] * 65}, ".spaceDelimitedClaims"),
        ({"issuer": "a", "fromHeaders": [{"prefix": "x"}]}, ".fromHeaders[0]"),
        ({"issuer": "a", "fromHeaders": [{"name": ""}]}, ".fromHeaders[0].name"),
        ({"issuer": "a", "fromHeaders": [None]}, ".fromHeaders[0]"),
        ({"issuer": "a", "outputClaimToHeaders": [None]}, ".outputClaimToHeaders[0]"),
        ({"issuer": "a", "outputClaimToHeaders": [{"header": "x"}]}, ".outputClaimToHeaders[0]"),
        (
            {"issuer": "a", "outputClaimToHeaders": [{"header": "", "claim": "x"}]},
            ".outputClaimToHeaders[0].header",
        ),
        (
            {"issuer": "a", "outputClaimToHeaders": [{"header": ":x", "claim": "x"}]},
            ".outputClaimToHeaders[0].header",
        ),
        ({"issuer": "a", "timeout": "apple"}, ".timeout"),
        ({"issuer": "a", "timeout": "0.5ms"}, ".timeout"),
        ({"issuer": "a", "presence": "MANDATORY"}, ".presence"),
        ({"issuer": "a", "jwksURI": "https://a"}, ".jwksURI"),
    ],
)
def test_token_rules(rule: Any, field: str | None) -> None:
    expected = [] if field is None else [f"spec.jwtRules[0]{field}"]
    assert fields("RequestAuthentication", {"jwtRules": [rule]}) == expected


def test_a_private_key_in_a_key_set_is_warned_of() -> None:
    keys = json.dumps({"keys": [RSA, {**RSA, "d": "secret"}]})
    loaded = load("RequestAuthentication", {"jwtRules": [{"issuer": "a", "jwks": keys}]})
    assert loaded.problems == ()
    assert ["PRIVATE" in warning.message for warning in loaded.warnings] == [True]


def tls(**given: Any) -> dict[str, Any]:
    return {"host": "a.b", "trafficPolicy": {"tls": given}}


TLS = "spec.trafficPolicy.tls"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (tls(mode="ISTIO_MUTUAL"), []),
        (tls(mode="DISABLE"), []),
        (tls(), []),
        (tls(mode="SIMPLE", caCertificates="x", subjectAltNames=["a"]), []),
        (tls(mode="MUTUAL", credentialName="x"), []),
        (tls(mode="MUTUAL", clientCertificate="a", privateKey="b"), []),
        (tls(mode="SIMPLE", insecureSkipVerify=True), []),
        (tls(mode="MUTUAL"), [f"{TLS}.clientCertificate", f"{TLS}.privateKey"]),
        (tls(mode="MUTUAL", clientCertificate="a"), [f"{TLS}.privateKey"]),
        (tls(mode="SIMPLE", credentialName="x", caCertificates="x"), [f"{TLS}.credentialName"]),
        (tls(mode="MUTUAL", credentialName="x", privateKey="x"), [f"{TLS}.credentialName"]),
        (
            tls(mode="SIMPLE", insecureSkipVerify=True, caCertificates="x"),
            [f"{TLS}.caCertificates"],
        ),
        (
            tls(mode="SIMPLE", insecureSkipVerify=True, subjectAltNames=["x"]),
            [f"{TLS}.subjectAltNames"],
        ),
        (tls(mode="SIMPLE", insecureSkipVerify="yes"), [f"{TLS}.insecureSkipVerify"]),
        (tls(mode="PLAINTEXT"), [f"{TLS}.mode"]),
        ({"host": ""}, ["spec.host"]),
        ({"host": "a.*.b"}, ["spec.host"]),
        ({}, ["spec"]),
        ({"host": "*"}, []),
        ({"host": "a", "trafficPolicy": {}}, ["spec.trafficPolicy"]),
        (
            {"host": "a", "trafficPolicy": {"portLevelSettings": [{"tls": {}}]}},
            ["spec.trafficPolicy.portLevelSettings[0].port"],
        ),
        (
            {"host": "a", "trafficPolicy": {"portLevelSettings": [{"port": {"number": 80}}]}},
            ["spec.trafficPolicy.portLevelSettings[0]"],
        ),
        ({"host": "a", "subsets": [{"name": "v1", "labels": {"v": "1"}}]}, []),
        ({"host": "a", "subsets": [{"name": ""}]}, ["spec.subsets[0].name"]),
        ({"host": "a", "subsets": [{"name": "v"}, {"name": "v"}]}, ["spec.subsets[1].name"]),
        (
            {"host": "a", "subsets": [{"name": "v", "trafficPolicy": {"tls": {"mode": "MUTUAL"}}}]},
            [
                "spec.subsets[0].trafficPolicy.tls.clientCertificate",
                "spec.subsets[0].trafficPolicy.tls.privateKey",
            ],
        ),
        ({"host": "a", "exportTo": ["."]}, []),
        ({"host": "a", "exportTo": [".", "ns"]}, ["spec.exportTo[1]"]),
        ({"host": "a", "exportTo": ["*", "a"]}, ["spec.exportTo"]),
        ({"host": "a", "exportTo": ["~"]}, ["spec.exportTo[0]"]),
        (
            {"host": "a", "exportTo": ["other"], "workloadSelector": {"matchLabels": {"a": "b"}}},
            ["spec.exportTo"],
        ),
        (
            {"host": "a", "trafficPolicy": {"outlierDetection": {"interval": "0s"}}},
            ["spec.trafficPolicy.outlierDetection.interval"],
        ),
        (
            {"host": "a", "trafficPolicy": {"outlierDetection": {"maxEjectionPercent": 101}}},
            ["spec.trafficPolicy.outlierDetection.maxEjectionPercent"],
        ),
        (
            {
                "host": "a",
                "trafficPolicy": {"outlierDetection": {"consecutiveLocalOriginFailures": 1}},
            },
            ["spec.trafficPolicy.outlierDetection.consecutiveLocalOriginFailures"],
        ),
        (
            {"host": "a", "trafficPolicy": {"connectionPool": {}}},
            ["spec.trafficPolicy.connectionPool"],
        ),
        (
            {"host": "a", "trafficPolicy": {"connectionPool": {"tcp": {"connectTimeout": "x"}}}},
            ["spec.trafficPolicy.connectionPool.tcp.connectTimeout"],
        ),
        (
            {"host": "a", "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": -1}}}},
            ["spec.trafficPolicy.connectionPool.tcp.maxConnections"],
        ),
        (
            {"host": "a", "trafficPolicy": {"tunnel": {}, "proxyProtocol": {}}},
            ["spec.trafficPolicy"],
        ),
    ],
)
def test_destination_rules(spec: Any, expected: list[str]) -> None:
    assert fields("DestinationRule", spec) == expected


def service(**given: Any) -> dict[str, Any]:
    return {"hosts": ["a.b"], **given}


PORT = {"number": 80, "name": "http", "protocol": "HTTP"}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (service(), []),
        (service(addresses=["1.2.3.4/8"], ports=[PORT]), []),
        (
            service(
                location="MESH_INTERNAL",
                resolution="STATIC",
                ports=[PORT],
                endpoints=[{"address": "1.2.3.4", "ports": {"http": 8080}}],
            ),
            [],
        ),
        (service(resolution="DNS", endpoints=[{"address": "x.y"}]), []),
        (service(resolution="STATIC", workloadSelector={"labels": {"a": "b"}}), []),
        (service(resolution="STATIC", ports=[PORT], endpoints=[{"address": "unix:///a"}]), []),
        ({}, ["spec"]),
        ({"hosts": []}, ["spec.hosts"]),
        ({"hosts": ["*"]}, ["spec.hosts[0]"]),
        ({"hosts": ["*"], "resolution": "DYNAMIC_DNS"}, []),
        (service(resolution="DYNAMIC_DNS"), ["spec.hosts[0]"]),
        ({"hosts": ["a*"]}, ["spec.hosts[0]"]),
        (service(addresses=["x"]), ["spec.addresses[0]"]),
        (service(addresses=["1.2.3.4/8"], resolution="DNS"), ["spec.addresses[0]"]),
        (service(ports=[PORT, {**PORT, "number": 81}]), ["spec.ports[1].name"]),
        (service(ports=[PORT, {**PORT, "name": "x"}]), ["spec.ports[1].number"]),
        (service(ports=[{**PORT, "number": 0}]), ["spec.ports[0].number"]),
        (service(ports=[{**PORT, "number": 99999}]), ["spec.ports[0].number"]),
        (service(ports=[{**PORT, "number": "80"}]), ["spec.ports[0].number"]),
        (service(ports=[{**PORT, "targetPort": 99999}]), ["spec.ports[0].targetPort"]),
        (service(ports=[{**PORT, "name": "@"}]), ["spec.ports[0].name"]),
        (service(ports=[{**PORT, "protocol": "SMTP"}]), ["spec.ports[0].protocol"]),
        (
            service(workloadSelector={"labels": {"a": "b"}}, endpoints=[], resolution="STATIC"),
            ["spec.workloadSelector"],
        ),
        (
            service(workloadSelector={"labels": {"a": "*"}}, resolution="STATIC"),
            ["spec.workloadSelector.labels.a"],
        ),
        (service(endpoints=[{"address": "1.2.3.4"}]), ["spec.endpoints"]),
        (
            service(resolution="STATIC", endpoints=[{"address": "x.y"}]),
            ["spec.endpoints[0].address"],
        ),
        (
            service(resolution="STATIC", endpoints=[{"address": "1.1.1.1", "ports": {"x": 1}}]),
            ["spec.endpoints[0].ports.x"],
        ),
        (
            service(resolution="STATIC", endpoints=[{"address": "unix:///a"}]),
            ["spec.endpoints[0].address"],
        ),
        (
            service(resolution="DNS", endpoints=[{"address": "unix:///a"}]),
            ["spec.endpoints[0].address"],
        ),
        ({"hosts": ["*.b"], "resolution": "DNS"}, ["spec.hosts[0]"]),
        (
            service(resolution="DNS_ROUND_ROBIN", endpoints=[{"address": "a"}, {"address": "b"}]),
            ["spec.endpoints"],
        ),
        (
            {"hosts": ["a.b", "c.d"], "resolution": "DNS", "ports": [{**PORT, "protocol": "TCP"}]},
            ["spec.ports[0]"],
        ),
        (service(exportTo=["~"]), []),
        (service(exportTo=["~", "a"]), ["spec.exportTo"]),
    ],
)
def test_service_entries(spec: Any, expected: list[str]) -> None:
    assert fields("ServiceEntry", spec) == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"address": "1.2.3.4", "ports": {"http": 80}, "labels": {"a": "b"}}, []),
        ({"address": "a.b"}, []),
        ({"address": "unix:///a/b"}, []),
        ({"address": "unix://@a"}, []),
        ({"network": "n"}, []),
        (None, [""]),
        ({}, ["spec.address"]),
        ({"address": "a_b"}, ["spec.address"]),
        ({"address": "unix:///dir/"}, ["spec.address"]),
        ({"address": "unix://relative"}, ["spec.address"]),
        ({"address": "unix://@a", "ports": {"http": 80}}, ["spec.address"]),
        ({"address": "1.1.1.1", "ports": {"http": 99999}}, ["spec.ports.http"]),
        ({"address": "1.1.1.1", "ports": {"@": 80}}, ["spec.ports.@"]),
        ({"address": "1.1.1.1", "labels": {"a b": "c"}}, ["spec.labels.a b"]),
    ],
)
def test_workload_entries(spec: Any, expected: list[str]) -> None:
    assert fields("WorkloadEntry", spec) == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"template": {}}, []),
        (
            {
                "template": {"serviceAccount": "sa", "ports": {"http": 1}},
                "metadata": {"labels": {"a": "b"}},
                "probe": {"tcpSocket": {"port": 80}},
            },
            [],
        ),
        ({"template": {}, "probe": {"httpGet": {"port": 80, "scheme": "HTTPS"}}}, []),
        ({"template": {}, "probe": {"exec": {"command": ["x"]}}}, []),
        ({"template": {}, "probe": {"grpc": {"port": 80}}}, []),
        (None, [""]),
        ({}, ["spec"]),
        ({"template": {}, "metadata": {"labels": {"a b": "c"}}}, ["spec.metadata.labels.a b"]),
        ({"template": {}, "probe": {}}, ["spec.probe"]),
        ({"template": {}, "probe": {"tcpSocket": {"port": 65536}}}, ["spec.probe.tcpSocket.port"]),
        ({"template": {}, "probe": {"exec": {"command": []}}}, ["spec.probe.exec.command"]),
        (
            {"template": {}, "probe": {"tcpSocket": {"port": 1}, "periodSeconds": -1}},
            ["spec.probe.periodSeconds"],
        ),
        (
            {"template": {}, "probe": {"httpGet": {"port": 80, "scheme": "FTP"}}},
            ["spec.probe.httpGet.scheme"],
        ),
        (
            {"template": {}, "probe": {"httpGet": {"port": 80, "httpHeaders": [{"name": "**"}]}}},
            ["spec.probe.httpGet.httpHeaders[0].name"],
        ),
    ],
)
def test_workload_groups(spec: Any, expected: list[str]) -> None:
    assert fields("WorkloadGroup", spec) == expected


@pytest.mark.parametrize(
    ("kind", "spec", "field"),
    [
        ("WorkloadEntry", {"network": "n"}, "spec.address"),
        ("ServiceEntry", {"hosts": ["*x.y"]}, "spec.hosts[0]"),
        ("ServiceEntry", service(ports=[{**PORT, "targetPort": 1}]), "spec.ports[0].targetPort"),
        (
            "DestinationRule",
            {"host": "a", "trafficPolicy": {"outlierDetection": {"consecutiveErrors": 1}}},
            "spec.trafficPolicy.outlierDetection.consecutiveErrors",
        ),
    ],
)
def test_what_is_only_warned_of(kind: str, spec: Any, field: str) -> None:
    loaded = load(kind, spec)
    assert loaded.problems == ()
    assert [warning.field for warning in loaded.warnings] == [field]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, []),
        ({"mtls": {}}, []),
        ({"mtls": {"mode": "UNSET"}}, []),
        ({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"80": {}}}, []),
        ({"portLevelMtls": {"80": {"mode": "STRICT"}}}, ["spec.portLevelMtls"]),
        ({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {}}, ["spec.portLevelMtls"]),
        (
            {"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"a": {}}},
            ["spec.portLevelMtls.a"],
        ),
        ({"mtls": {"mode": "Strict"}}, ["spec.mtls.mode"]),
        ({"targetRef": {"kind": "Service", "name": "x"}}, ["spec.targetRef"]),
    ],
)
def test_peer_authentications(spec: Any, expected: list[str]) -> None:
    assert fields("PeerAuthentication", spec) == expected
