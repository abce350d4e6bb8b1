"""One call on an HTTP/2 connection: what has come in for it, and sending within its windows."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import trio
from h2.errors import ErrorCodes

from mesh.grpc.framing import Header, MessageReader, encode_message
from mesh.grpc.status import GrpcError, Status


class Wire(Protocol):
    """What a stream needs of its connection."""

    async def send_body(self, stream: Stream, data: bytes) -> None:
        """Send DATA within the windows, waiting as long as they are shut."""
        ...

    def send_head(self, stream: Stream, headers: Sequence[Header], *, end: bool) -> None:
        """Queue a HEADERS frame."""
        ...

    def send_end(self, stream: Stream) -> None:
        """Queue the end of our side."""
        ...

    def send_reset(self, stream: Stream, code: ErrorCodes) -> None:
        """Queue a RST_STREAM frame."""
        ...

    def acknowledge(self, stream: Stream, size: int) -> None:
        """Let the peer send `size` more bytes."""
        ...

    def forget(self, stream: Stream) -> None:
        """Drop a stream that is over on both sides."""
        ...


class Stream:
    """A mailbox between the connection's reader and the task that makes or serves the call.

    Received bytes are acknowledged at once while nothing waits to be taken, and otherwise when
    it is taken: a slow taker stops its peer, and no message is too large for the window.
    """

    def __init__(self, wire: Wire, number: int, message_limit: int) -> None:
        self.number = number
        self.headers: list[Header] | None = None
        self.trailers: list[Header] | None = None
        self.failure: GrpcError | None = None
        self.scope: trio.CancelScope | None = None
        self.unary = False
        self._wire = wire
        self._reader = MessageReader(message_limit)
        self._messages: deque[bytes] = deque()
        self._withheld = 0
        self._refusal: GrpcError | None = None
        self._ended = False
        self._sent_end = False
        self._news = trio.lowlevel.ParkingLot()

    # What the connection's reader calls.

    def got_headers(self, headers: list[Header]) -> None:
        """Take the peer's initial headers."""
        self.headers = headers
        self._news.unpark_all()

    def got_data(self, data: bytes, size: int) -> None:
        """Take DATA; `size` is what it counts in flow control, padding included."""
        if self._refusal is None:
            try:
                self._messages.extend(self._reader.feed(data))
            except GrpcError as error:
                self._refusal = error
        if self._messages and self._refusal is None:
            self._withheld += size
        else:
            self._wire.acknowledge(self, size)
        self._news.unpark_all()

    def got_trailers(self, headers: list[Header]) -> None:
        """Take the peer's trailers."""
        self.trailers = headers

    def got_end(self) -> None:
        """Take note that the peer sends no more."""
        self._ended = True
        if self._sent_end:
            self._wire.forget(self)
        self._news.unpark_all()

    def fail(self, error: GrpcError) -> None:
        """End the stream with `error`: waiting tasks get it, a handler is cancelled."""
        if self.failure is None:
            self.failure = error
        if self.scope is not None:
            self.scope.cancel()
        self._news.unpark_all()

    # What the task of the call uses.

    @property
    def ended(self) -> bool:
        """Whether the peer's side is finished."""
        return self._ended

    @property
    def sent_end(self) -> bool:
        """Whether our side is finished."""
        return self._sent_end

    async def wait_headers(self) -> list[Header]:
        """Return the peer's initial headers. Raises GrpcError."""
        while self.headers is None:
            self._check()
            await self._news.park()
        return self.headers

    async def receive(self) -> bytes | None:
        """Return the next message, None at the peer's end.

        Raises GrpcError; one for a message that is too large leaves the stream able to answer.
        """
        while not self._messages:
            if self._refusal is not None:
                raise GrpcError(self._refusal.code, self._refusal.message)
            if self._ended:
                # Whatever happened since, what the peer had to say is complete.
                if not self._reader.empty:
                    raise GrpcError(Status.INTERNAL, "the stream ended in the middle of a message")
                return None
            self._check()
            await self._news.park()
        message = self._messages.popleft()
        if not self._messages:
            self._release()
        await trio.lowlevel.checkpoint_if_cancelled()
        return message

    async def send(self, body: bytes) -> None:
        """Send one message. Raises GrpcError if the stream is over."""
        await self._wire.send_body(self, encode_message(body))

    def send_headers(self, headers: Sequence[Header], *, end: bool = False) -> None:
        """Queue headers or trailers; `end` finishes our side."""
        self._check()
        self._wire.send_head(self, headers, end=end)
        if end:
            self._finish()

    def finish(self) -> None:
        """Finish our side without trailers, as a client does."""
        if not self._sent_end and self.failure is None:
            self._wire.send_end(self)
            self._finish()

    def reset(self, code: ErrorCodes = ErrorCodes.CANCEL) -> None:
        """Give the stream up, unless both sides are finished or it failed already."""
        self._release()
        if self.failure is None and not (self._ended and self._sent_end):
            self._wire.send_reset(self, code)
        self._wire.forget(self)

    def _finish(self) -> None:
        self._sent_end = True
        if self._ended:
            self._wire.forget(self)

    def _release(self) -> None:
        if self._withheld:
            self._wire.acknowledge(self, self._withheld)
            self._withheld = 0

    def _check(self) -> None:
        if self.failure is not None:
            raise GrpcError(self.failure.code, self.failure.message)
