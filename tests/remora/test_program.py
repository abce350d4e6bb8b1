"""How a program ends: by a signal, by a complaint, or by a bug."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from mesh.errors import ConfigError, RemoraError
from remora.program import EXIT_BAD_CONFIG, EXIT_FAILURE, complain, run_program

PRELUDE = """
import sys
import trio
from mesh.errors import ConfigError, RemoraError
from remora.program import run_program

async def ready():
    print("ready", flush=True)
"""


async def failing(error: BaseException) -> None:
    await trio.lowlevel.cancel_shielded_checkpoint()
    raise error


async def failing_together(*errors: BaseException) -> None:
    """Fail as a program does whose tasks fail in the same moment."""
    async with trio.open_nursery() as nursery:
        for error in errors:
            nursery.start_soon(failing, error)


def run(*errors: BaseException) -> int:
    async def main() -> None:
        await failing_together(*errors)

    with pytest.raises(SystemExit) as end:
        run_program(main)
    assert isinstance(end.value.code, int)
    return end.value.code


def test_a_program_that_ends_by_itself_succeeds() -> None:
    ended = False

    async def main() -> None:
        nonlocal ended
        await trio.lowlevel.checkpoint()
        ended = True

    run_program(main)
    assert ended


def test_bad_configuration_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ConfigError("--listen: no port in 'x'")) == EXIT_BAD_CONFIG == 2
    assert capsys.readouterr() == ("", "remora: --listen: no port in 'x'\n")


def test_a_failure_is_one_line_and_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(RemoraError("the CA is gone")) == EXIT_FAILURE == 1
    assert capsys.readouterr() == ("", "remora: the CA is gone\n")


def test_several_failures_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(RemoraError("one"), ConfigError("two"), RemoraError("three")) == EXIT_BAD_CONFIG
    lines = capsys.readouterr().err.splitlines()
    assert sorted(lines) == ["remora: one", "remora: three", "remora: two"]


def test_a_failure_outside_a_nursery_is_treated_alike(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        await failing(ConfigError("at once"))

    with pytest.raises(SystemExit) as end:
        run_program(main)
    assert end.value.code == EXIT_BAD_CONFIG
    assert capsys.readouterr().err == "remora: at once\n"


def test_a_bug_is_not_hidden() -> None:
    async def main() -> None:
        await failing_together(LookupError("a bug"))

    inner = pytest.RaisesGroup(pytest.RaisesExc(LookupError, match="a bug"))
    with pytest.RaisesGroup(inner):
        run_program(main)


def test_a_bug_beside_a_complaint_is_not_hidden_either() -> None:
    async def main() -> None:
        await failing_together(LookupError("a bug"), RemoraError("a complaint"))

    bug = pytest.RaisesExc(LookupError, match="a bug")
    with pytest.RaisesGroup(bug, SystemExit, flatten_subgroups=True):
        run_program(main)


def test_complaints_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    complain(RemoraError("what happened"))
    assert capsys.readouterr() == ("", "remora: what happened\n")


# real processes ----------------------------------------------------------------------------

SERVE = (
    PRELUDE
    + """
async def main():
    try:
        await ready()
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.05)
            print("tidied up", flush=True)

run_program(main)
print("after", flush=True)
"""
)


@asynccontextmanager
async def program(script: str) -> AsyncGenerator[trio.Process]:
    """Run `script` in a process of its own, as far as its line `ready`."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            await trio.aclose_forcefully(pipe)


async def output_of(process: trio.Process) -> tuple[str, str]:
    assert process.stdout is not None
    assert process.stderr is not None
    texts: list[str] = []
    for pipe in (process.stdout, process.stderr):
        parts = b"".join([bytes(part) async for part in pipe])
        texts.append(parts.decode())
    await process.wait()
    return texts[0], texts[1]


async def until_ready(process: trio.Process) -> None:
    assert process.stdout is not None
    seen = b""
    while b"ready\n" not in seen:
        data = await process.stdout.receive_some()
        assert data, "it ended before it was ready"
        seen += data


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_program_in_good_order(number: signal.Signals) -> None:
    async with program(SERVE) as process:
        await until_ready(process)
        process.send_signal(number)
        out, err = await output_of(process)
    assert (process.returncode, out, err) == (0, "tidied up\nafter\n", "")


@pytest.mark.e2e
async def test_a_second_signal_does_not_disturb_the_tidying() -> None:
    async with program(SERVE.replace("0.05", "0.3")) as process:
        await until_ready(process)
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            await trio.sleep(0.05)
        out, err = await output_of(process)
    assert (process.returncode, out, err) == (0, "tidied up\nafter\n", "")


ENDS = {
    "bad configuration": ("ConfigError('no such file')", 2, "remora: no such file\n"),
    "failure": ("RemoraError('the CA is gone')", 1, "remora: the CA is gone\n"),
}


@pytest.mark.e2e
@pytest.mark.parametrize("case", ENDS)
async def test_a_complaint_is_one_line_without_traceback(case: str) -> None:
    error, code, line = ENDS[case]
    script = f"{PRELUDE}\nasync def main():\n    raise {error}\nrun_program(main)"
    async with program(script) as process:
        out, err = await output_of(process)
    assert (process.returncode, out, err) == (code, "", line)


@pytest.mark.e2e
async def test_a_bug_shows_its_traceback() -> None:
    script = f"{PRELUDE}\nasync def main():\n    raise LookupError('a bug')\nrun_program(main)"
    async with program(script) as process:
        _, err = await output_of(process)
    assert process.returncode == 1
    assert "Traceback (most recent call last)" in err
    assert "LookupError: a bug" in err
