"""The document on policy testing shows what really happens."""

from __future__ import annotations

import re
from pathlib import Path

from remora.policy_tools.cases import read_cases, run_cases
from tests.remora.policy_tools.shop import ALLOW_WEB, REGISTRY, STRICT, world

DOCUMENT = (Path(__file__).parents[3] / "docs" / "policy-testing.md").read_text()


def test_the_cases_of_the_document_pass() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    cases, problems = read_cases(text, "policy-testing.md")
    assert problems == ()
    outcomes = list(run_cases(cases, world(STRICT, ALLOW_WEB, REGISTRY)))
    assert len(outcomes) == 3
    assert all(outcome.passed for outcome in outcomes), outcomes
