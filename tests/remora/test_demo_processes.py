"""Real processes: started, watched, and gone afterwards, however the demo ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from remora.demo.errors import CommandFailed, PartDied, PartNotReady
from remora.demo.processes import environment, open_crew
from tests.remora.strays import Mark

SLEEPER = """
import signal, sys, time
print('{"event": "sleeper ready"}', file=sys.stderr, flush=True)
time.sleep(60)
"""

STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPER

DYING = "import sys\nsys.exit('out of luck')"

TALKER = "import sys\nprint('on stdout')\nprint('on stderr', file=sys.stderr)"


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mark:
    mark = Mark(tmp_path)
    for name, value in mark.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", None)
    return mark


@pytest.fixture
def scripts(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs to start with -m."""
    folder = tmp_path_factory.mktemp("scripts")
    for name, code in (
        ("sleeper", SLEEPER),
        ("stubborn", STUBBORN),
        ("dying", DYING),
        ("talker", TALKER),
    ):
        (folder / f"demo_test_{name}.py").write_text(code)
    monkeypatch.syspath_prepend(folder)


pytestmark = pytest.mark.usefixtures("scripts")


async def test_a_part_is_ready_when_it_says_so_and_gone_at_the_end(mark: Mark) -> None:
    async with open_crew() as crew:
        part = await crew.start("sleeper", "demo_test_sleeper")
        await part.ready("sleeper ready")
        assert part.process.pid in mark.processes()
        assert len(mark.files()) == 1
    assert mark.processes() == []
    assert mark.files() == []
    assert part.process.returncode == -signal.SIGTERM


async def test_what_a_part_says_is_heard_and_written_down(mark: Mark) -> None:
    heard: list[tuple[str, str]] = []
    async with open_crew(lambda name, line: heard.append((name, line))) as crew:
        part = await crew.start("sleeper", "demo_test_sleeper")
        await part.ready("sleeper ready")
        assert part.log_file.read_text() == '{"event": "sleeper ready"}\n'
    assert heard == [("sleeper", '{"event": "sleeper ready"}')]


async def test_a_part_that_ignores_sigterm_is_killed(
    mark: Mark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remora.demo.processes.END_TIMEOUT", 0.1)
    async with open_crew() as crew:
        part = await crew.start("stubborn", "demo_test_stubborn")
        await part.ready("sleeper ready")
    assert part.process.returncode == -signal.SIGKILL
    assert mark.processes() == []


async def test_a_part_that_dies_ends_everything(mark: Mark) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(PartDied, match=r"(?s)dying.*code 1.*out of luck")):
        async with open_crew() as crew:
            await crew.start("sleeper", "demo_test_sleeper")
            await crew.start("dying", "demo_test_dying")
            await trio.sleep(60)
    assert mark.processes() == []
    assert mark.files() == []


async def test_a_part_that_is_never_ready(mark: Mark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remora.demo.processes.READY_TIMEOUT", 0.3)
    with pytest.RaisesGroup(pytest.RaisesExc(PartNotReady, match="sleeper was not ready")):
        async with open_crew() as crew:
            part = await crew.start("sleeper", "demo_test_sleeper")
            await part.ready("something else")
    assert mark.processes() == []


async def test_a_command_runs_to_its_end(mark: Mark) -> None:
    async with open_crew() as crew:
        assert await crew.run("talker", "demo_test_talker") == "on stdout\n"
    assert mark.processes() == []


async def test_a_command_that_fails_says_why(mark: Mark) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(CommandFailed, match=r"(?s)code 1.*out of luck")):
        async with open_crew() as crew:
            await crew.run("dying", "demo_test_dying")


async def test_cancelling_ends_everything(mark: Mark) -> None:
    async with trio.open_nursery() as nursery:
        async with open_crew() as crew:
            part = await crew.start("sleeper", "demo_test_sleeper")
            await part.ready("sleeper ready")
            nursery.cancel_scope.cancel()
            await trio.sleep(60)
    assert mark.processes() == []
    assert mark.files() == []


KILLED = """
import trio
from remora.demo.processes import open_crew

async def main():
    async with open_crew() as crew:
        for number in range(2):
            part = await crew.start(f"sleeper-{number}", "demo_test_sleeper")
            await part.ready("sleeper ready")
        print("up", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_demo_that_is_killed_leaves_nothing_either(mark: Mark) -> None:
    """SIGKILL: no cleanup of its own runs, so it is the guard's work that is seen."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", KILLED],
        stdout=subprocess.PIPE,
        env=environment(os.environ, sys.path),
    )
    assert process.stdout is not None
    async with process.stdout:
        said = b""
        while not said.endswith(b"\n"):  # unbuffered, a line may come in pieces
            said += await process.stdout.receive_some()
        assert said == b"up\n"
        assert len(mark.processes()) >= 4
        assert len(mark.files()) == 1
        process.kill()
        await process.wait()
    await mark.gone()


def test_the_import_path_is_passed_on_whole() -> None:
    found = environment({"A": "b"}, ["", "/lib"])
    assert found == {"A": "b", "PYTHONPATH": f"{Path.cwd()}:/lib"}
