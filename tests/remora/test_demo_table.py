from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pytest

from remora.demo.keep import hints
from remora.demo.story import ROWS, Caller, Question, Result, all_hold
from remora.demo.table import as_json, open_console, print_failures, print_story

RIGHT = [Result(row=row, got=row.expected, evidence=f"seen {row.name}") for row in ROWS]
WRONG = [*RIGHT[:3], Result(row=ROWS[3], got="200 in plaintext", logs=("proxy",)), *RIGHT[4:]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(results: Sequence[Result], stream: io.StringIO, *, evidence: bool = False) -> str:
    print_story(open_console(stream), results, 7.25, evidence=evidence)
    return stream.getvalue()


def test_json_is_the_whole_story() -> None:
    told = json.loads(as_json(WRONG, 7.25))
    assert told["holds"] is False
    assert told["seconds"] == 7.2
    assert [row["name"] for row in told["rows"]] == [row.name for row in ROWS]
    assert [row["holds"] for row in told["rows"]].count(False) == 1
    assert told["rows"][3] == {
        "name": ROWS[3].name,
        "act": ROWS[3].act,
        "tried": ROWS[3].tried,
        "expected": ROWS[3].expected,
        "got": "200 in plaintext",
        "holds": False,
        "evidence": "",
    }
    assert json.loads(as_json(RIGHT, 1))["holds"] is True


def test_the_plain_table_has_every_row_on_one_line() -> None:
    text = told(RIGHT, io.StringIO())
    assert "\x1b" not in text
    lines = text.splitlines()
    for row in ROWS:
        assert any(row.tried in line and row.expected in line for line in lines)
        assert row.act in text
    assert "FAIL" not in text
    assert "All 14 hold. 7.2 s." in text


def test_a_terminal_gets_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in told(RIGHT, Terminal())


def test_what_does_not_hold_stands_out() -> None:
    text = told(WRONG, io.StringIO())
    (line,) = [line for line in text.splitlines() if line.startswith("FAIL")]
    assert ROWS[3].tried in line
    assert "1 of 14 do not hold." in text


def test_evidence_is_shown_when_asked_for() -> None:
    assert "seen strict-foo" not in told(RIGHT, io.StringIO())
    assert "strict-foo: seen strict-foo" in told(RIGHT, io.StringIO(), evidence=True)


def failures(results: Sequence[Result], files: dict[str, str]) -> str:
    stream = io.StringIO()
    print_failures(open_console(stream), results, lambda name: [f"{name} said so"], files)
    return stream.getvalue()


def test_a_failure_comes_with_the_log_to_read() -> None:
    text = failures(WRONG, {})
    assert ROWS[3].tried in text
    assert "got 200 in plaintext" in text
    assert "last lines of proxy:" in text
    assert "proxy said so" in text
    assert "last lines of /logs/proxy.log:" in failures(WRONG, {"proxy": "/logs/proxy.log"})


def test_without_failures_nothing_is_said() -> None:
    assert failures(RIGHT, {}) == ""
    assert all_hold(RIGHT)


def test_there_is_a_command_for_everything_that_curl_can_try() -> None:
    entrances = {row.name: f"127.0.0.1:{number}" for number, row in enumerate(ROWS, 1000)}
    found = hints(ROWS, entrances, "127.0.0.1:99", "/tmp/d")
    curls = [hint for hint in found if hint.command.startswith("curl ")]
    tried = [r for r in ROWS if r.question is Question.ANSWER and r.caller is not Caller.STRAY]
    assert len(curls) == len(tried)
    for row, hint in zip(tried, curls, strict=True):
        assert hint.command.endswith(f" http://{entrances[row.name]}/")
        assert row.expected in hint.why
    assert any("openssl s_client -connect 127.0.0.1:99 " in hint.command for hint in found)
    assert any("/tmp/d/" in hint.command for hint in found)
