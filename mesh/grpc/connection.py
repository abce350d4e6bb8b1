"""An HTTP/2 connection on trio: h2 does the protocol, two tasks do the I/O.

The reader feeds h2 and hands events to their streams; it never waits for the network to take
something, so two ends that both send cannot block each other. The writer sends whatever h2 has
queued. A call that wants to send DATA waits for three things: its stream's window, the
connection's window, and that little of ours is still unsent. Answers that the peer can provoke
(PING, SETTINGS, resets) are limited by rate, and a peer that takes nothing at all is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import trio
import trio.abc
from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    PingReceived,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error, ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from mesh.grpc.framing import Header
from mesh.grpc.limits import MAX_PENDING, READ_SIZE, STREAM_WINDOW, Limits
from mesh.grpc.status import GrpcError, Status, from_reset
from mesh.grpc.stream import Stream

OnRequest = Callable[[Stream], None]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""RFC 9113, 3.4: what a client sends first. h2 checks it."""

FRAME_HEADER = 9
MAX_FRAME = 16384
"""RFC 9113, 4.1 and 4.2: we announce no larger frames than the default."""

DEFAULT_WINDOW = 65535
"""RFC 9113, 6.9.2: both windows, before anybody changes them."""


class Connection:
    """One connection in either role. `run` it in a task; the streams are used from others."""

    def __init__(
        self,
        transport: trio.abc.Stream,
        limits: Limits,
        *,
        client: bool,
        on_request: OnRequest | None = None,
        on_answered: Callable[[], None] | None = None,
    ) -> None:
        self.limits = limits
        self.failure: GrpcError | None = None
        self.draining = False
        self.last_heard = trio.current_time()
        self.last_call = trio.current_time()
        self.greeted = trio.Event()
        self.answered = False
        self.pong = trio.Event()
        self.streams: dict[int, Stream] = {}
        self._transport = transport
        self._client = client
        self._on_request = on_request
        self._on_answered = on_answered
        self._h2 = H2Connection(
            H2Configuration(client_side=client, header_encoding=None, logger=None)
        )
        self._urgent = b""
        self._partial = bytearray()
        self._preface_left = 0 if client else len(PREFACE)
        self._unsent = 0
        self._first_window = limits.unanswered_bytes or DEFAULT_WINDOW
        self._restrained = not client and limits.unanswered_bytes is not None
        self._unacknowledged: list[tuple[Stream, int]] = []
        self._closing = False
        self._work = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._idle = trio.lowlevel.ParkingLot()
        self._pings = _Flood(limits.pings_per_window, limits.flood_window)
        self._resets = _Flood(limits.resets_per_window, limits.flood_window)
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            RequestReceived: self._on_request_received,
            ResponseReceived: self._on_response,
            TrailersReceived: self._on_trailers,
            DataReceived: self._on_data,
            StreamEnded: self._on_end,
            StreamReset: self._on_reset,
            WindowUpdated: self._on_window,
            RemoteSettingsChanged: self._on_settings,
            PingReceived: self._on_ping,
            PingAckReceived: self._on_pong,
            ConnectionTerminated: self._on_goaway,
        }

    def begin(self) -> None:
        """Queue the preface and our settings."""
        values = {
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            SettingCodes.MAX_CONCURRENT_STREAMS: self.limits.concurrent_calls,
            SettingCodes.MAX_HEADER_LIST_SIZE: self.limits.header_list_bytes,
            SettingCodes.ENABLE_PUSH: 0,
        }
        # Replaced, not updated: h2 would announce the old values and then apply the new ones.
        self._h2.local_settings = Settings(client=self._client, initial_values=values)
        self._h2.decoder.max_header_list_size = self.limits.header_list_bytes
        self._h2.initiate_connection()
        if self._restrained:
            self._h2.increment_flow_control_window(self._first_window - DEFAULT_WINDOW)
        else:
            self._open_window(DEFAULT_WINDOW)
        self._wake()

    def _open_window(self, present: int) -> None:
        """Widen the connection's window beyond what all streams together may hold back.

        So one slow taker cannot stop the others.
        """
        window = STREAM_WINDOW * (self.limits.concurrent_calls + 1)
        self._h2.increment_flow_control_window(window - present)

    def _answering(self) -> None:
        """Trust a peer with all of the windows once there is an answer for it."""
        if self.answered:
            return
        self.answered = True
        if self._on_answered is not None:
            self._on_answered()
        if self._restrained:
            self._restrained = False
            self._open_window(self._first_window)
            for stream, size in self._unacknowledged:
                self.acknowledge(stream, size)
            self._unacknowledged.clear()

    async def run(self) -> None:
        """Pump until the connection is over. Never raises for what the peer does."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            await self._read()
            self.fail(GrpcError(Status.UNAVAILABLE, "the connection was closed"))
            self._closing = True
            self._wake()

    async def _read(self) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await self._transport.receive_some(READ_SIZE):
                self.last_heard = trio.current_time()
                if not self._digest(bytes(data)):
                    return

    def _digest(self, data: bytes) -> bool:
        """Feed h2; False when the connection is beyond repair."""
        try:
            for part in self._parts(data):
                for event in self._h2.receive_data(part):
                    handler = self._handlers.get(type(event))
                    if handler is not None:
                        handler(event)
        except _Abuse as abuse:
            self.fail(GrpcError(Status.UNAVAILABLE, str(abuse)))
            self._terminate(abuse.code)
            return False
        except ProtocolError as error:
            # h2 has queued the GOAWAY that RFC 9113 asks for.
            self.fail(GrpcError(Status.UNAVAILABLE, f"the peer violated HTTP/2: {error}"))
            return False
        self._wake()
        return self._h2.state_machine.state is not ConnectionState.CLOSED

    def _parts(self, data: bytes) -> Iterator[bytes]:
        """Cut what came into frames, each fed alone, and refuse a large one by its header.

        h2 looks at a frame's length only when it has all of it, up to 16 MiB. And it takes a GOAWAY
        for the end of the connection; between two frames `_on_goaway` can tell it otherwise.
        """
        if self._preface_left:
            preface, data = data[: self._preface_left], data[self._preface_left :]
            self._preface_left -= len(preface)
            yield preface
        self._partial += data
        while len(self._partial) >= FRAME_HEADER:
            length = int.from_bytes(self._partial[:3])
            if length > MAX_FRAME:
                raise _Abuse("a frame is larger than we allow", ErrorCodes.FRAME_SIZE_ERROR)
            end = FRAME_HEADER + length
            if len(self._partial) < end:
                return
            frame = bytes(self._partial[:end])
            del self._partial[:end]
            yield frame

    async def _write(self) -> None:
        """Send what is queued. After the end, what is queued still gets one chance."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                data = self._h2.data_to_send() + self._urgent
                self._urgent = b""
                if data:
                    unsent = self._unsent
                    with trio.move_on_after(self.limits.send_timeout) as deadline:
                        await self._transport.send_all(data)
                    if deadline.cancelled_caught:
                        break
                    self._unsent -= unsent
                    self._room.unpark_all()
                elif self._closing:
                    break
                else:
                    await self._work.park()
        self.fail(GrpcError(Status.UNAVAILABLE, "the connection broke while sending"))
        self._room.unpark_all()
        await trio.aclose_forcefully(self._transport)

    def _wake(self) -> None:
        self._work.unpark_all()

    # What streams and roles ask for.

    def open_stream(self, headers: Sequence[Header]) -> Stream:
        """Begin a call as client. Raises GrpcError UNAVAILABLE when no more can begin."""
        if self.failure is not None:
            raise GrpcError(self.failure.code, self.failure.message)
        if self.draining:
            raise GrpcError(Status.UNAVAILABLE, "the server is shutting down")
        try:
            number = self._h2.get_next_available_stream_id()
            self._h2.send_headers(number, list(headers))
        except H2Error as error:
            raise GrpcError(Status.UNAVAILABLE, f"no call can begin: {error}") from error
        stream = Stream(self, number, self.limits.message_bytes)
        self.streams[number] = stream
        self._wake()
        return stream

    async def send_body(self, stream: Stream, data: bytes) -> None:
        """Send DATA in frames that fit windows and queue. Raises GrpcError."""
        self._answering()
        view = memoryview(data)
        await trio.lowlevel.checkpoint_if_cancelled()
        while view:
            size = await self._allowance(stream, len(view))
            self._h2.send_data(stream.number, bytes(view[:size]))
            self._unsent += size
            self._wake()
            view = view[size:]

    async def _allowance(self, stream: Stream, wanted: int) -> int:
        while True:
            if stream.failure is not None:
                raise GrpcError(stream.failure.code, stream.failure.message)
            if self._client and stream.ended:
                raise GrpcError(Status.CANCELLED, "the server answered before it had read all")
            if self._unsent < MAX_PENDING:
                try:
                    window = self._h2.local_flow_control_window(stream.number)
                except H2Error as error:
                    raise GrpcError(Status.UNAVAILABLE, f"the call is over: {error}") from error
                size = min(wanted, window, self._h2.max_outbound_frame_size)
                if size > 0:
                    return size
            await self._room.park()

    def send_head(self, stream: Stream, headers: Sequence[Header], *, end: bool) -> None:
        """Queue a HEADERS frame. Raises GrpcError if the stream is over."""
        try:
            self._h2.send_headers(stream.number, list(headers), end_stream=end)
        except H2Error as error:
            raise GrpcError(Status.UNAVAILABLE, f"the call is over: {error}") from error
        self._wake()

    def send_end(self, stream: Stream) -> None:
        """Queue the end of our side."""
        with suppress(H2Error):
            self._h2.end_stream(stream.number)
        self._wake()

    def send_reset(self, stream: Stream, code: ErrorCodes) -> None:
        """Queue a RST_STREAM frame, if the stream is still there."""
        with suppress(H2Error):
            self._h2.reset_stream(stream.number, code)
        self._wake()

    def acknowledge(self, stream: Stream, size: int) -> None:
        """Open both windows by `size`, or later if the peer is not trusted with that yet."""
        if size and self._restrained:
            self._unacknowledged.append((stream, size))
        elif size:
            with suppress(H2Error):
                self._h2.acknowledge_received_data(size, stream.number)
            self._wake()

    def forget(self, stream: Stream) -> None:
        """Drop a stream that is over."""
        self.streams.pop(stream.number, None)
        self.last_call = trio.current_time()
        if not self.streams:
            self._idle.unpark_all()

    def ping(self) -> None:
        """Queue a PING; `pong` is set when it is answered."""
        self.pong = trio.Event()
        with suppress(H2Error):
            self._h2.ping(b"remora.." if self._client else b"Remora..")
        self._wake()

    async def keep_alive(self) -> None:
        """PING a peer that is silent, and give the connection up if it does not answer."""
        interval = self.limits.keepalive_interval
        while interval is not None and self.failure is None:
            await trio.sleep(interval)
            if trio.current_time() - self.last_heard < interval:
                continue
            self.ping()
            with trio.move_on_after(self.limits.keepalive_timeout) as deadline:
                await self.pong.wait()
            if deadline.cancelled_caught:
                self.fail(GrpcError(Status.UNAVAILABLE, "the peer does not answer PINGs"))
                self.close()

    def go_away(self) -> None:
        """Announce that no further call will be taken; those that are open go on.

        The frame is made here, because h2 closes the whole connection when it sends one.
        """
        if self.draining:
            return
        self.draining = True
        frame = GoAwayFrame(0, last_stream_id=self._h2.highest_inbound_stream_id)
        self._urgent += frame.serialize()
        self._wake()

    async def wait_no_calls(self) -> None:
        """Wait until no call is open."""
        while self.streams:
            await self._idle.park()

    def fail(self, error: GrpcError) -> None:
        """End every call with `error`; the first failure is the one that counts."""
        if self.failure is None:
            self.failure = error
        for stream in list(self.streams.values()):
            stream.fail(self.failure)
        self._room.unpark_all()
        self.pong.set()

    def close(self) -> None:
        """Stop: what is queued is sent, then the transport is closed."""
        self.fail(GrpcError(Status.UNAVAILABLE, "the connection was closed"))
        self._closing = True
        self._wake()

    def _terminate(self, code: ErrorCodes) -> None:
        with suppress(H2Error):
            self._h2.close_connection(code)
        self._wake()

    # What the peer did.

    def _on_request_received(self, event: RequestReceived) -> None:
        stream = Stream(self, event.stream_id, self.limits.message_bytes)
        stream.headers = list(event.headers)
        self.streams[stream.number] = stream
        if self.draining or self._on_request is None:
            stream.reset(ErrorCodes.REFUSED_STREAM)
            return
        self._on_request(stream)

    def _on_response(self, event: ResponseReceived) -> None:
        if stream := self.streams.get(event.stream_id):
            stream.got_headers(list(event.headers))

    def _on_trailers(self, event: TrailersReceived) -> None:
        if stream := self.streams.get(event.stream_id):
            stream.got_trailers(list(event.headers))

    def _on_data(self, event: DataReceived) -> None:
        size = event.flow_controlled_length
        if stream := self.streams.get(event.stream_id):
            stream.got_data(event.data, size)
        elif not self._restrained:
            with suppress(H2Error):
                self._h2.acknowledge_received_data(size, event.stream_id)

    def _on_end(self, event: StreamEnded) -> None:
        if stream := self.streams.get(event.stream_id):
            stream.got_end()
            self._room.unpark_all()

    def _on_reset(self, event: StreamReset) -> None:
        if not self._client:
            self._resets.count("calls were opened and reset too often")
        if stream := self.streams.get(event.stream_id):
            code = int(event.error_code)
            stream.fail(GrpcError(from_reset(code), f"the peer reset the call (code {code})"))
            self.forget(stream)

    def _on_window(self, _event: WindowUpdated) -> None:
        self._room.unpark_all()

    def _on_settings(self, _event: RemoteSettingsChanged) -> None:
        self.greeted.set()
        self._pings.count("SETTINGS came too often")
        self._room.unpark_all()

    def _on_ping(self, _event: PingReceived) -> None:
        self._pings.count("PINGs came too often")

    def _on_pong(self, _event: PingAckReceived) -> None:
        self.pong.set()

    def _on_goaway(self, event: ConnectionTerminated) -> None:
        self.draining = True
        if event.error_code != ErrorCodes.NO_ERROR:
            code = event.error_code
            self.fail(GrpcError(Status.UNAVAILABLE, f"the peer closed the connection ({code!s})"))
            return
        # h2 takes a GOAWAY for the end. RFC 9113, 6.8: calls up to the last stream go on.
        state = ConnectionState.CLIENT_OPEN if self._client else ConnectionState.SERVER_OPEN
        self._h2.state_machine.state = state
        last = event.last_stream_id or 0
        for stream in list(self.streams.values()):
            if self._client and stream.number > last:
                stream.fail(GrpcError(Status.UNAVAILABLE, "the server is shutting down"))
                self.forget(stream)


class _Abuse(Exception):
    """The peer makes us work, or hold data, for nothing."""

    def __init__(self, message: str, code: ErrorCodes = ErrorCodes.ENHANCE_YOUR_CALM) -> None:
        super().__init__(message)
        self.code = code


class _Flood:
    """Counts events in windows of time; more than the limit in one is abuse."""

    def __init__(self, limit: int, window: float) -> None:
        self._limit = limit
        self._window = window
        self._since = trio.current_time()
        self._count = 0

    def count(self, complaint: str) -> None:
        now = trio.current_time()
        if now - self._since > self._window:
            self._since, self._count = now, 0
        self._count += 1
        if self._count > self._limit:
            raise _Abuse(complaint)
