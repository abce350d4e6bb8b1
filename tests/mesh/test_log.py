"""Log lines: a short sentence and facts, for people or for machines."""

from __future__ import annotations

import json
from collections.abc import Generator

import pytest
import structlog

from mesh.log import LogFormat, LogLevel, configure_logging, get_logger


@pytest.fixture(autouse=True)
def restored() -> Generator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def fail() -> None:
    raise LookupError("no such thing")


def test_text_lines_carry_the_sentence_and_its_facts(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    get_logger("ca").info("certificate issued", identity="spiffe://td/ns/a/sa/b", serial=17)
    out, err = capsys.readouterr()
    assert out == "", "logs never mix with a command's output"
    assert "certificate issued component=ca identity=spiffe://td/ns/a/sa/b serial=17" in err
    assert "[info" in err
    assert "\x1b" not in err, "colours are for terminals"


def test_json_lines_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogFormat.JSON)
    get_logger("ca").warning("certificate refused", identity="spiffe://td/x\n", key=object())
    line = json.loads(capsys.readouterr().err)
    assert line.pop("timestamp").endswith("Z")
    assert line.pop("key").startswith("<object")
    assert line == {
        "event": "certificate refused",
        "component": "ca",
        "identity": "spiffe://td/x\n",
        "level": "warning",
    }


@pytest.mark.parametrize("form", LogFormat)
def test_a_traceback_is_logged_without_the_values_of_variables(
    capsys: pytest.CaptureFixture[str], form: LogFormat
) -> None:
    configure_logging(form)
    token = "a secret that must not be logged"
    try:
        fail()
    except LookupError:
        get_logger("agent").exception("fetch failed")
    err = capsys.readouterr().err
    assert "LookupError: no such thing" in err
    assert "Traceback" in err
    assert token not in err


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        (LogLevel.DEBUG, ["debug", "info", "warning", "error"]),
        (LogLevel.INFO, ["info", "warning", "error"]),
        (LogLevel.WARNING, ["warning", "error"]),
        (LogLevel.ERROR, ["error"]),
    ],
)
def test_lines_below_the_level_are_left_out(
    capsys: pytest.CaptureFixture[str], level: LogLevel, seen: list[str]
) -> None:
    configure_logging(LogFormat.JSON, level)
    log = get_logger("proxy")
    log.debug("d")
    log.info("i")
    log.warning("w")
    log.error("e")
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["level"] for line in lines] == seen


@pytest.mark.parametrize(
    "hostile", ["\x1b[2J\x1b[31mall is well", "a\nb=c", "\r[info] forged", "\x07", "\u202etxt"]
)
def test_a_peers_words_cannot_steer_the_terminal_or_forge_lines(
    capsys: pytest.CaptureFixture[str], hostile: str
) -> None:
    configure_logging()
    get_logger("proxy").info("connection refused", server_name=hostile)
    err = capsys.readouterr().err
    assert err.endswith("\n")
    assert err.rstrip("\n").isprintable()


def test_a_name_that_people_can_read_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    get_logger("proxy").info("connected", place="Zürich")
    assert "place=Zürich" in capsys.readouterr().err
