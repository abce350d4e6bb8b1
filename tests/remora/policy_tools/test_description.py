"""What is told of a workload."""

from __future__ import annotations

import pytest

from mesh.errors import ConfigError
from remora.policy_tools.description import Description, describe, find_members
from remora.policy_tools.show_description import as_data, as_lines
from tests.remora.policy_tools.shop import ALLOW_WEB, CATALOG, REGISTRY, STRICT, world

PORTS = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: catalog, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  portLevelMtls: {8080: {mode: PERMISSIVE}, 7000: {mode: DISABLE}}
"""
DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: istio-system, annotations: {istio.io/dry-run: "true"}}
spec: {action: DENY, rules: [{}]}
"""
TOKENS = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: shop}
spec: {jwtRules: [{issuer: https://i}, {jwksUri: "https://k"}]}
"""


def described(name: str, *documents: str) -> Description:
    mesh = world(*documents)
    (member,) = find_members(mesh, name=name, labels={})
    return describe(member, mesh)


def test_modes_are_told_port_by_port_with_who_decided() -> None:
    found = described("shop/catalog-1", STRICT, PORTS, REGISTRY)
    assert [(one.port, one.mode, one.decided_by) for one in found.modes] == [
        (7000, "DISABLE", "shop/catalog"),
        (8080, "PERMISSIVE", "shop/catalog"),
        (9001, "STRICT", "istio-system/default"),
        (None, "STRICT", "istio-system/default"),
    ]
    default = described("shop/web-1", REGISTRY)
    assert [(one.port, one.mode, one.decided_by) for one in default.modes] == [
        (None, "PERMISSIVE", "")
    ]


def test_services_are_told_with_how_clients_connect() -> None:
    found = described("shop/catalog-1", STRICT, PORTS, REGISTRY)
    assert [(one.host, one.port, one.target_port, one.clients) for one in found.services] == [
        (CATALOG, 80, 8080, "istio-mutual"),
        (CATALOG, 9000, 9001, "istio-mutual"),
    ]


def test_policies_are_told_in_the_order_in_which_they_are_asked() -> None:
    found = described("shop/catalog-1", ALLOW_WEB, DENY, TOKENS, REGISTRY)
    assert [(one.action, one.name, one.rules, one.dry_run) for one in found.authorization] == [
        ("DENY", "istio-system/deny", 1, True),
        ("ALLOW", "shop/catalog", 1, False),
    ]
    assert [(one.name, one.issuers) for one in found.tokens] == [
        ("shop/jwt", ("https://i", "any issuer"))
    ]


@pytest.mark.parametrize(
    ("name", "documents", "remark"),
    [
        ("shop/old-1", (REGISTRY,), "it has no proxy"),
        ("shop/catalog-1", (ALLOW_WEB, REGISTRY), "none of their rules allows is denied"),
        ("shop/web-1", (REGISTRY,), "everybody who can connect"),
        ("shop/web-1", (REGISTRY,), "takes plaintext too"),
        ("shop/web-1", (TOKENS, REGISTRY), "without a token still pass"),
        ("shop/catalog-1", (TOKENS, REGISTRY), "proxies do not look at it yet"),
    ],
)
def test_remarks_say_what_follows(name: str, documents: tuple[str, ...], remark: str) -> None:
    assert any(remark in one for one in described(name, *documents).remarks)


def test_a_dry_run_allows_and_denies_nothing() -> None:
    trying = ALLOW_WEB.replace(
        "namespace: shop", 'namespace: shop, annotations: {istio.io/dry-run: "1"}'
    )
    found = described("shop/catalog-1", trying, REGISTRY)
    assert not any("is denied" in one for one in found.remarks)


def test_workloads_are_found_by_name_or_labels() -> None:
    mesh = world(REGISTRY)
    by_labels = find_members(mesh, namespace="shop", labels={"app": "web"})
    assert [one.name for one in by_labels] == ["shop/web-1"]
    assert len(find_members(mesh, namespace="shop", labels={})) == 3
    (supposed,) = find_members(mesh, namespace="bar", labels={"app": "new"})
    assert (supposed.namespace, supposed.labels) == ("bar", {"app": "new"})
    for wrong in ({"name": "shop/x"}, {}):
        with pytest.raises(ConfigError):
            find_members(mesh, labels={}, **wrong)


def test_text_and_data_tell_the_same() -> None:
    found = described("shop/catalog-1", STRICT, PORTS, ALLOW_WEB, DENY, TOKENS, REGISTRY)
    lines = "\n".join(as_lines(found))
    for told in ("app=catalog", "sa/catalog", "port 7000", "other ports", CATALOG, "dry run"):
        assert told in lines
    assert as_data(found)["modes"][0] == {
        "port": 7000,
        "mode": "DISABLE",
        "decided_by": "shop/catalog",
    }
    assert "all ports" in "\n".join(as_lines(described("shop/web-1", REGISTRY)))
