"""The outcomes of cases as text for people, JSON for scripts, and JUnit XML for pipelines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from xml.etree import ElementTree

from remora.policy_tools.cases import Outcome
from remora.policy_tools.unenforced import AS_TCP
from remora.policy_tools.verdict import Verdict

_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, section 2.2."""


def as_lines(outcomes: Sequence[Outcome], *, verbose: bool) -> Iterator[str]:
    """Yield the lines for people: what failed and why, and the sum."""
    for outcome in outcomes:
        if not outcome.passed:
            yield from _failed(outcome)
        elif verbose:
            yield f"ok    {outcome.located.case.name}"
            yield from _steps(outcome.verdict)
    otherwise = sum(one.verdict is not None and one.verdict.as_tcp is not None for one in outcomes)
    if otherwise:
        yield f"note: {otherwise} come out otherwise today (-v tells): {AS_TCP}"
    failed = sum(not outcome.passed for outcome in outcomes)
    yield f"{len(outcomes) - failed} of {len(outcomes)} cases passed"


def _failed(outcome: Outcome) -> Iterator[str]:
    located = outcome.located
    yield f"FAIL  {located.case.name}  ({located.file}:{located.line})"
    if outcome.error:
        yield f"      {outcome.error}"
    for difference in outcome.differences:
        yield f"    - {difference.what}: {difference.expected}"
        yield f"    + {difference.what}: {difference.got}"
    yield from _steps(outcome.verdict)


def _steps(verdict: Verdict | None) -> Iterator[str]:
    if verdict is None:
        return
    for step in verdict.steps:
        mark = " " if step.good else "!"
        yield f"    {mark} {step.aspect}: {step.sentence}"
    if verdict.as_tcp is not None:
        answer = "allowed" if verdict.allowed_as_tcp else "NOT allowed"
        yield f"    ! today {answer}: {AS_TCP}: {verdict.as_tcp.sentence}"


def as_data(outcomes: Iterable[Outcome]) -> list[dict[str, object]]:
    """Return the outcomes as plain data, one object a case."""
    return [
        {
            "name": outcome.located.case.name,
            "file": outcome.located.file,
            "line": outcome.located.line,
            "passed": outcome.passed,
            "error": outcome.error or None,
            "differences": [
                {"what": one.what, "expected": one.expected, "got": one.got}
                for one in outcome.differences
            ],
            "verdict": None if outcome.verdict is None else verdict_data(outcome.verdict),
        }
        for outcome in outcomes
    ]


def verdict_data(verdict: Verdict) -> dict[str, object]:
    """Return a verdict as plain data."""
    return {
        "target": verdict.target,
        "port": verdict.port,
        "allowed": verdict.allowed,
        "allowedAsTcp": verdict.allowed_as_tcp,
        "mtls": verdict.mtls,
        "mode": verdict.mode or None,
        "by": verdict.by or None,
        "reason": verdict.reason,
        "steps": [
            {"aspect": str(step.aspect), "good": step.good, "sentence": step.sentence}
            for step in verdict.steps
        ],
    }


def verdict_lines(verdict: Verdict) -> Iterator[str]:
    """Yield the lines for people of one verdict: the answer, then each step."""
    answer = "allowed" if verdict.allowed else "NOT allowed"
    over = {True: ", mutual TLS", False: ", plaintext", None: ""}[verdict.mtls]
    yield f"{verdict.target} port {verdict.port}: {answer}{over}"
    yield from _steps(verdict)


def as_junit(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes in the XML that pipelines know from JUnit: one suite a file."""
    root = ElementTree.Element("testsuites")
    files = dict.fromkeys(outcome.located.file for outcome in outcomes)
    for file in files:
        inside = [outcome for outcome in outcomes if outcome.located.file == file]
        failures = sum(not outcome.passed for outcome in inside)
        suite = ElementTree.SubElement(
            root, "testsuite", name=file, tests=str(len(inside)), failures=str(failures)
        )
        for outcome in inside:
            _test_case(suite, outcome)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _test_case(suite: ElementTree.Element, outcome: Outcome) -> None:
    located = outcome.located
    test = ElementTree.SubElement(
        suite,
        "testcase",
        classname=located.file,
        name=_printable(located.case.name),
        line=str(located.line),
    )
    if not outcome.passed:
        differences = "; ".join(
            f"{one.what}: expected {one.expected}, got {one.got}" for one in outcome.differences
        )
        message = _printable(outcome.error or differences)
        failure = ElementTree.SubElement(test, "failure", message=message)
        failure.text = _printable("\n".join(_failed(outcome)))


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub("?", text)
