"""What `remora check` does: read, judge, print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from msgspec import json

from mesh.errors import ConfigError
from mesh.resources.problem import Problem
from remora.policy_tools.cases import Located, read_cases, run_cases
from remora.policy_tools.parties import caller, parse_from, parse_to, targets
from remora.policy_tools.requests import Request, as_policy_sees_it
from remora.policy_tools.show_cases import (
    as_data,
    as_junit,
    as_lines,
    verdict_data,
    verdict_lines,
)
from remora.policy_tools.sources import Given, gather, read_text
from remora.policy_tools.state import in_force
from remora.policy_tools.verdict import judge
from remora.policy_tools.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The flags of one question; with any of the last four it is about an HTTP request."""

    caller: str
    called: str
    port: int
    method: str = ""
    path: str = ""
    host: str = ""
    headers: tuple[str, ...] = ()

    def request(self) -> Request | None:
        """Return the request that is asked about, if it is one. Raises ConfigError."""
        if not (self.method or self.path or self.host or self.headers):
            return None
        headers: dict[str, str] = {}
        for header in self.headers:
            name, colon, value = header.partition(":")
            if not colon or not name.strip():
                raise ConfigError(f"the header {header!r} must be written NAME:VALUE")
            if name.strip().lower() in headers:
                raise ConfigError(f"the header {name!r} is given twice: ask about one line of it")
            headers[name.strip().lower()] = value.strip()
        return Request(
            method=self.method or "GET",
            path=self.path or "/",
            host=self.host,
            headers=headers,
        )


def ask(given: Given, question: Question, *, as_json: bool) -> bool:
    """Answer one question; return whether the call is allowed everywhere. Raises ConfigError."""
    world = read_world(given)
    asking = parse_from(question.caller, world.registry.members)
    if asking.service_account:
        text = f"note: no WorkloadEntry is called {question.caller}: taken for a service account"
        typer.echo(text, err=True)
    client = caller(asking, world)
    found = targets(parse_to(question.called, question.port), client, world)
    if not found:
        raise ConfigError(f"the service {question.called} has no endpoints")
    asked = question.request()
    host = "" if "/" in question.called else question.called
    request = None if asked is None else as_policy_sees_it(asked, host, world.config)
    verdicts = [judge(client, target, request, world) for target in found]
    if as_json:
        print_json([verdict_data(verdict) for verdict in verdicts])
    else:
        for verdict in verdicts:
            print_lines(list(verdict_lines(verdict)))
    return all(verdict.allowed for verdict in verdicts)


def run_files(
    given: Given, files: Sequence[Path], *, as_json: bool, junit: Path | None, verbose: bool
) -> bool:
    """Run files of cases; return whether all passed. Raises ConfigError."""
    world = read_world(given)
    cases: list[Located] = []
    problems: list[Problem] = []
    for file in files:
        read, wrong = read_cases(read_text(file), str(file))
        cases.extend(read)
        problems.extend(wrong)
    refuse(problems, "a file of cases cannot be used")
    outcomes = list(run_cases(cases, world))
    if junit is not None:
        _write(junit, as_junit(outcomes))
    if as_json:
        print_json(as_data(outcomes))
    else:
        print_lines(list(as_lines(outcomes, verbose=verbose)))
    return all(outcome.passed for outcome in outcomes)


def read_world(given: Given) -> World:
    """Read the resources. Raises ConfigError.

    In files none may be wrong, since all answers might be; a control plane goes on with what was
    good last, and so do the answers about it.
    """
    if not given.paths and given.state_dir is not None:
        return _read_state(given, given.state_dir)
    held = gather(given)
    refuse(held.problems, "the resources cannot be used")
    for skipped in held.skipped:
        typer.echo(f"passed over: {skipped}", err=True)
    return World(held.resources, held.config)


def _read_state(given: Given, state_dir: Path) -> World:
    besides = frozenset(path.resolve() for path in given.besides)
    state = in_force(state_dir, mesh_config=given.mesh_config, besides=besides)
    for problem in state.problems:
        typer.echo(
            f"warning: refused; what was good before, if anything, is in force: {problem}", err=True
        )
    for refused in state.unread:
        typer.echo(
            f"warning: never was good, so that there is nothing to go by: {refused}", err=True
        )
    return World(state.resources, state.config, state.unread)


def refuse(problems: Sequence[Problem], sentence: str) -> None:
    """Print what is wrong with a file, and give up if anything is. Raises ConfigError."""
    for problem in problems:
        typer.echo(str(problem), err=True)
    if problems:
        raise ConfigError(f"{sentence}: what is wrong is listed above")


def print_lines(lines: Sequence[str]) -> None:
    """Print lines for people; what comes from files may hold characters that terminals obey."""
    for line in lines:
        typer.echo("".join(one if one.isprintable() else repr(one)[1:-1] for one in line))


def print_json(data: object) -> None:
    """Print data for scripts."""
    sys.stdout.buffer.write(json.format(json.encode(data), indent=2) + b"\n")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
