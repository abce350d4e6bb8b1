"""One line per connection, loud only where somebody must act."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from proxy.errors import (
    AppReset,
    ConnectFailed,
    ConnectionFailed,
    PeerClosed,
    PlaintextOnStrict,
    RefusedByPeer,
)
from proxy.relay import Relayed
from proxy.report import (
    Connection,
    Direction,
    Transport,
    report_failed,
    report_relayed,
    see_through,
)
from tests.proxy.network import CLIENT_ID, SERVER_ID, receive_all, receive_until_broken, tcp_pair

PEER = "10.0.0.5:4242"


def connection(direction: Direction = Direction.INBOUND) -> Connection:
    return Connection(direction=direction, listener="0.0.0.0:15006", source=PEER, target="app:80")


async def test_a_finished_connection_is_one_line_with_all_facts(
    mock_clock: trio.testing.MockClock,
) -> None:
    known = connection()
    known.transport, known.own_id, known.peer_id = Transport.MTLS, SERVER_ID, CLIENT_ID
    mock_clock.jump(1.25)
    with capture_logs() as lines:
        report_relayed(known, Relayed(sent=10, received=20))
    (line,) = lines
    expected = {
        "event": "connection closed",
        "log_level": "info",
        "direction": "inbound",
        "listener": "0.0.0.0:15006",
        "source": PEER,
        "target": "app:80",
        "transport": "mtls",
        "own_id": str(SERVER_ID),
        "peer_id": str(CLIENT_ID),
        "seconds": 1.25,
        "sent": 10,
        "received": 20,
    }
    assert {key: line[key] for key in expected} == expected


async def test_what_is_not_known_is_left_out() -> None:
    with capture_logs() as lines:
        report_failed(connection(), PlaintextOnStrict(PEER, 8080))
    assert lines[0].keys() >= {"reason", "detail", "direction", "listener", "source", "seconds"}
    assert lines[0].keys().isdisjoint({"transport", "own_id", "peer_id", "sent", "received"})


async def test_a_connection_that_works_is_logged_and_closed() -> None:
    near, far = await tcp_pair()

    async def work() -> Relayed:
        await far.send_all(b"last words")
        await far.aclose()
        return Relayed(sent=0, received=10)

    with capture_logs() as lines:
        await see_through(connection(), far, work)
    async with near:
        assert await receive_all(near) == b"last words"
    assert [line["event"] for line in lines] == ["connection closed"]


async def test_a_connection_that_fails_is_logged_and_reset() -> None:
    near, far = await tcp_pair()

    async def work() -> Relayed:
        raise ConnectFailed("the app is down")

    with capture_logs() as lines:
        await see_through(connection(), far, work)
    async with near:
        assert await receive_until_broken(near) == b""
    assert [line["reason"] for line in lines] == ["connect_failed"]


async def test_a_connection_that_is_cut_off_is_logged_and_reset() -> None:
    near, far = await tcp_pair()

    async def work() -> Relayed:
        await trio.sleep_forever()
        raise AssertionError

    with capture_logs() as lines, trio.move_on_after(0):
        await see_through(connection(), far, work)
    async with near:
        assert await receive_until_broken(near) == b""
    assert [line["reason"] for line in lines] == ["proxy_stopped"]


async def test_a_bug_ends_one_connection_and_is_not_hidden() -> None:
    near, far = await tcp_pair()

    async def work() -> Relayed:
        raise ZeroDivisionError

    with capture_logs() as lines:
        await see_through(connection(), far, work)
    async with near:
        assert await receive_until_broken(near) == b""
    (line,) = lines
    assert (line["log_level"], line["reason"]) == ("error", "internal_error")
    assert line["exc_info"], "the traceback is in the log"


@pytest.mark.parametrize(
    ("failure", "direction", "level"),
    [
        (PlaintextOnStrict(PEER, 8080), Direction.INBOUND, "warning"),
        (ConnectFailed("the app is down"), Direction.INBOUND, "warning"),
        (PeerClosed(PEER), Direction.INBOUND, "info"),
        (PeerClosed(PEER), Direction.OUTBOUND, "warning"),
    ],
)
async def test_health_checks_are_no_alarm(
    failure: ConnectionFailed, direction: Direction, level: str
) -> None:
    with capture_logs() as lines:
        report_failed(connection(direction), failure)
    (line,) = lines
    assert line["event"] == "connection failed"
    assert line["log_level"] == level
    assert line["reason"] == failure.reason
    assert line["detail"] == str(failure)


@pytest.mark.parametrize(
    ("failure", "level"),
    [(AppReset("reset"), "info"), (RefusedByPeer("unknown ca"), "warning")],
)
async def test_a_cut_connection_tells_what_it_had_carried(
    failure: ConnectionFailed, level: str
) -> None:
    with capture_logs() as lines:
        report_relayed(connection(), Relayed(sent=1, received=2, failure=failure))
    (line,) = lines
    assert line["event"] == "connection cut"
    assert line["log_level"] == level
    assert (line["sent"], line["received"]) == (1, 2)
    assert line["reason"] == failure.reason
