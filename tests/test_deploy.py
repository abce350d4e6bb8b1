"""What is deployed is true: the units' commands and flags exist, their settings can be read."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from remora.capture_options import capture_options
from remora.cli import app

UNITS = Path(__file__).parent.parent / "deploy" / "systemd"


def executed() -> list[str]:
    lines: list[str] = []
    for unit in sorted(UNITS.glob("*.service")):
        text = unit.read_text().replace("\\\n", " ")
        lines += re.findall(r"^Exec\w+=/opt/remora/bin/remora (.+)$", text, re.MULTILINE)
    return list(dict.fromkeys(lines))


@pytest.mark.parametrize("line", executed())
def test_commands_of_the_units_exist_with_their_flags(line: str) -> None:
    words = shlex.split(line)
    result = CliRunner().invoke(app, [*words[:2], "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"{word}\b", result.output), word


def test_there_are_units_to_check() -> None:
    assert len(executed()) >= 4


def test_the_capture_file_that_is_given_can_be_used_and_leaves_ssh_alone() -> None:
    options = capture_options(UNITS / "capture.yaml", None)
    assert 22 in options.exclude_inbound_ports
    assert options.exclude_outbound_ports == (22,)
