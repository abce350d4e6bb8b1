"""The story's judgement: what was observed in, the words of the rows out."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from remora.demo.story import (
    CLIENT_ID,
    ROWS,
    STRAY_ID,
    Answer,
    Caller,
    Capture,
    Door,
    Question,
    Refusal,
    Result,
    Row,
    Transfer,
    Wire,
    all_hold,
    complete,
    decision,
    describe_answer,
    describe_capture,
    describe_transfer,
    traces,
)

HASH = "a" * 64


def row(name: str) -> Row:
    (found,) = [row for row in ROWS if row.name == name]
    return found


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(status="200", wire=Wire.MESH_TLS, client_id=CLIENT_ID), "200 over mTLS"),
        (Answer(status="200", wire=Wire.PLAINTEXT), "200 in plaintext"),
        (
            Answer(
                status="000",
                wire=Wire.PLAINTEXT,
                refusal=Refusal(side="server", reason="plaintext_on_strict"),
            ),
            "000, server: plaintext_on_strict",
        ),
    ],
)
def test_what_was_seen_in_the_words_of_the_rows(answer: Answer, words: str) -> None:
    assert describe_answer(answer) == words


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status="200", wire=Wire.PLAINTEXT),
        Answer(status="200", wire=Wire.PLAINTEXT, client_id=CLIENT_ID),
        Answer(status="200", wire=Wire.OTHER_TLS, client_id=CLIENT_ID),
        Answer(status="200", wire=Wire.SILENCE, client_id=CLIENT_ID),
        Answer(status="200", wire=Wire.MESH_TLS),
        Answer(status="200", wire=Wire.MESH_TLS, client_id=STRAY_ID),
        Answer(status="503", wire=Wire.MESH_TLS, client_id=CLIENT_ID),
        Answer(status="000", wire=Wire.MESH_TLS, client_id=CLIENT_ID),
    ],
)
def test_nothing_less_than_an_answer_over_mutual_tls_is_called_so(answer: Answer) -> None:
    assert describe_answer(answer) != row("strict-foo").expected


def test_a_refusal_that_no_sidecar_explains_holds_for_no_row() -> None:
    words = describe_answer(Answer(status="000", wire=Wire.SILENCE))
    assert words not in {row.expected for row in ROWS}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], None),
        ([("client", "refused_by_peer")], None),
        (
            [("client", "refused_by_peer"), ("server", "peer_not_trusted")],
            Refusal(side="server", reason="peer_not_trusted"),
        ),
        (
            [("server", "refused_by_peer"), ("client", "wrong_identity")],
            Refusal(side="client", reason="wrong_identity"),
        ),
        (
            [("client", "peer_closed"), ("server", "peer_reset")],
            None,
        ),
    ],
)
def test_who_refused_is_who_decided_not_who_noticed(
    found: list[tuple[str, str]], expected: Refusal | None
) -> None:
    assert decision(found) == expected


SECRET = b"5ec2e7"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x16\x03\x01 noise", "not readable"),
        (b"GET /?secret=5ec2e7 HTTP/1.1\r\n", "readable"),
        (b"\x17\x03\x03....5ec2e7....", "readable"),
        (b"\x17\x03\x03 HTTP/1.1 200 ", "readable"),
    ],
)
def test_a_capture_is_readable_if_anything_of_the_request_is_in_it(data: bytes, words: str) -> None:
    assert describe_capture(Capture(status="200", data=data, secret=SECRET)) == words


@pytest.mark.parametrize(("status", "data"), [("000", b"\x16\x03\x01"), ("200", b"")])
def test_a_capture_of_nothing_proves_nothing(status: str, data: bytes) -> None:
    words = describe_capture(Capture(status=status, data=data, secret=SECRET))
    assert words not in {"readable", "not readable"}


def test_every_trace_counts() -> None:
    data = b"GET /5ec2e7 HTTP/1.1\r\nUser-Agent: x\r\n\r\nHTTP/1.1 200\r\n\r\n5ec2e7"
    assert traces(Capture(status="200", data=data, secret=SECRET)) == 5


GOOD = Transfer(status="200", sent=(9, HASH), received=(9, HASH), connections=1, serials=(0xA, 0xB))


def test_a_transfer_that_lived_through_a_rotation() -> None:
    assert describe_transfer(GOOD) == row("rotation").expected


@pytest.mark.parametrize(
    "change",
    [
        {"status": "000"},
        {"received": (8, HASH)},
        {"received": (9, "b" * 64)},
        {"sent": (0, HASH), "received": (0, HASH)},
        {"connections": 2},
        {"serials": (0xA, 0xA)},
    ],
)
def test_a_transfer_with_any_flaw_is_not_called_whole(change: dict[str, object]) -> None:
    flawed = dataclasses.replace(GOOD, **change)  # type: ignore[arg-type]
    assert describe_transfer(flawed) != row("rotation").expected


def results(*gots: str) -> list[Result]:
    return [Result(row=row, got=got) for row, got in zip(ROWS, gots, strict=False)]


def test_the_story_holds_only_if_every_row_does() -> None:
    right = [row.expected for row in ROWS]
    assert all_hold(results(*right))
    for wrong in range(len(ROWS)):
        assert not all_hold(results(*right[:wrong], "something else", *right[wrong + 1 :]))
    assert not all_hold([])


def test_a_row_without_a_result_does_not_hold() -> None:
    told = complete(reversed(results(*[row.expected for row in ROWS][:-1])), ROWS)
    assert [result.row for result in told] == list(ROWS)
    assert [result.holds for result in told] == [True] * (len(ROWS) - 1) + [False]


def test_the_rows_are_a_story() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    acts = [act for act, _ in itertools.groupby(row.act for row in ROWS)]
    assert len(acts) == len(set(acts))
    assert {row.caller for row in ROWS} == set(Caller)
    assert {row.door for row in ROWS} == set(Door)
    assert {row.question for row in ROWS} == set(Question)


def test_foo_and_bar_both_try_every_door() -> None:
    tried = {(row.caller, row.door) for row in ROWS if row.question is Question.ANSWER}
    assert tried >= set(itertools.product((Caller.FOO, Caller.BAR), Door))
