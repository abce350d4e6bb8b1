"""One connection followed through both proxies: each way in which it can end."""

from __future__ import annotations

import pytest

from mesh.errors import ConfigError
from remora.policy_tools.parties import From, To, caller, parse_from, parse_to, targets
from remora.policy_tools.requests import Request, as_policy_sees_it
from remora.policy_tools.verdict import Aspect, Verdict, judge
from remora.policy_tools.world import World
from tests.policy_cases import read_cases, read_mesh, read_policies
from tests.remora.policy_tools.shop import ALLOW_WEB, CATALOG, REGISTRY, STRICT, world

SHOP = (STRICT, ALLOW_WEB, REGISTRY)
WEB = From(workload="shop/web-1")
HTTP = To(service=CATALOG, port=80)
GET = Request(path="/products/1")


def verdict(who: From, whom: To, request: Request | None, mesh: World) -> Verdict:
    client = caller(who, mesh)
    (target,) = targets(whom, client, mesh)
    asked = None if request is None else as_policy_sees_it(request, whom.service, mesh.config)
    return judge(client, target, asked, mesh)


def ended_by(found: Verdict) -> Aspect | None:
    return next((step.aspect for step in found.steps if not step.good), None)


def test_what_is_allowed_says_by_whom() -> None:
    found = verdict(WEB, HTTP, GET, world(*SHOP))
    assert found.allowed
    assert found.mtls is True
    assert (found.by, found.mode, found.port) == ("shop/catalog", "STRICT", 8080)
    assert found.reason == "allowed by rule 0 of AuthorizationPolicy shop/catalog"


@pytest.mark.parametrize(
    ("who", "request_", "aspect", "mtls"),
    [
        (WEB, Request(method="DELETE", path="/products/1"), Aspect.AUTHORIZATION, True),
        (WEB, Request(path="/products/../admin"), Aspect.AUTHORIZATION, True),
        (WEB, Request(path="/products/%00"), Aspect.REQUEST, True),
        (WEB, None, Aspect.AUTHORIZATION, True),
        (From(service_account="shop/cron"), GET, Aspect.AUTHORIZATION, True),
        (From(plaintext=True), GET, Aspect.TLS, None),
        (From(workload="shop/old-1"), GET, Aspect.TLS, None),
        (From(identity="spiffe://else.where/ns/shop/sa/web"), GET, Aspect.TRUST, None),
    ],
)
def test_every_step_can_end_it(
    who: From, request_: Request | None, aspect: Aspect, mtls: bool | None
) -> None:
    found = verdict(who, HTTP, request_, world(*SHOP))
    assert not found.allowed
    assert ended_by(found) is aspect
    assert found.mtls is mtls
    assert found.by == ""


def test_an_alias_makes_the_other_trust_domain_welcome() -> None:
    mesh = world(*SHOP, mesh="trustDomainAliases: [else.where]")
    assert verdict(From(identity="spiffe://else.where/ns/shop/sa/web"), HTTP, GET, mesh).allowed


def test_a_question_about_tcp_to_an_http_port_says_so() -> None:
    assert "ask about a request" in verdict(WEB, HTTP, None, world(*SHOP)).reason
    admin = To(service=CATALOG, port=9000)
    assert "ask about a request" not in verdict(WEB, admin, None, world(*SHOP)).reason


def test_proxies_that_see_no_request_may_decide_otherwise() -> None:
    found = verdict(WEB, HTTP, GET, world(*SHOP))
    assert (found.allowed, found.allowed_as_tcp) == (True, False)
    assert found.as_tcp is not None
    assert "none of their rules matches" in found.as_tcp.sentence
    put = verdict(WEB, HTTP, Request(method="PUT", path="/products/1"), world(*SHOP))
    assert (put.allowed, put.allowed_as_tcp, put.as_tcp) == (False, False, None)
    assert verdict(WEB, HTTP, None, world(*SHOP)).as_tcp is None
    refused = verdict(From(plaintext=True), HTTP, GET, world(*SHOP))
    assert (refused.allowed_as_tcp, refused.as_tcp) == (False, None)


def test_a_server_that_is_not_who_it_should_be_is_refused_by_the_client() -> None:
    rule = f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: catalog, namespace: shop}}
spec:
  host: {CATALOG}
  trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL, subjectAltNames: ["spiffe://cluster.local/x"]}}}}
"""
    found = verdict(WEB, HTTP, GET, world(*SHOP, rule))
    assert ended_by(found) is Aspect.NAMING
    assert "is NOT one of" in found.reason
    assert "DestinationRule shop/catalog" in found.steps[0].sentence


def test_a_server_without_proxy_enforces_nothing() -> None:
    deny = ALLOW_WEB.replace("app: catalog", "app: old")
    whom = To(workload="shop/old-1", port=80)
    found = verdict(WEB, whom, GET, world(deny, REGISTRY))
    assert found.allowed
    assert found.mtls is False
    assert found.mode == ""


def test_a_dry_run_is_told_of_and_changes_nothing() -> None:
    deny = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: try, namespace: shop, annotations: {istio.io/dry-run: "true"}}
spec: {action: DENY, rules: [{}]}
"""
    found = verdict(WEB, HTTP, GET, world(*SHOP, deny))
    assert found.allowed
    assert "the dry-run DENY policies would have denied it" in found.reason


def test_a_workload_may_be_described_instead_of_named() -> None:
    mesh = world(STRICT, ALLOW_WEB)
    whom = To(namespace="shop", labels={"app": "catalog"}, port=8080)
    found = verdict(From(service_account="shop/web"), whom, GET, mesh)
    assert found.allowed
    assert found.target == "shop (app=catalog)"
    assert "the registry has none" in found.steps[0].sentence
    without = To(namespace="shop", labels={"app": "catalog"}, sidecar=False, port=8080)
    assert verdict(From(service_account="shop/web"), without, GET, mesh).mtls is False


def test_addresses_count() -> None:
    deny = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: from-there, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.8]}}]}]}
"""
    mesh = world(REGISTRY, deny)
    assert not verdict(WEB, HTTP, GET, mesh).allowed
    assert verdict(From(service_account="shop/web"), HTTP, GET, mesh).allowed
    there = From(service_account="shop/web", address="10.0.0.8")
    assert not verdict(there, HTTP, GET, mesh).allowed


def test_a_service_is_every_endpoint_of_it() -> None:
    second = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: catalog-2, namespace: shop}
spec: {address: 10.0.0.10, labels: {app: catalog}}
"""
    mesh = world(REGISTRY, second)
    client = caller(WEB, mesh)
    found = [judge(client, target, None, mesh) for target in targets(HTTP, client, mesh)]
    assert [(one.target, one.mtls) for one in found] == [
        ("shop/catalog-1", True),
        ("shop/catalog-2", False),
    ]


@pytest.mark.parametrize(
    "who",
    [
        From(),
        From(workload="shop/web-1", plaintext=True),
        From(workload="shop/nobody"),
        From(identity="https://web"),
        From(service_account="web"),
        From(service_account="a/b/c"),
    ],
)
def test_callers_that_are_nobody(who: From) -> None:
    with pytest.raises(ConfigError):
        caller(who, world(REGISTRY))


@pytest.mark.parametrize(
    "whom",
    [
        To(port=80),
        To(workload="shop/web-1", service=CATALOG, port=80),
        To(workload="shop/nobody", port=80),
        To(service="nowhere", port=80),
        To(service=CATALOG, port=81),
    ],
)
def test_callees_that_are_nobody(whom: To) -> None:
    mesh = world(REGISTRY)
    with pytest.raises(ConfigError):
        targets(whom, caller(WEB, mesh), mesh)


def test_how_a_command_line_names_them() -> None:
    assert parse_from("plaintext", ()) == From(plaintext=True)
    assert parse_from("a/b", {"a/b"}) == From(workload="a/b")
    assert parse_from("a/b", ()) == From(service_account="a/b")
    assert parse_from("spiffe://td/x", ()) == From(identity="spiffe://td/x")
    assert parse_to("a/b", 1) == To(workload="a/b", port=1)
    assert parse_to("a.b", 1) == To(service="a.b", port=1)
    with pytest.raises(ConfigError):
        parse_from("web", ())


@pytest.mark.parametrize("case", read_cases("reachability", "reachability"), ids=lambda c: c["id"])
def test_reachability_is_istios(case: dict[str, object]) -> None:
    policies, calls = case["policies"], case["calls"]
    assert isinstance(policies, list)
    assert isinstance(calls, list)
    mesh = World(read_policies(policies), read_mesh(None))
    for call in calls:
        who = From(service_account="a/a") if call["fromSidecar"] else From(plaintext=True)
        whom = To(namespace="ns1", labels={"app": "b"}, sidecar=call["toSidecar"], port=8080)
        found = verdict(who, whom, None, mesh)
        assert found.allowed == call["expect"]["success"]
        assert found.mtls == call["expect"].get("mtls")
