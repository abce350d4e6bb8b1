from __future__ import annotations

import pytest

from tests.remora.policy_tools.advice.told import peers, rule, told
from tests.remora.policy_tools.shop import CATALOG, REGISTRY, STRICT

FOUND = [("REM0006", "DestinationRule shop/d")]
PORT = ", portLevelSettings: [{port: {number: 80}, tls: {mode: ISTIO_MUTUAL}}]"
BALANCED = "{loadBalancer: {simple: RANDOM}}"
DISABLED = peers("disabled", "{mtls: {mode: DISABLE}}")


def to(mode: str, host: str = CATALOG, more: str = "") -> str:
    return rule(f"{{host: {host}, trafficPolicy: {{tls: {{mode: {mode}}}{more}}}}}")


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([STRICT, to("ISTIO_MUTUAL")], []),
        ([STRICT, to("DISABLE")], FOUND * 2),  # Both ports.
        ([STRICT, to("DISABLE", "catalog")], FOUND * 2),
        ([STRICT, to("DISABLE", "'*.local'")], FOUND * 2),
        ([STRICT, to("DISABLE", "other.example")], []),
        ([to("DISABLE")], []),
        ([DISABLED, to("ISTIO_MUTUAL")], FOUND * 2),
        ([STRICT, to("DISABLE", more=PORT)], FOUND),
        ([STRICT, rule(f"{{host: {CATALOG}, trafficPolicy: {BALANCED}}}")], []),
        ([STRICT, rule(f"{{host: {CATALOG}}}")], []),
        ([STRICT, to("SIMPLE")], [*FOUND * 2, ("IST0128", "DestinationRule shop/d")]),
    ],
)
def test_what_clients_are_told_against_what_servers_take(
    documents: list[str], expected: list[tuple[str, str]]
) -> None:
    found = told(*documents, REGISTRY)
    assert sorted(found) == sorted(expected)


def test_a_server_without_proxy_takes_no_mesh_tls() -> None:
    bare = REGISTRY.replace("serviceAccount: catalog, ", "")
    assert told(to("ISTIO_MUTUAL"), bare) == FOUND * 2
    assert told(to("DISABLE"), bare) == []


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([STRICT, to("DISABLE")], FOUND),
        ([DISABLED, to("ISTIO_MUTUAL")], FOUND),
        ([to("ISTIO_MUTUAL")], []),
        ([STRICT, to("DISABLE", "db.example.com")], []),
    ],
)
def test_a_service_of_no_registry_is_judged_by_its_namespace(
    documents: list[str], expected: list[tuple[str, str]]
) -> None:
    assert told(*documents) == expected


def test_an_outside_service_is_no_concern() -> None:
    outside = REGISTRY.replace("MESH_INTERNAL", "MESH_EXTERNAL")
    assert told(STRICT, to("DISABLE"), outside) == []
