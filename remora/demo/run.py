"""The demo as a program: sets the stage, plays the rows, shows what came of them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio
from rich.console import Console
from rich.text import Text

from mesh.clock import Now, system_now
from remora.demo.acts import Player
from remora.demo.keep import hints
from remora.demo.processes import LAST_LINES, open_crew
from remora.demo.stage import Stage, set_stage
from remora.demo.story import ROWS, Door, Result, Row, all_hold, complete
from remora.demo.table import as_json, open_console, print_failures, print_story


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asked for."""

    json: bool = False
    keep: bool = False
    verbose: bool = False


@dataclass(slots=True, kw_only=True)
class Verdict:
    """Filled in when the story has been told: whether every row held."""

    holds: bool | None = None


async def run_demo(
    options: Options, verdict: Verdict, *, rows: Sequence[Row] = ROWS, now: Now = system_now
) -> None:
    """Tell the story once; with `keep`, hold the mesh up until cancelled. Raises DemoError."""
    started = trio.current_time()
    errors = open_console(sys.stderr)
    progress = functools.partial(_progress, errors)
    async with open_crew(_listener(errors) if options.verbose else None) as crew:
        async with trio.open_nursery() as taps:
            stage = await set_stage(crew, taps, rows, now=now, progress=progress)
            progress(f"the mesh is up; trying {len(rows)} things")
            results = await _play(stage, rows, now)
            verdict.holds = all_hold(results)
            _show(options, stage, results, trio.current_time() - started, errors)
            if options.keep:
                _show_hints(stage, rows, errors)
                await trio.sleep_forever()
            progress("ending every process, removing every file")
            taps.cancel_scope.cancel()


async def _play(stage: Stage, rows: Sequence[Row], now: Now) -> tuple[Result, ...]:
    player = Player(stage, now)
    results: list[Result] = []

    async def play(row: Row) -> None:
        results.append(await player.play(row))

    async with trio.open_nursery() as nursery:
        for row in rows:
            nursery.start_soon(play, row)
    return complete(results, rows)


def _show(
    options: Options, stage: Stage, results: Sequence[Result], seconds: float, errors: Console
) -> None:
    if options.json:
        print(as_json(results, seconds), flush=True)  # noqa: T201 - the command's output
    else:
        print_story(open_console(sys.stdout), results, seconds, evidence=options.verbose)
    files = {name: str(part.log_file) for name, part in stage.parts.items() if options.keep}
    print_failures(errors, results, lambda name: stage.parts[name].log.tail(LAST_LINES), files)


def _show_hints(stage: Stage, rows: Sequence[Row], errors: Console) -> None:
    entrances = {row.name: stage.entrance(row) for row in rows}
    door = stage.addresses.doors[Door.STRICT]
    errors.print(Text("\nThe mesh stays up until Ctrl-C. Try:", style="bold"))
    for hint in hints(rows, entrances, door, str(stage.crew.directory)):
        errors.print(Text(f"\n  # {hint.why}", style="dim"))
        errors.print(Text(f"  {hint.command}"), soft_wrap=True)


def _progress(errors: Console, text: str) -> None:
    errors.print(Text(f"{text} ...", style="dim"))


def _listener(errors: Console) -> Callable[[str, str], None]:
    def say(name: str, line: str) -> None:
        errors.print(Text(f"{name} | {line}", style="dim"), soft_wrap=True)

    return say
