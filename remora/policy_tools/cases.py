"""Users' own tests of their policies: a file of cases, and what came of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, field

from mesh.errors import ConfigError
from mesh.policy.errors import PathRefused
from mesh.policy.facts import HttpRequest
from mesh.resources.decode import read_value, reader_of
from mesh.resources.errors import ResourceError, UnreadableDocument
from mesh.resources.problem import Finding, Problem
from mesh.resources.security import MtlsMode
from mesh.resources.tree import Node, line_of, show_path
from mesh.resources.values import Text, Value
from mesh.resources.yaml_text import read_documents
from remora.policy_tools.parties import From, To, caller, targets
from remora.policy_tools.requests import Request, as_policy_sees_it
from remora.policy_tools.verdict import Verdict, judge
from remora.policy_tools.world import World


class Expect(Value, frozen=True, kw_only=True):
    """What must come of a case; what is left out may be anything."""

    allowed: bool
    mtls: bool | None = None
    by: str | None = None
    mode: MtlsMode | None = None


class Case(Value, frozen=True, kw_only=True):
    """One connection, or one request over it."""

    name: Text
    from_: From = field(name="from")
    to: To
    request: Request | None = None
    remote_ip: str = ""
    expect: Expect


class CaseFile(Value, frozen=True, kw_only=True):
    """A document of a file of cases."""

    cases: Annotated[tuple[Case, ...], Meta(min_length=1)]


_READER = reader_of(CaseFile)


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A case and where it stands."""

    case: Case
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that came out otherwise than expected."""

    what: str
    expected: str
    got: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a case. `error` is a sentence if it could not be asked at all."""

    located: Located
    differences: tuple[Difference, ...] = ()
    verdict: Verdict | None = None
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether all is as expected."""
        return not self.differences and not self.error


def read_cases(text: str, file: str) -> tuple[tuple[Located, ...], tuple[Problem, ...]]:
    """Read the cases of a text; with any problem, no case of its document."""
    cases: list[Located] = []
    problems: list[Problem] = []
    try:
        for document in read_documents(text):
            if isinstance(document, UnreadableDocument):
                problems.append(_problem(file, document.line, "", str(document)))
                continue
            read, findings = read_value(_READER, CaseFile, document, ())
            problems.extend(_located(finding, document, file) for finding in findings)
            for index, case in enumerate(() if read is None else read.cases):
                line = line_of(document, ("cases", index))
                cases.append(Located(case=case, file=file, line=line))
    except ResourceError as error:
        problems.append(_problem(file, 0, "", str(error)))
    if not cases and not problems:
        problems.append(_problem(file, 0, "cases", "the file holds no cases"))
    return tuple(cases), tuple(problems)


def run_cases(cases: Iterable[Located], world: World) -> Iterator[Outcome]:
    """Ask every case of a mesh's configuration."""
    for located in cases:
        try:
            verdicts = verdicts_for(located.case, world)
        except ConfigError as error:
            yield Outcome(located=located, error=str(error))
            continue
        outcomes = [
            Outcome(
                located=located,
                differences=tuple(_differences(located.case.expect, verdict)),
                verdict=verdict,
            )
            for verdict in verdicts
        ]
        # Every endpoint of a service must do as expected; the first that does not is told of.
        yield next((one for one in outcomes if not one.passed), outcomes[0])


def verdicts_for(case: Case, world: World) -> tuple[Verdict, ...]:
    """Judge a case at every workload that it may reach. Raises ConfigError."""
    client = caller(case.from_, world)
    found = targets(case.to, client, world)
    if not found:
        raise ConfigError(f"the service {case.to.service} has no endpoints")
    request: HttpRequest | PathRefused | None = None
    if case.request is not None:
        request = as_policy_sees_it(case.request, case.to.service, world.config)
    return tuple(
        judge(client, target, request, world, remote_address=case.remote_ip) for target in found
    )


def _differences(expect: Expect, verdict: Verdict) -> Iterator[Difference]:
    pairs = (
        ("allowed", expect.allowed, verdict.allowed),
        ("mtls", expect.mtls, verdict.mtls),
        ("by", expect.by, verdict.by),
        ("mode", expect.mode, verdict.mode),
    )
    for what, expected, got in pairs:
        if expected is not None and expected != got:
            yield Difference(what, _shown(expected), _shown(got))


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value or "none")


def _located(finding: Finding, document: Node, file: str) -> Problem:
    line = line_of(document, finding.path)
    return _problem(file, line, show_path(finding.path), finding.message)


def _problem(file: str, line: int, place: str, message: str) -> Problem:
    return Problem(file=file, line=line, resource="", field=place, message=message)
