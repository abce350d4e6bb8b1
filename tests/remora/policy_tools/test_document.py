"""README and the document on policy testing show what really happens."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from remora.cli import app
from remora.policy_tools.cases import read_cases, run_cases
from tests.remora.policy_tools.shop import ALLOW_WEB, REGISTRY, STRICT, world

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "policy-testing.md").read_text()
README = (ROOT / "README.md").read_text()


def test_the_cases_of_the_document_pass() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    cases, problems = read_cases(text, "policy-testing.md")
    assert problems == ()
    outcomes = list(run_cases(cases, world(STRICT, ALLOW_WEB, REGISTRY)))
    assert len(outcomes) == 3
    assert all(outcome.passed for outcome in outcomes), outcomes


@pytest.mark.parametrize("command", ["apply", "check", "analyze"])
def test_what_the_readme_shows_works_on_the_examples(command: str, tmp_path: Path) -> None:
    (line,) = re.findall(rf"^remora ({command} -f policies/.*?)(?:#.*)?$", README, re.MULTILINE)
    words = shlex.split(line.replace("policies/", str(ROOT / "docs" / "examples")))
    if command == "apply":
        (tmp_path / "resources").mkdir()
        words += ["--state-dir", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    if command == "check":
        assert "port 8443: allowed, mutual TLS" in result.output
