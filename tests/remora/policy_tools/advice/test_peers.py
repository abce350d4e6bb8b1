from __future__ import annotations

import pytest

from tests.remora.policy_tools.advice.told import findings, peers, told
from tests.remora.policy_tools.shop import REGISTRY, STRICT

ALL = "{mtls: {mode: STRICT}}"
CATALOG = "{selector: {matchLabels: {app: catalog}}, mtls: {mode: STRICT}}"


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        # PERMISSIVE left over
        ([peers("a", "{mtls: {mode: PERMISSIVE}}")], [("REM0001", "PeerAuthentication shop/a")]),
        ([peers("a", "{mtls: {mode: UNSET}}")], []),
        (
            [
                REGISTRY,
                peers(
                    "a",
                    "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: "
                    "{80: {mode: PERMISSIVE}, 81: {mode: PERMISSIVE}, 82: {mode: DISABLE}}}",
                ),
            ],
            [("REM0001", "PeerAuthentication shop/a")] * 2,
        ),
        # Only the oldest speaks for a namespace
        ([peers("a", ALL), peers("b", ALL)], [("REM0002", "PeerAuthentication shop/b")]),
        (
            [peers("a", ALL, age=1), peers("b", "{selector: {}}")],
            [("IST0133", "PeerAuthentication shop/b"), ("REM0002", "PeerAuthentication shop/a")],
        ),
        ([peers("a", ALL), peers("b", ALL, "other")], []),
        # Only the oldest counts for a workload
        (
            [REGISTRY, peers("a", CATALOG), peers("b", CATALOG)],
            [("REM0003", "PeerAuthentication shop/b")],
        ),
        (
            [REGISTRY, peers("a", CATALOG), peers("b", CATALOG.replace("catalog", "web"))],
            [],
        ),
        # Selectors do not count in the root namespace
        ([peers("a", CATALOG, "istio-system")], [("REM0004", "PeerAuthentication istio-system/a")]),
        # Nobody is selected
        (
            [REGISTRY, peers("a", CATALOG.replace("catalog", "x"))],
            [("REM0005", "PeerAuthentication shop/a")],
        ),
        ([peers("a", CATALOG.replace("catalog", "x"))], []),
        # Clients do not notice
        (
            [REGISTRY, peers("a", CATALOG), peers("b", "{mtls: {mode: DISABLE}}")],
            [("REM0007", "PeerAuthentication shop/a")],
        ),
        ([REGISTRY, peers("a", CATALOG), peers("b", "{mtls: {mode: STRICT}}")], []),
    ],
)
def test_peer_authentications(documents: list[str], expected: list[tuple[str, str]]) -> None:
    assert sorted(told(*documents)) == expected


def test_a_mesh_without_a_mode_is_told_of() -> None:
    assert [one.resource for one in findings().advice] == ["mesh istio-system"]
    assert findings(STRICT).advice == ()
    named = findings(mesh="rootNamespace: root").advice
    assert [one.resource for one in named] == ["mesh root"]
