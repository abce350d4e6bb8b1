"""Holds resource validation to the sample of Istio's own expectations."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from mesh.resources.loader import load_objects, load_resources
from tests.policy_cases import read_cases

CASES = [
    case
    for name in (
        "validation_authorization_policy",
        "validation_destination_rule_tls",
        "validation_peer_authentication",
        "validation_request_authentication",
    )
    for case in read_cases(name, "validation")
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["id"]))
def test_resource_is_judged_as_istio_judges_it(case: dict[str, Any]) -> None:
    loaded = load_objects([case["resource"]])
    expected = case["expect"]
    assert bool(loaded.resources) != bool(loaded.problems)
    if case.get("soft"):  # A front end may not see the difference that is asked for.
        return
    assert bool(loaded.resources) == expected["accepted"], loaded.problems
    if expected["accepted"]:
        assert len(loaded.resources) == 1
        if "warning" in expected:
            assert bool(loaded.warnings) == expected["warning"], loaded.warnings


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["id"]))
def test_text_and_objects_are_judged_alike(case: dict[str, Any]) -> None:
    text = yaml.safe_dump(case["resource"], sort_keys=False)
    loaded, same = load_resources(text), load_objects([case["resource"]])
    assert loaded.resources == same.resources
    assert [problem.message for problem in loaded.problems] == [
        problem.message for problem in same.problems
    ]
    assert all(problem.line > 0 for problem in loaded.problems)
