"""The sample cases of the agent's kinds in cases/identity.yaml, which documents its own format."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from agent.schedule import rotation_delay
from tests.pki import NOW

CASES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "cases" / "identity.yaml").read_text()
)["cases"]


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c["id"]) for c in CASES if c["kind"] == "rotate_delay"]
)
def test_rotate_delay(case: dict[str, Any]) -> None:
    assert case["expect"] == "about"
    delay = rotation_delay(
        created=NOW + timedelta(seconds=case["created"]),
        not_after=NOW + timedelta(seconds=case["expires"]),
        now=NOW,
        random=Random(1),
        ratio=case["ratio"],
        jitter=case["jitter"],
    )
    assert delay.total_seconds() == pytest.approx(case["want_seconds"], abs=case["tolerance"])
