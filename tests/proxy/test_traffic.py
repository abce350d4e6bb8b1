"""What DestinationRules say of balancing, ejection and timeouts, and Istio's defaults."""

from __future__ import annotations

import pytest

from mesh.policy.destination import Client, DestinationRules
from mesh.resources.networking import Balancing, DestinationRule
from proxy.route import Ejection
from proxy.traffic import Traffic, traffic_for
from tests.proxy.control import resources


def traffic(spec: str, port: int = 80, subset: str = "") -> Traffic:
    (rule,) = resources(f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: rule, namespace: foo}}
spec: {{host: a.test, {spec}}}
""")
    assert isinstance(rule, DestinationRule)
    rules = DestinationRules([rule], root_namespace="istio-system")
    found = rules.settings_for("a.test", Client(namespace="foo"), service_namespace="foo")
    return traffic_for(found, port, subset)


def test_without_a_rule_the_defaults_hold() -> None:
    assert traffic_for(None, 80) == Traffic(
        balancing=Balancing.LEAST_REQUEST, ejection=Ejection(), connect_timeout=None
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("UNSPECIFIED", Balancing.LEAST_REQUEST),
        ("LEAST_CONN", Balancing.LEAST_REQUEST),
        ("LEAST_REQUEST", Balancing.LEAST_REQUEST),
        ("ROUND_ROBIN", Balancing.ROUND_ROBIN),
        ("RANDOM", Balancing.RANDOM),
        ("PASSTHROUGH", Balancing.PASSTHROUGH),
    ],
)
def test_algorithms(written: str, meant: Balancing) -> None:
    found = traffic(f"trafficPolicy: {{loadBalancer: {{simple: {written}}}}}")
    assert found.balancing is meant


@pytest.mark.parametrize(
    ("outliers", "failures"),
    [
        ("{}", 5),
        ("consecutive5xxErrors: 3", 3),
        ("consecutive5xxErrors: 0", None),
        ("consecutive5xxErrors: 0, consecutiveGatewayErrors: 4", 4),
        ("consecutiveGatewayErrors: 2", 2),
        ("consecutiveGatewayErrors: 9", 5),
        ("splitExternalLocalOriginErrors: true, consecutive5xxErrors: 1", 5),
        ("splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2", 2),
        ("splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 0", None),
    ],
)
def test_the_smallest_threshold_counts_and_zero_switches_off(
    outliers: str, failures: int | None
) -> None:
    block = outliers if outliers == "{}" else f"{{{outliers}}}"
    found = traffic(f"trafficPolicy: {{outlierDetection: {block}}}")
    assert (None if found.ejection is None else found.ejection.failures) == failures


PORTS = (
    "trafficPolicy: {loadBalancer: {simple: RANDOM},"
    " connectionPool: {tcp: {connectTimeout: 3s}},"
    " portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: ROUND_ROBIN}}]}"
)


def test_settings_of_a_port_replace_all_others() -> None:
    assert traffic(PORTS, 80) == Traffic(balancing=Balancing.ROUND_ROBIN)
    assert traffic(PORTS, 81) == Traffic(balancing=Balancing.RANDOM, connect_timeout=3.0)


def test_a_subsets_blocks_replace_the_destinations_one_by_one() -> None:
    spec = (
        "trafficPolicy: {loadBalancer: {simple: RANDOM},"
        " connectionPool: {tcp: {connectTimeout: 3s}}},"
        " subsets: [{name: v1, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}, {name: v2}]"
    )
    assert traffic(spec, subset="v1") == Traffic(
        balancing=Balancing.ROUND_ROBIN, connect_timeout=3.0
    )
    assert traffic(spec, subset="v2") == Traffic(balancing=Balancing.RANDOM, connect_timeout=3.0)
    assert traffic(spec, subset="v3") == traffic(spec)
