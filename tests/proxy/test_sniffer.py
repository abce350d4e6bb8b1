"""Looking at first bytes: nothing is consumed, nothing spins, everything has an end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from mesh.tls import client_context
from proxy.errors import ClientHelloTooLarge, PeerClosed
from proxy.sniff import MAX_CLIENT_HELLO, ClientHello, sniff
from proxy.sniffer import NoHello, sniff_stream
from tests.pki import NOW
from tests.proxy.network import receive_until_broken, reset_now, tcp_pair

PEER = "10.0.0.5:4242"
SECONDS = 5.0


def client_hello(*alpn: bytes) -> bytes:
    session = client_context({}, alpn=alpn).session(NOW, server_name="httpbin.test")
    session.handshake()
    return session.pending_output()


class Look:
    """A sniff in progress: `near` is the client, `far` is being looked at."""

    def __init__(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        self.near = near
        self.far = far
        self._found: ClientHello | NoHello | None = None
        self._done = trio.Event()

    async def run(self) -> None:
        self._found = await sniff_stream(self.far, peer=PEER, seconds=SECONDS)
        self._done.set()

    async def found(self) -> ClientHello | NoHello | None:
        await self._done.wait()
        return self._found

    def undecided(self) -> bool:
        return not self._done.is_set()


@asynccontextmanager
async def looking() -> AsyncIterator[Look]:
    look = Look(*await tcp_pair())
    async with look.near, look.far, trio.open_nursery() as nursery:
        nursery.start_soon(look.run)
        yield look
        nursery.cancel_scope.cancel()


async def test_a_client_hello_is_read_and_left_in_place() -> None:
    hello = client_hello(b"istio", b"h2")
    async with looking() as look:
        await look.near.send_all(hello)
        found = await look.found()
        assert isinstance(found, ClientHello)
        assert found.alpn == (b"istio", b"h2")
        assert found.server_name == "httpbin.test"
        assert await look.far.receive_some() == hello


async def test_plaintext_is_known_by_its_first_byte_and_left_in_place() -> None:
    async with looking() as look:
        await look.near.send_all(b"G")
        assert await look.found() is NoHello.PLAINTEXT
        await look.near.send_all(b"ET /")
        assert await look.far.receive_some() == b"GET /"


async def test_waiting_for_the_rest_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel wakes us only for bytes that we have not seen."""
    looks = 0

    def counting(data: bytes) -> object:
        nonlocal looks
        looks += 1
        return sniff(data)

    monkeypatch.setattr("proxy.sniffer.sniff", counting)
    hello = client_hello(b"istio")
    async with looking() as look:
        for end in range(1, 101):
            await look.near.send_all(hello[end - 1 : end])
            await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert look.undecided()
        assert looks <= 100
        await look.near.send_all(hello[100:])
        assert isinstance(await look.found(), ClientHello)
        assert await look.far.receive_some() == hello


async def test_the_stream_wakes_for_single_bytes_again_afterwards() -> None:
    hello = client_hello()
    async with looking() as look:
        await look.near.send_all(hello[:50])
        await trio.testing.wait_all_tasks_blocked()
        await look.near.send_all(hello[50:])
        await look.found()
        assert await look.far.receive_some() == hello
        await look.near.send_all(b"!")
        assert await look.far.receive_some() == b"!"


@pytest.mark.parametrize("data", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00"])
async def test_a_client_that_ends_is_noticed_at_once(data: bytes) -> None:
    async with looking() as look:
        await look.near.send_all(data)
        await trio.testing.wait_all_tasks_blocked()
        await look.near.send_eof()
        assert await look.found() is NoHello.ENDED


@pytest.mark.parametrize("data", [b"", b"\x16\x03\x01\x02\x00\x01\x00"])
async def test_a_silent_client_is_given_up_in_time(
    mock_clock: trio.testing.MockClock, data: bytes
) -> None:
    async with looking() as look:
        await look.near.send_all(data)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(SECONDS - 0.1)
        await trio.testing.wait_all_tasks_blocked()
        assert look.undecided()
        mock_clock.jump(0.2)
        assert await look.found() is NoHello.SILENT


async def test_a_client_that_resets_is_gone() -> None:
    near, far = await tcp_pair()
    async with far:
        reset_now(near)
        with pytest.raises(PeerClosed):
            await sniff_stream(far, peer=PEER, seconds=SECONDS)


async def test_a_client_that_resets_half_way_is_gone_or_ended() -> None:
    async with looking() as look:
        await look.near.send_all(b"\x16\x03\x01")
        await trio.testing.wait_all_tasks_blocked()
        reset_now(look.near)
        assert await look.found() is NoHello.ENDED


async def test_a_hello_beyond_the_limit_is_refused() -> None:
    record = b"\x16\x03\x01\x40\x00"
    endless = record + b"\x01\x00\xff\xf0" + bytes(16_380) + record + bytes(16_384)
    near, far = await tcp_pair()
    async with near, far, trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, endless)
        with pytest.raises(ClientHelloTooLarge) as refusal:
            await sniff_stream(far, peer=PEER, seconds=SECONDS)
        assert str(MAX_CLIENT_HELLO) in str(refusal.value)


async def test_a_refused_client_can_still_be_reset() -> None:
    near, far = await tcp_pair()
    async with near:
        await near.send_all(b"GET / HTTP/1.1\r\n\r\n")
        assert await sniff_stream(far, peer=PEER, seconds=SECONDS) is NoHello.PLAINTEXT
        reset_now(far)
        assert await receive_until_broken(near) == b""
