"""Dialing: connected and tuned, or the system's reason in plain words."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio
import trio.testing

from proxy.deadline import due
from proxy.dial import MAX_ADDRESSES, dial, resolve
from proxy.errors import ConnectFailed, IdleTimeout
from tests.proxy.network import port_of, tcp_listener


async def test_a_dialed_stream_is_tuned() -> None:
    async with await tcp_listener() as listener:
        stream = await dial("127.0.0.1", port_of(listener), what="the app", hint="?")
        async with stream:
            assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_refusal_says_why_and_what_to_check(host: str) -> None:
    """`localhost` is two addresses on most machines; the reason is told once."""
    async with await tcp_listener() as listener:
        port = port_of(listener)
    with pytest.raises(ConnectFailed) as failure:
        await dial(host, port, what="the app at X", hint="is it up?")
    assert str(failure.value) == "cannot connect to the app at X (Connection refused): is it up?"


async def test_addresses_are_unique_and_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    async def many(host: str, port: int, **_: Any) -> list[Any]:
        hosts = ["10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
        return [(socket.AF_INET, 1, 6, "", (host, port)) for host in hosts]

    monkeypatch.setattr(trio.socket, "getaddrinfo", many)
    assert await resolve("httpbin", 80) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"][:MAX_ADDRESSES]


async def test_addresses_of_an_address_are_itself() -> None:
    assert await resolve("127.0.0.1", 80) == ["127.0.0.1"]
    assert await resolve("::1", 80) == ["::1"]


async def test_a_name_without_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", unknown)
    with pytest.raises(ConnectFailed, match=r"nowhere .*\(Name or service not known\)"):
        await resolve("nowhere", 80)


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".test"])
async def test_what_cannot_be_a_host_name_is_told_so(host: str) -> None:
    with pytest.raises(ConnectFailed, match="no valid host name"):
        await resolve(host, 80)
    with pytest.raises(ConnectFailed, match="no valid host name"):
        await dial(host, 80, what="the app", hint="?")


async def test_a_deadline_raises_its_own_failure(autojump_clock: trio.testing.MockClock) -> None:
    late = IdleTimeout(3)
    with pytest.raises(IdleTimeout) as failure:
        with due(trio.current_time() + 3, late):
            await trio.sleep_forever()
    assert failure.value is late
    assert trio.current_time() == pytest.approx(3, abs=0.1)


async def test_a_deadline_that_is_met_says_nothing() -> None:
    with due(trio.current_time() + 3, IdleTimeout(3)):
        await trio.lowlevel.checkpoint()
