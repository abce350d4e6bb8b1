"""What the demo shows: a table of the story, in colour on a terminal and plain elsewhere, or JSON.

Results go to standard output, progress and complaints to standard error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from remora.demo.story import Result, all_hold

PLAIN_WIDTH = 160
"""Columns where there is no terminal: the table is narrower, so none of its lines is broken."""

WHO_IS_WHO = (
    "Namespace foo has a client and a server, each with a sidecar. Namespace bar has a client "
    "without one."
)

PROSE_WIDTH = 88
"""Columns of running text, at most."""

MARK_WIDTH = 4
GAP = 2
"""Columns for `ok` or `FAIL`, and between two columns of the table."""

NARROWEST = 12
"""Columns below which nothing can be read any more."""

HOW_WE_KNOW = (
    "000 is what curl prints when its connection was reset; after it, which side's sidecar "
    "refused, and why. All of this was seen, not assumed: answers by the clients, protocols by a "
    "tap between the sidecars, identities and refusals in the sidecars' logs. --verbose shows it."
)


def as_json(results: Sequence[Result], seconds: float) -> str:
    """Return the results as one JSON object."""
    rows: list[dict[str, Any]] = [
        {
            "name": result.row.name,
            "act": result.row.act,
            "tried": result.row.tried,
            "expected": result.row.expected,
            "got": result.got,
            "holds": result.holds,
            "evidence": result.evidence,
        }
        for result in results
    ]
    whole = {"holds": all_hold(results), "seconds": round(seconds, 1), "rows": rows}
    return json.dumps(whole, indent=2)


def open_console(stream: TextIO) -> Console:
    """Give a console that wraps and colours on a terminal, and does neither elsewhere."""
    if stream.isatty():
        return Console(file=stream, highlight=False)
    return Console(file=stream, highlight=False, width=PLAIN_WIDTH, color_system=None)


def print_story(
    console: Console, results: Sequence[Result], seconds: float, *, evidence: bool
) -> None:
    """Print the table, the evidence for each row if asked for, and a line that sums it up."""
    tried, outcome = widths(results, console.width)
    console.print()
    _print_prose(console, Text(WHO_IS_WHO))
    console.print()
    _print_table(console, _header(tried, outcome))
    for act, group in groupby(results, key=lambda result: result.row.act):
        console.print(Text(f"\n{act}", style="bold"))
        _print_table(console, _table(group, tried, outcome))
    console.print()
    if evidence:
        _print_evidence(console, results)
    _print_prose(console, Text(HOW_WE_KNOW, style="dim"))
    console.print()
    console.print(_summary(results, seconds))


def widths(results: Sequence[Result], available: int) -> tuple[int, int]:
    """Return how wide to make what is tried, and what is expected and got, all acts alike.

    As wide as they need if there is room, and else in proportion.
    """
    tried = max((len(result.row.tried) for result in results), default=0)
    outcome = max((len(result.row.expected) for result in results), default=0)
    room = available - MARK_WIDTH - 3 * GAP
    if tried + 2 * outcome <= room:
        return tried, outcome
    share = max(room * outcome // (tried + 2 * outcome), NARROWEST)
    return max(room - 2 * share, NARROWEST), share


def _print_prose(console: Console, text: Text) -> None:
    console.print(text, width=min(console.width, PROSE_WIDTH))


def _header(tried: int, outcome: int) -> Table:
    table = _table([], tried, outcome)
    table.add_row("", "tried", "expected", "got", style="dim")
    return table


def _table(results: Iterable[Result], tried: int, outcome: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=False)
    for width in (MARK_WIDTH, tried, outcome, outcome):
        table.add_column(width=width, overflow="fold")
    for result in results:
        style = "green" if result.holds else "bold red"
        mark = Text("ok" if result.holds else "FAIL", style=style)
        table.add_row(mark, result.row.tried, result.row.expected, Text(result.got, style=style))
    return table


def _print_table(console: Console, table: Table) -> None:
    """Print a table, without the blanks that fill its lines where that can be seen, in a file."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        console.print(Text(line.rstrip()))


def _print_evidence(console: Console, results: Iterable[Result]) -> None:
    for result in results:
        console.print(Text(f"{result.row.name}: ", style="bold") + Text(result.evidence))
    console.print()


def _summary(results: Sequence[Result], seconds: float) -> Text:
    held = sum(result.holds for result in results)
    if all_hold(results):
        return Text(f"All {held} hold. {seconds:.1f} s.", style="bold green")
    text = f"{len(results) - held} of {len(results)} do not hold. {seconds:.1f} s."
    return Text(text, style="bold red")


def print_failures(
    console: Console,
    results: Iterable[Result],
    tail: Callable[[str], Sequence[str]],
    files: Mapping[str, str],
) -> None:
    """For each row that does not hold, print the logs to read: where they are, and their ends.

    `files` names those that will still be there afterwards.
    """
    for result in results:
        if result.holds:
            continue
        console.print(Text(f"\n{result.row.tried}", style="bold red"))
        console.print(Text(f"  expected {result.row.expected}; got {result.got}"))
        console.print(Text(f"  {result.evidence}"))
        for name in result.logs:
            console.print(Text(f"  last lines of {files.get(name, name)}:", style="bold"))
            for line in tail(name):
                console.print(Text(f"    {line}", style="dim"))
