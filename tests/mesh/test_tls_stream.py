"""TLS over streams: trio's own conformance suite, then every way in which two ends can part."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing
from OpenSSL import SSL
from trio.testing import wait_all_tasks_blocked

from mesh.tls import ClientCertificate, client_context, server_context
from mesh.tls_errors import TlsAlert, TlsClosed, TlsError, TlsPeerPlaintext, TlsTruncated
from mesh.tls_stream import CLOSE_GRACE, MAX_UNSENT, SEND_SIZE, TlsStream
from mesh.verify import PeerNotTrusted
from tests.mesh.tls_pairs import (
    BUNDLES,
    CLIENT,
    SERVER,
    STRANGER,
    Pair,
    Stapled,
    TightStream,
    Transport,
    alert_of,
    clogged_pair,
    closing,
    connected,
    handshake,
    lockstep_pair,
    memory_pair,
    receive_all,
    receive_exactly,
    send_for_ever,
    tight_pair,
    tls_over,
)
from tests.pki import NOW

# trio's conformance suite ------------------------------------------------------------------


async def connected_1_2(near: Transport, far: Transport) -> Pair:
    client = client_context(BUNDLES, svid=CLIENT)
    client._context.set_max_proto_version(SSL.TLS1_2_VERSION)
    server = server_context(SERVER, BUNDLES).session(NOW)
    return await handshake((TlsStream(near, client.session(NOW)), TlsStream(far, server)))


async def over_tight() -> Pair:
    return await handshake(tls_over(*tight_pair()))


async def over_memory_1_2() -> Pair:
    return await connected_1_2(*memory_pair())


async def over_lockstep_1_2() -> Pair:
    # In TLS 1.3 a server's tickets follow the handshake, and in lockstep nobody would take them.
    return await connected_1_2(*lockstep_pair())


Maker = Callable[[], Awaitable[Pair]]


@pytest.mark.parametrize(
    ("maker", "clogged_maker"),
    [
        pytest.param(connected, None, id="memory"),
        pytest.param(over_tight, clogged_pair, id="tight"),
        pytest.param(over_memory_1_2, None, id="memory-1.2"),
        pytest.param(over_lockstep_1_2, None, id="lockstep-1.2"),
    ],
)
async def test_trio_finds_no_fault_with_it(
    maker: Maker, clogged_maker: Maker | None, autojump_clock: object
) -> None:
    await trio.testing.check_half_closeable_stream(maker, clogged_maker)


# data --------------------------------------------------------------------------------------


async def test_two_floods_in_opposite_directions_do_not_block_each_other() -> None:
    """A receiver that waited for its own end's sender would stop both ends for ever."""
    payload = bytes(range(256)) * 4096
    client, server = await handshake(tls_over(*tight_pair()))
    received: dict[TlsStream, bytes] = {}

    async def send(stream: TlsStream) -> None:
        await stream.send_all(payload)
        await stream.send_eof()

    async def receive(stream: TlsStream) -> None:
        received[stream] = await receive_all(stream)

    async with closing(client, server):
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for stream in (client, server):
                    nursery.start_soon(send, stream)
                    nursery.start_soon(receive, stream)
        assert received == {client: payload, server: payload}


async def test_a_slow_peer_bounds_what_is_encrypted_ahead() -> None:
    near, far = tight_pair()
    client, server = await handshake(tls_over(near, far))
    written: list[int] = []
    write = client.session.write

    def counted(data: bytes | memoryview) -> None:
        written.append(len(data))
        write(data)

    client.session.write = counted  # type: ignore[method-assign]
    async with closing(client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, bytes(10 * SEND_SIZE))
            await wait_all_tasks_blocked()
            assert written == [SEND_SIZE], "one slice, and no more until it is sent"
            await receive_exactly(server, 10 * SEND_SIZE)
        assert sum(written) == 10 * SEND_SIZE


@pytest.mark.parametrize("limit", [1, 7, 16384, 65536, 2**31, 2**62])
async def test_any_limit_to_a_receive_will_do(limit: int) -> None:
    client, server = await connected()
    async with closing(client, server):
        await client.send_all(b"abcdefghij")
        await client.send_eof()
        assert await receive_all(server, limit) == b"abcdefghij"


async def test_a_cancelled_receive_loses_nothing() -> None:
    client, server = await connected()
    async with closing(client, server):
        with trio.CancelScope() as scope:
            scope.cancel()
            await server.receive_some()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.receive_some)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await client.send_all(b"here before the cancelled call")
        with trio.CancelScope() as scope:
            scope.cancel()
            await server.receive_some()
        assert scope.cancelled_caught
        assert await server.receive_some() == b"here before the cancelled call"


async def test_data_that_has_been_decrypted_is_returned_even_if_a_cancel_comes_meanwhile() -> None:
    client, server = await connected()
    got: list[bytes] = []

    async def receive() -> None:
        got.append(await server.receive_some(4))

    async with closing(client, server):
        await client.send_all(b"onetwothree")
        assert await server.receive_some(3) == b"one"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await client.send_eof()
        assert b"".join(got) + await receive_all(server) == b"twothree"


async def test_one_sends_while_the_other_receives_the_same_stream() -> None:
    client, server = await connected()
    async with closing(client, server), trio.open_nursery() as nursery:
        nursery.start_soon(client.receive_some)
        await wait_all_tasks_blocked()
        await client.send_all(b"not held up by the waiting receiver")
        assert await server.receive_some() == b"not held up by the waiting receiver"
        nursery.cancel_scope.cancel()


# the end of a connection -------------------------------------------------------------------


async def test_half_close_goes_one_way_only() -> None:
    client, server = await connected()
    async with closing(client, server):
        await client.send_eof()
        assert await server.receive_some() == b""
        assert await server.receive_some() == b"", "and it stays so"
        await server.send_all(b"the answer")
        assert await client.receive_some() == b"the answer"
        with pytest.raises(trio.ClosedResourceError):
            await client.send_all(b"more")
        await server.send_eof()
        assert await client.receive_some() == b""


async def test_closing_says_close_notify_first() -> None:
    client, server = await connected()
    async with closing(client, server):
        await client.aclose()
        assert await server.receive_some() == b""
        with pytest.raises(trio.ClosedResourceError):
            await client.receive_some()


async def test_an_end_without_close_notify_is_a_truncation() -> None:
    client, server = await connected()
    async with closing(client, server):
        await client.send_all(b"all of")
        await client.transport.aclose()
        assert await server.receive_some() == b"all of"
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError) as failure:
                await server.receive_some()
            assert isinstance(failure.value.__cause__, TlsTruncated)


async def test_a_record_that_was_cut_is_a_truncation_too() -> None:
    near, far = memory_pair()
    client, server = await handshake(tls_over(near, far))
    async with closing(client, server):
        client.session.write(b"payload")
        await near.send_all(client.session.pending_output()[:-1])
        await near.send_eof()
        with pytest.raises(trio.BrokenResourceError, match="close_notify"):
            await server.receive_some()


async def test_a_forged_record_ends_it_for_good_and_the_peer_is_told() -> None:
    near, far = memory_pair()
    client, server = await handshake(tls_over(near, far))
    async with closing(client, server):
        client.session.write(b"payload")
        record = bytearray(client.session.pending_output())
        record[-1] ^= 1
        await near.send_all(record)
        for _ in range(3):
            with pytest.raises(trio.BrokenResourceError) as failure:
                await server.receive_some()
            assert type(failure.value.__cause__) is TlsError
            assert "mac" in str(failure.value)
        with pytest.raises(trio.BrokenResourceError, match="mac"):
            await server.send_all(b"into the void")
        with pytest.raises(trio.BrokenResourceError) as told:
            await client.receive_some()
        assert alert_of(told.value) == "bad record mac"


async def test_what_comes_after_close_notify_is_not_data() -> None:
    near, far = memory_pair()
    client, server = await handshake(tls_over(near, far))
    async with closing(client, server):
        await client.send_eof()
        await near.send_all(b"plaintext behind the end")
        assert await server.receive_some() == b""
        assert await server.receive_some() == b""


async def test_closing_does_not_wait_long_for_a_peer_that_reads_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = await clogged_pair()
    async with closing(server):
        start = trio.current_time()
        await client.aclose()
        assert trio.current_time() - start == pytest.approx(CLOSE_GRACE, abs=0.01)


async def test_closing_while_a_send_is_stuck_cuts_it_at_once(
    mock_clock: trio.testing.MockClock,
) -> None:
    client, server = await clogged_pair()

    async def stuck() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await client.send_all(b"never leaves")

    async with closing(server), trio.open_nursery() as nursery:
        nursery.start_soon(stuck)
        await wait_all_tasks_blocked()
        await client.aclose()


async def test_a_send_cut_short_breaks_the_sending_side_only() -> None:
    near, far = tight_pair()
    client, server = await handshake(tls_over(near, far))
    async with closing(client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, bytes(5000))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError, match="cut short"):
                await client.send_all(b"would land inside a record")
        with pytest.raises(trio.BrokenResourceError, match="cut short"):
            await client.send_eof()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send_all, b"still heard")
            assert await client.receive_some() == b"still heard"
        await client.aclose()
        with pytest.raises(trio.BrokenResourceError) as failure:
            await receive_all(server)
        assert isinstance(failure.value.__cause__, TlsTruncated), "never a clean end"


async def test_a_transport_that_breaks_breaks_the_stream() -> None:
    client, server = await connected()
    async with closing(client, server):
        await server.transport.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await send_for_ever(client)
        await client.aclose()


# the handshake -----------------------------------------------------------------------------


async def both_ends(pair: Pair) -> list[BaseException | None]:
    """Run both handshakes and a first receive; return what each end fails with."""
    failures: list[BaseException | None] = [None, None]

    async def end(index: int, stream: TlsStream) -> None:
        try:
            await stream.do_handshake()
            await stream.receive_some()
        except Exception as error:  # noqa: BLE001
            failures[index] = error

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for index, stream in enumerate(pair):
                nursery.start_soon(end, index, stream)
    return failures


async def test_a_refused_client_gets_the_alert() -> None:
    stranger = STRANGER.issue(str(CLIENT.id))
    pair = tls_over(*memory_pair(), client=stranger)
    async with closing(*pair):
        told, refused = await both_ends(pair)
    assert isinstance(refused, PeerNotTrusted)
    assert isinstance(told, trio.BrokenResourceError)
    assert alert_of(told) == "unknown ca"


async def test_a_refused_server_gets_the_alert() -> None:
    near, far = memory_pair()
    client = client_context(STRANGER.bundle()).session(NOW)
    server = server_context(SERVER, BUNDLES, client_certificate=ClientCertificate.NONE)
    pair = TlsStream(near, client), TlsStream(far, server.session(NOW))
    async with closing(*pair):
        refused, told = await both_ends(pair)
    assert isinstance(refused, PeerNotTrusted)
    assert isinstance(told, TlsAlert)
    assert told.alert == "unknown ca"


async def test_a_peer_that_leaves_during_the_handshake() -> None:
    client, server = tls_over(*memory_pair())
    async with closing(client, server):
        await client.transport.aclose()
        with pytest.raises(TlsClosed):
            await server.do_handshake()


async def test_a_peer_that_speaks_no_tls() -> None:
    near, far = memory_pair()
    client, server = tls_over(near, far)
    async with closing(client, server):
        await near.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(TlsPeerPlaintext):
            await server.do_handshake()


async def test_a_silent_peer_is_the_callers_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = tls_over(*memory_pair())
    async with closing(client, server):
        with trio.move_on_after(5) as scope:
            await server.do_handshake()
        assert scope.cancelled_caught
        assert trio.current_time() == pytest.approx(5)
        await server.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await server.do_handshake()


async def test_an_alert_does_not_wait_for_ever_for_a_peer_that_reads_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = tight_pair(room=1)
    client, server = tls_over(near, far)
    async with closing(client, server):
        await near.memory.send_all(b"GET / HTTP/1.1\r\n\r\n")
        far.outward.sent = 1
        with trio.fail_after(2 * CLOSE_GRACE), pytest.raises(TlsPeerPlaintext):
            await server.do_handshake()


async def test_a_verdict_outlives_the_deadline_that_its_alert_misses(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = tight_pair(room=1)
    client, server = tls_over(near, far)
    async with closing(client, server):
        await near.memory.send_all(b"GET / HTTP/1.1\r\n\r\n")
        far.outward.sent = 1
        with trio.move_on_after(CLOSE_GRACE / 2), pytest.raises(TlsPeerPlaintext):
            await server.do_handshake()


async def test_bytes_may_come_one_at_a_time() -> None:
    near, far = memory_pair()
    client, server = tls_over(near, far)

    async def drip(source: Stapled, sink: Stapled) -> None:
        while data := await source.receive_some():
            for byte in data:
                await sink.send_all(bytes([byte]))

    middle_near, middle_far = memory_pair()
    client = TlsStream(middle_near, client.session)
    async with closing(client, server), trio.open_nursery() as nursery:
        nursery.start_soon(drip, middle_far, near)
        nursery.start_soon(drip, near, middle_far)
        await handshake((client, server))
        await client.send_all(b"drop by drop")
        assert await receive_exactly(server, 12) == b"drop by drop"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("steps", range(1, 14))
async def test_a_handshake_may_be_cancelled_at_any_point(steps: int) -> None:
    client, server = tls_over(*memory_pair())
    async with closing(client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            nursery.start_soon(server.do_handshake)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        for stream in (client, server):
            with trio.fail_after(5):
                await stream.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()


# what a peer may provoke -------------------------------------------------------------------


class Provoker:
    """A raw TLS 1.2 server that asks its client to renegotiate, which OpenSSL answers each time."""

    def __init__(self) -> None:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        context.use_certificate(SERVER.leaf)
        context.use_privatekey(SERVER.key)
        self.connection = SSL.Connection(context, None)
        self.connection.set_accept_state()

    async def handshake(self, transport: Transport) -> None:
        while True:
            try:
                self.connection.do_handshake()
            except SSL.WantReadError:
                await transport.send_all(self.output() or b"")
                self.connection.bio_write(await transport.receive_some())
            else:
                await transport.send_all(self.output())
                return

    def output(self) -> bytes:
        try:
            return self.connection.bio_read(65536)
        except SSL.WantReadError:
            return b""

    def ask(self) -> bytes:
        """Return a HelloRequest record."""
        self.connection.renegotiate()
        with suppress(SSL.Error):
            self.connection.do_handshake()
        return self.output()


@asynccontextmanager
async def provoked() -> AsyncGenerator[tuple[TlsStream, Provoker, TightStream]]:
    near, far = tight_pair()
    peer = Provoker()
    client = TlsStream(near, client_context(BUNDLES, svid=CLIENT).session(NOW))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        nursery.start_soon(peer.handshake, far)
    async with closing(client, far):
        yield client, peer, far


async def test_a_receiver_answers_a_request_to_renegotiate_with_an_alert() -> None:
    async with provoked() as (client, peer, far), trio.open_nursery() as nursery:
        nursery.start_soon(client.receive_some)
        await wait_all_tasks_blocked()
        await far.send_all(peer.ask())
        answer = await far.receive_some()
        assert answer[0] == 21, "RFC 8446, 5.1: the record type of alerts"
        nursery.cancel_scope.cancel()


class Chatty:
    """Lends a session more to say: `size` bytes of alerts for every read that wants more input."""

    def __init__(self, stream: TlsStream, size: int) -> None:
        self._stream = stream
        self._read = stream.session.read
        self._output = stream.session.pending_output
        self._size = size
        self._due = 0

    def read(self, limit: int = 16384) -> bytes | None:
        data = self._read(limit)
        if data is None:
            self._due += self._size
        return data

    def pending_output(self) -> bytes:
        due, self._due = self._due, 0
        return self._output() + b"!" * due

    @property
    def held_back(self) -> int:
        return self._due + len(self._stream._unsent)

    def install(self) -> None:
        self._stream.session.read = self.read  # type: ignore[method-assign]
        self._stream.session.pending_output = self.pending_output  # type: ignore[method-assign]


async def test_a_receiver_leaves_its_alerts_to_a_stuck_sender_up_to_a_limit() -> None:
    near, far = tight_pair()
    client, server = await handshake(tls_over(near, far))
    chatty = Chatty(client, size=10_000)
    received = 0

    async def receive() -> None:
        nonlocal received
        while True:
            received += len(await client.receive_some())

    async with closing(client, server), trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, bytes(5000))
        await wait_all_tasks_blocked()
        chatty.install()
        nursery.start_soon(receive)
        for count in range(1, 5):
            await server.send_all(b"?")
            await wait_all_tasks_blocked()
            assert received == count, "a stuck sender does not stop the receiver"
        nursery.start_soon(trickle, server)
        await wait_all_tasks_blocked()
        assert MAX_UNSENT < chatty.held_back <= MAX_UNSENT + 10_000
        assert received < 10, "it stopped reading"
        nursery.cancel_scope.cancel()


async def trickle(stream: trio.abc.SendStream) -> None:
    for _ in range(1000):
        await stream.send_all(b"?")


async def test_alerts_left_to_a_sender_leave_with_it() -> None:
    near, far = tight_pair()
    client, server = await handshake(tls_over(near, far))
    chatty = Chatty(client, size=50)

    async def receive() -> None:
        with suppress(trio.BrokenResourceError):  # the server's alert about our nonsense
            await client.receive_some()

    async with closing(client, server), trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, bytes(5000))
        await wait_all_tasks_blocked()
        chatty.install()
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        assert chatty.held_back >= 50
        await receive_exactly(server, 5000)
        with pytest.raises(trio.BrokenResourceError, match="TLS failed"):
            await server.receive_some()
        assert chatty.held_back == 0
        nursery.cancel_scope.cancel()
