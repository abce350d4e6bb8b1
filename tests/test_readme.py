"""The README's own commands, run as they stand there, in a network namespace of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.namespaces import Namespace, namespace, needs_namespaces

ROOT = Path(__file__).parent.parent

READY = {
    "python3 -m http.server": "Serving HTTP",
    "remora ca serve": "ca ready",
    "remora agent run": "certificate obtained",
    "remora proxy run": "proxy ready",
}
"""Commands that go on, and what they say when the next one may come."""

PATIENCE = 30.0
"""Seconds for a program to say that it is ready, on a machine that does other things too."""

pytestmark = [pytest.mark.e2e, needs_namespaces]


def commands() -> Iterator[str]:
    """The commands of the section "Run it yourself", in order."""
    section = (ROOT / "README.md").read_text().partition("## Run it yourself")[2]
    section = section.partition("\n## ")[0]
    for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line and not line.startswith("#"):
                yield line


@dataclass(frozen=True, slots=True)
class Terminal:
    """Where the commands are typed: a folder with what the README names, and a namespace."""

    place: Namespace
    folder: Path
    running: ExitStack

    def environment(self) -> dict[str, str]:
        bin_folder = str(Path(sys.executable).parent)
        return {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "NO_COLOR": "1"}

    def start(self, line: str, word: str) -> None:
        """Start a command that goes on, and wait until it says a word."""
        log = self.folder / f"{len(list(self.folder.glob('*.log')))}.log"
        output = self.running.enter_context(log.open("wb"))
        process = self.running.enter_context(
            subprocess.Popen(
                self.place.command("sh", "-c", f"exec {line}"),
                cwd=self.folder,
                env={**self.environment(), "PYTHONUNBUFFERED": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        )
        self.running.callback(process.terminate)
        until = time.monotonic() + PATIENCE
        while word not in log.read_text():
            assert process.poll() is None, f"{line}\n{log.read_text()}"
            assert time.monotonic() < until, f"{line}\n{log.read_text()}"
            time.sleep(0.02)  # another program's log has no event

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.place.command("sh", "-c", line),
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


@pytest.mark.timeout(180)
def test_what_the_readme_says_works(tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    asked = 0
    with namespace() as place, ExitStack() as running:
        terminal = Terminal(place, tmp_path, running)
        for line in commands():
            word = next((said for start, said in READY.items() if line.startswith(start)), None)
            if word is not None:
                terminal.start(line, word)
            elif line.startswith("curl"):
                asked += 1
                _check_answer(terminal, line)
            else:
                done = terminal.run(line)
                assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert asked >= 4


def _check_answer(terminal: Terminal, line: str) -> None:
    """Hold what curl says against the comment behind the command."""
    command, _, promise = line.partition("#")
    done = terminal.run(f"{command.strip()} -sS -o /dev/null -w '%{{http_code}}'")
    if promise.strip().startswith("200"):
        assert done.stdout == "200", f"{line}\n{done.stdout}{done.stderr}"
    else:
        assert promise.strip().startswith("connection reset")
        assert (done.returncode, done.stdout) == (56, "000"), f"{line}\n{done.stderr}"
