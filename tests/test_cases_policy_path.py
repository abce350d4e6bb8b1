"""Holds path normalisation to the sample of Istio's own expectations."""

from __future__ import annotations

import pytest

from mesh.policy.errors import PathRefused
from mesh.policy.path import normalize_target
from mesh.resources.mesh_config import Normalization
from tests.policy_cases import Case, read_cases

CASES = read_cases("path_normalization", "path-normalization")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['mode']} {case['in']}")
def test_path_is_istios(case: Case) -> None:
    mode = Normalization(case["mode"])
    if "status" in case:
        with pytest.raises(PathRefused) as refused:
            normalize_target(case["in"], mode)
        assert refused.value.status == case["status"]
    else:
        assert normalize_target(case["in"], mode) == case["out"]
