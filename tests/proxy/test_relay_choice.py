"""Which relay is used: the engine, unless it cannot work or is not wanted."""

from __future__ import annotations

import pytest
import trio
from structlog.testing import capture_logs

from mesh import openssl
from proxy import relay as relays
from proxy.engine import loops
from proxy.relay import prepare, relay
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
