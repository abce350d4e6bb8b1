"""Which relay is used: the engine, unless it cannot work or is not wanted."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from mesh import openssl
from mesh.errors import ConfigError
from proxy import relay as relays
from proxy.config import parse_limits
from proxy.engine import loops
from proxy.errors import ConnectionFailed, TooOld
from proxy.relay import Limits, prepare, relay
from tests.proxy.network import receive_all, tcp_pair


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which relay carries a connection."""
    names: list[str] = []
    for name in ("engine_relay", "plain_relay"):
        module = getattr(relays, name)
        original = module.relay

        async def noted(*given: object, name: str = name, original: object = original) -> object:
            names.append(name)
            return await original(*given)  # type: ignore[operator]

        monkeypatch.setattr(module, "relay", noted)
    return names


async def carry() -> None:
    """Send a word through a relay and end it."""
    (app, app_leg), (peer, peer_leg) = await tcp_pair(), await tcp_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, app_leg, peer_leg)
        await app.send_all(b"word")
        await app.send_eof()
        assert await receive_all(peer) == b"word"
        await peer.aclose()
    await app.aclose()


async def test_the_engine_is_used_without_further_ado(used: list[str]) -> None:
    await carry()
    assert used == ["engine_relay"]


async def test_a_prepared_program_makes_trio_the_engines_guest(
    used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "settle_memory", lambda: None)
    await prepare()
    pump = loops.current_pump()
    assert pump.has_guest
    await carry()
    assert used == ["engine_relay"]


async def test_the_plain_twin_is_used_when_it_is_asked_for(
    used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "settle_memory", lambda: None)
    await prepare(plain=True)
    await carry()
    assert used == ["plain_relay"]


async def test_the_plain_twin_is_used_when_a_private_name_is_missing(
    used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "settle_memory", lambda: None)
    monkeypatch.setattr(openssl, "_MISSING", ["lib.SSL_read"])
    monkeypatch.setattr(openssl, "missing_names", lambda: ["lib.SSL_read"])
    await carry()
    with capture_logs() as lines:
        await prepare()
    await carry()
    assert used == ["plain_relay", "plain_relay"]
    assert [line["missing"] for line in lines] == [["lib.SSL_read"]]


@pytest.mark.parametrize("plain", [False, True])
async def test_a_programs_limits_are_those_of_its_connections(
    monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock, *, plain: bool
) -> None:
    """And the greatest age is not the same for all, or all would begin again together."""
    monkeypatch.setattr(relays, "settle_memory", lambda: None)
    await prepare(plain=plain, limits=Limits(idle=1000, age=100))
    failures: list[ConnectionFailed | None] = []
    ends: list[float] = []

    async def one(app_leg: trio.SocketStream, peer_leg: trio.SocketStream) -> None:
        failures.append((await relay(app_leg, peer_leg)).failure)
        ends.append(trio.current_time())

    pairs = [(await tcp_pair(), await tcp_pair()) for _ in range(8)]
    async with trio.open_nursery() as nursery:
        for (_, app_leg), (_, peer_leg) in pairs:
            nursery.start_soon(one, app_leg, peer_leg)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(112):
            mock_clock.jump(1)
            await trio.testing.wait_all_tasks_blocked()
    assert all(isinstance(failure, TooOld) for failure in failures)
    assert min(ends) >= 90
    assert max(ends) <= 111
    assert len(set(ends)) > 1
    for (app, _), (peer, _) in pairs:
        await app.aclose()
        await peer.aclose()


async def test_without_proc_the_engine_stays_nested(
    used: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr(relays, "settle_memory", lambda: None)
    monkeypatch.setattr(loops, "DESCRIPTORS", tmp_path)
    with capture_logs() as lines:
        await prepare()
    assert ["nested" in line["event"] for line in lines] == [True]
    await carry()
    assert used == ["engine_relay"]
    assert not loops.current_pump().has_guest


def test_limits_are_durations_longer_than_zero() -> None:
    assert parse_limits("1h", None) == Limits(idle=3600, age=None)
    assert parse_limits("30s", "24h") == Limits(idle=30, age=86400)
    for idle, age in (("0s", None), ("1h", "0s"), ("soon", None)):
        with pytest.raises(ConfigError):
            parse_limits(idle, age)
