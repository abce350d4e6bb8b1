from __future__ import annotations

import json

import pytest

from proxy.errors import PlaintextOnStrict
from proxy.report import Connection, Direction, Transport
from remora.policy_tools.advice import logs
from remora.policy_tools.advice.logs import log_advice, read_log

REFUSED = {
    "event": "connection failed", "reason": "plaintext_on_strict", "direction": "inbound",
    "listener": "0.0.0.0:8443", "source": "10.0.0.9:5000", "target": "127.0.0.1:80",
    "own_id": "spiffe://td/ns/a/sa/b", "seconds": 0.1,
}  # fmt: skip
ACCEPTED = {
    "event": "connection closed", "direction": "inbound", "transport": "plaintext",
    "listener": "[::]:8443", "source": "[fd00::9]:5000", "sent": 1,
}  # fmt: skip


def said(*lines: object, names: dict[str, str] | None = None) -> list[str]:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return [str(one) for one in log_advice(read_log(texts), names or {})]


def test_refused_plaintext_is_counted_by_caller() -> None:
    lines = [REFUSED, REFUSED | {"source": "10.0.0.8:1"}, REFUSED | {"source": "10.0.0.9:7"}]
    once, twice = said(*lines, names={"10.0.0.9": "shop/old"})
    server = "Warning [REM0012] (spiffe://td/ns/a/sa/b at 0.0.0.0:8443)"
    assert once.startswith(f"{server} refused plaintext from 10.0.0.8, once: give that caller")
    assert twice.startswith(f"{server} refused plaintext from 10.0.0.9 (shop/old), 2 times: ")


def test_accepted_plaintext_is_told_of() -> None:
    assert said(ACCEPTED) == [
        "Info [REM0013] ([::]:8443) took plaintext from fd00::9, once: STRICT would refuse it"
    ]


async def test_the_lines_are_those_that_the_proxy_writes() -> None:
    seen = Connection(
        direction=Direction.INBOUND, listener="0.0.0.0:8443", source="10.0.0.9:1", target="a:1"
    )
    refused = {"event": "connection failed", "reason": PlaintextOnStrict.reason, **seen.facts()}
    seen.transport = Transport.PLAINTEXT
    accepted = {"event": "connection closed", **seen.facts()}
    assert [text.partition(",")[0] for text in said(refused, accepted)] == [
        "Warning [REM0012] (0.0.0.0:8443) refused plaintext from 10.0.0.9",
        "Info [REM0013] (0.0.0.0:8443) took plaintext from 10.0.0.9",
    ]


@pytest.mark.parametrize(
    "line",
    [
        ACCEPTED | {"transport": "mtls"},
        ACCEPTED | {"direction": "outbound"},
        REFUSED | {"direction": "outbound"},
        REFUSED | {"reason": "peer_closed"},
        {"event": "proxy ready"},
        "",
        {},
    ],
)
def test_other_lines_are_passed_over(line: object) -> None:
    assert said(line) == []


@pytest.mark.parametrize("line", ["2024 text", "[]", '{"source": 5}', "{" * 100_000])
def test_unreadable_lines_are_counted_and_harm_nothing(line: str) -> None:
    seen = read_log([line, json.dumps(REFUSED)])
    assert seen.unreadable == 1
    assert len(seen.refused) == 1


def test_no_more_than_so_many_callers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_PAIRS", 2)
    lines = [json.dumps(REFUSED | {"source": f"10.0.0.{number}:1"}) for number in (1, 2, 3, 1)]
    assert sorted(read_log(lines).refused.values()) == [1, 2]
