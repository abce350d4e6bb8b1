from __future__ import annotations

import pytest
import trio
import trio.testing

from remora.demo.logbook import MAX_LINE, REMEMBERED, Line, Logbook, parse_line


def everything(line: Line) -> bool:
    return True


def test_a_json_object_has_facts() -> None:
    line = parse_line('{"event": "ca ready", "port": 1}')
    assert line.event == "ca ready"
    assert line.facts["port"] == 1


@pytest.mark.parametrize("text", ["", "Traceback (most recent call last):", "[1]", "7", '{"a":'])
def test_anything_else_is_only_text(text: str) -> None:
    assert parse_line(text) == Line(text=text)
    assert parse_line(text).event == ""


def test_lines_come_in_pieces() -> None:
    heard: list[str] = []
    log = Logbook(heard.append)
    for piece in (b"on", b"e\ntw", b"o\n\xff\nthr", b"ee"):
        log.feed(piece)
    assert log.tail(9) == heard == ["one", "two", "\ufffd"]
    log.close()
    log.close()
    assert log.tail(2) == ["\ufffd", "three"]


def test_memory_is_bounded() -> None:
    log = Logbook()
    log.feed(b"x" * (MAX_LINE + 1))
    assert len(log.all(everything)) == 1
    log.feed(b"\n" * (REMEMBERED + 5))
    assert len(log.all(everything)) == REMEMBERED


async def test_a_line_is_found_when_it_comes(nursery: trio.Nursery) -> None:
    log = Logbook()
    found: list[Line] = []

    async def look() -> None:
        found.append(await log.find(lambda line: line.event == "ready"))

    nursery.start_soon(look)
    for text in (b"noise\n", b'{"event": "not yet"}\n', b'{"event": "ready"'):
        await trio.testing.wait_all_tasks_blocked()
        log.feed(text)
    await trio.testing.wait_all_tasks_blocked()
    assert found == []
    log.feed(b"}\n")
    await trio.testing.wait_all_tasks_blocked()
    assert [line.event for line in found] == ["ready"]


async def test_a_line_that_is_there_is_found_at_once() -> None:
    log = Logbook()
    log.feed(b"old\n")
    assert (await log.find(everything)).text == "old"
