"""Holds the analysis to the sample of istioctl's own messages."""

from __future__ import annotations

import pytest

from mesh.policy.analysis import analyze
from mesh.policy.inventory import Inventory
from tests.policy_cases import Case, read_cases, read_mesh

CASES = read_cases("analysis", "analysis")


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["id"]))
def test_messages_are_istios(case: Case) -> None:
    inventory = Inventory.of(case["resources"], read_mesh(case.get("mesh")))
    found = sorted(
        (message.kind.code, message.kind.istio_name, message.kind.level)
        for message in analyze(inventory)
    )
    expected = sorted((entry["code"], entry["name"], entry["level"]) for entry in case["expect"])
    assert found == expected
