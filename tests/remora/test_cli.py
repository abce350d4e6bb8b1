"""The command line as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from remora.cli import app

SCREEN = 45
"""Lines that a help text may have: less than an ordinary terminal window shows."""


def commands() -> Iterator[tuple[str, ...]]:
    """Every command and group, by its words."""
    waiting: list[tuple[tuple[str, ...], object]] = [((), get_command(app))]
    while waiting:
        words, command = waiting.pop()
        yield words
        for name, inner in getattr(command, "commands", {}).items():
            waiting.append(((*words, name), inner))


@pytest.mark.parametrize("words", sorted(commands()), ids=" ".join)
def test_help_fits_a_screen(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"], terminal_width=100)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) <= SCREEN
    assert max(map(len, lines)) <= 100


def test_there_are_commands() -> None:
    assert {("ca", "serve"), ("agent", "run"), ("proxy", "run"), ("apply",)} <= set(commands())
