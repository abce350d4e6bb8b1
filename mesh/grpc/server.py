"""gRPC services: handlers by method, and the server that calls them."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar, cast

import trio
import trio.abc
from google.protobuf.message import DecodeError, Message
from h2.errors import ErrorCodes

from mesh.errors import RemoraError
from mesh.grpc.connection import Connection
from mesh.grpc.framing import (
    Header,
    Metadata,
    decode_metadata,
    encode_metadata,
    encode_status_message,
    parse_timeout,
)
from mesh.grpc.limits import DEFAULT_LIMITS, Limits
from mesh.grpc.method import Method
from mesh.grpc.status import GrpcError, Status
from mesh.grpc.stream import Stream
from mesh.log import get_logger
from mesh.tls import TlsSession
from mesh.unix_socket import PeerCredentials

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)

log = get_logger("grpc")

WARN_EVERY = 60.0
"""Seconds between log lines about a flood, which must not fill the disk as well."""

_CONTENT_TYPE: Header = (b"content-type", b"application/grpc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is at the other end of a connection, by what the transport knows."""

    address: str
    credentials: PeerCredentials | None = None
    tls: TlsSession | None = None


class ServerCall:
    """What a handler may know and do beside its messages."""

    def __init__(self, stream: Stream, metadata: Metadata, peer: Peer) -> None:
        self.metadata = metadata
        self.peer = peer
        self.trailing_metadata: list[tuple[str, str | bytes]] = []
        self.request_timeout: float | None = None
        self._stream = stream
        self._sent_headers = False

    @contextmanager
    def request_due(self) -> Generator[None]:
        """Bound how long the block may wait for a request. Raises GrpcError."""
        seconds = self.request_timeout
        with trio.move_on_after(math.inf if seconds is None else seconds) as deadline:
            yield
        if deadline.cancelled_caught:
            message = f"no complete request came within {seconds:g} s"
            raise GrpcError(Status.DEADLINE_EXCEEDED, message)

    def send_initial_metadata(self, metadata: Sequence[tuple[str, str | bytes]] = ()) -> None:
        """Send the response headers now, before the first message; only once."""
        if not self._sent_headers:
            self._sent_headers = True
            self._stream.send_headers(
                [(b":status", b"200"), _CONTENT_TYPE, *encode_metadata(metadata)]
            )

    def send_status(self, code: Status, message: str) -> None:
        """End the call. Raises GrpcError if it is over already."""
        trailers = [(b"grpc-status", b"%d" % code)]
        if message:
            trailers.append((b"grpc-message", encode_status_message(message)))
        trailers += encode_metadata(self.trailing_metadata)
        if not self._sent_headers:
            # "Trailers-only": an error before any message is one HEADERS frame.
            trailers = [(b":status", b"200"), _CONTENT_TYPE, *trailers]
        self._stream.send_headers(trailers, end=True)


class StreamingCall(ServerCall, Generic[Req, Res]):
    """A call with a stream of requests, of responses, or of both."""

    def __init__(
        self, stream: Stream, metadata: Metadata, peer: Peer, request_type: type[Req]
    ) -> None:
        super().__init__(stream, metadata, peer)
        self._request_type = request_type
        self._begun = False

    def __aiter__(self) -> StreamingCall[Req, Res]:
        return self

    async def __anext__(self) -> Req:
        body = await (self._stream.receive() if self._begun else self._first())
        if body is None:
            raise StopAsyncIteration
        return _decode(self._request_type, body)

    async def _first(self) -> bytes | None:
        self._begun = True
        with self.request_due():
            return await self._stream.receive()

    async def send(self, response: Res) -> None:
        """Send one response, waiting while the peer takes none. Raises GrpcError."""
        self.send_initial_metadata()
        await self._stream.send(response.SerializeToString())


UnaryHandler = Callable[[Req, ServerCall], Awaitable[Res]]
StreamingHandler = Callable[[StreamingCall[Req, Res]], Awaitable[None]]
_Handler = Callable[[Stream, Metadata, Peer], "tuple[ServerCall, Callable[[], Awaitable[None]]]"]


class Service:
    """Handlers by method. A handler raises GrpcError to fail its call.

    Any other exception is INTERNAL to the caller and a traceback in the log; the server lives on.
    """

    def __init__(self) -> None:
        self.handlers: dict[str, _Handler] = {}

    def unary(self, method: Method[Req, Res], handler: UnaryHandler[Req, Res]) -> None:
        """Answer `method` with what `handler` returns for its one request."""

        def bind(
            stream: Stream, metadata: Metadata, peer: Peer
        ) -> tuple[ServerCall, Callable[[], Awaitable[None]]]:
            stream.unary = True
            call: StreamingCall[Req, Res] = StreamingCall(stream, metadata, peer, method.request)

            async def run() -> None:
                await call.send(await handler(await _only_request(call), call))

            return call, run

        self.handlers[method.path] = bind

    def streaming(self, method: Method[Req, Res], handler: StreamingHandler[Req, Res]) -> None:
        """Let `handler` read requests from the call and send responses to it."""

        def bind(
            stream: Stream, metadata: Metadata, peer: Peer
        ) -> tuple[ServerCall, Callable[[], Awaitable[None]]]:
            call: StreamingCall[Req, Res] = StreamingCall(stream, metadata, peer, method.request)

            async def run() -> None:
                await handler(call)

            return call, run

        self.handlers[method.path] = bind


async def _only_request(call: StreamingCall[Req, Res]) -> Req:
    request: Req | None = None
    with call.request_due():
        async for message in call:
            if request is not None:
                raise GrpcError(Status.INTERNAL, "this method takes one request, and more came")
            request = message
    if request is None:
        raise GrpcError(Status.INTERNAL, "this method takes one request, and none came")
    return request


def _decode(kind: type[Req], body: bytes) -> Req:
    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise GrpcError(Status.INTERNAL, "the request cannot be decoded") from error
    return message


Accept = Callable[[trio.SocketStream], Awaitable[tuple[trio.abc.Stream, Peer]]]
"""Turns a socket into the stream that gRPC runs on, with what is known of the peer.

A TLS handshake goes here. May raise RemoraError, trio.BrokenResourceError, OSError.
"""


async def accept_plain(stream: trio.SocketStream) -> tuple[trio.abc.Stream, Peer]:
    """Take a connection as it is: HTTP/2 with prior knowledge."""
    return stream, Peer(address=str(stream.socket.getpeername()))


@dataclass(slots=True, eq=False)
class _Slot:
    """The place of one connection: its scope, and the connection once its transport is up."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    connection: Connection | None = None
    since: float = field(default_factory=trio.current_time)


class GrpcServer:
    """A service on its listeners. `serve_grpc` makes one."""

    def __init__(self, service: Service, accept: Accept, limits: Limits) -> None:
        self._service = service
        self._accept = accept
        self._limits = limits
        self._connections: set[Connection] = set()
        self._slots: dict[_Slot, None] = {}
        self._unanswered: dict[_Slot, None] = {}
        self._accepting = trio.CancelScope()
        self._next_warning = -math.inf

    async def drain(self, grace: float) -> None:
        """Take no more connections or calls; cut those that are open after `grace` seconds."""
        self._accepting.cancel()
        for connection in self._connections:
            connection.go_away()
        with trio.move_on_after(grace):
            for connection in list(self._connections):
                await connection.wait_no_calls()
        for connection in self._connections:
            connection.close()

    async def run(
        self,
        listeners: Sequence[trio.abc.Listener[trio.SocketStream]],
        task_status: trio.TaskStatus[GrpcServer],
    ) -> None:
        """Serve until drained or cancelled.

        A cancelled server says GOAWAY. Unary calls may end within the limits' `call_grace`; calls
        with streams, which might go on for ever, are cut at once.
        """
        stopped = trio.Event()
        async with trio.open_nursery() as nursery:
            try:
                connections = await nursery.start(self._hold_connections, stopped)
                task_status.started(self)
                serve = partial(trio.serve_listeners, handler_nursery=connections)
                with self._accepting:
                    await serve(self._handle, list(listeners))
            finally:
                stopped.set()

    async def _hold_connections(
        self, stopped: trio.Event, task_status: trio.TaskStatus[trio.Nursery]
    ) -> None:
        """Be the home of all connections: out of reach of cancellation until `stopped`."""
        await trio.lowlevel.checkpoint_if_cancelled()  # or `start` would wait for us for ever
        with trio.CancelScope(shield=True) as scope:
            async with trio.open_nursery() as connections:
                task_status.started(connections)
                await stopped.wait()
                if not self._accepting.cancel_called:  # drained otherwise, so all are told to close
                    scope.deadline = trio.current_time() + self._limits.call_grace
                    self._cancel_what_never_ends()
                    await self.drain(self._limits.call_grace)

    def _cancel_what_never_ends(self) -> None:
        for slot in self._slots:
            if slot.connection is None:
                slot.scope.cancel()
                continue
            for stream in list(slot.connection.streams.values()):
                if not stream.unary:
                    stream.fail(GrpcError(Status.UNAVAILABLE, "the server is shutting down"))

    async def _handle(self, socket: trio.SocketStream) -> None:
        if self._is_full() and not self._make_room():
            await trio.aclose_forcefully(socket)
            return
        slot = _Slot()
        self._slots[slot] = self._unanswered[slot] = None
        try:
            with slot.scope:
                await self._serve_socket(socket, slot)
        except Exception:  # one peer's bad luck must not end the server
            log.exception("a connection failed in an unforeseen way")
        finally:
            del self._slots[slot]
            self._unanswered.pop(slot, None)
            await trio.aclose_forcefully(socket)

    def _is_full(self) -> bool:
        return (
            len(self._slots) >= self._limits.connections
            or len(self._unanswered) >= self._limits.unanswered_connections
        )

    def _make_room(self) -> bool:
        """Cut the oldest connection that was never answered and had its time; tell whether."""
        if trio.current_time() >= self._next_warning:
            self._next_warning = trio.current_time() + WARN_EVERY
            log.warning(
                "connection limit reached: the oldest that were never answered make room",
                connections=len(self._slots),
                unanswered=len(self._unanswered),
            )
        oldest = next(iter(self._unanswered), None)
        patience = self._limits.unanswered_patience
        if oldest is None or trio.current_time() - oldest.since < patience:
            return False
        del self._unanswered[oldest]
        oldest.scope.cancel()
        return True

    async def _serve_socket(self, socket: trio.SocketStream, slot: _Slot) -> None:
        try:
            with trio.fail_after(self._limits.preface_timeout):
                stream, peer = await self._accept(socket)
        except (trio.TooSlowError, trio.BrokenResourceError, OSError) as error:
            log.debug("connection lost before it was up", error=str(error))
            return
        except RemoraError as error:
            log.info("connection refused", reason=error.reason, error=str(error))
            return
        try:
            await self._serve_stream(stream, peer, slot)
        finally:
            await trio.aclose_forcefully(stream)

    async def serve_stream(self, stream: trio.abc.Stream, peer: Peer) -> None:
        """Serve one connection until it ends."""
        await self._serve_stream(stream, peer, _Slot())

    async def _serve_stream(self, stream: trio.abc.Stream, peer: Peer, slot: _Slot) -> None:
        async with trio.open_nursery() as nursery:
            connection = slot.connection = Connection(
                stream,
                self._limits,
                client=False,
                on_request=lambda call: nursery.start_soon(self._call, call, peer),
                on_answered=lambda: self._unanswered.pop(slot, None),
            )
            connection.begin()
            self._connections.add(connection)
            try:
                nursery.start_soon(self._watch, connection)
                nursery.start_soon(connection.keep_alive)
                await connection.run()
            finally:
                self._connections.discard(connection)
                nursery.cancel_scope.cancel()

    async def _watch(self, connection: Connection) -> None:
        """Close a connection that does not greet, or that nobody uses."""
        with trio.move_on_after(self._limits.preface_timeout):
            await connection.greeted.wait()
        if not connection.greeted.is_set():
            connection.close()
            return
        if self._limits.idle_timeout is None:
            return
        while connection.streams or self._idle_left(connection) > 0:  # noqa: ASYNC110 - time passes
            await trio.sleep(max(self._idle_left(connection), 1.0))
        connection.go_away()
        connection.close()

    def _idle_left(self, connection: Connection) -> float:
        timeout = self._limits.idle_timeout or 0.0
        return connection.last_call + timeout - trio.current_time()

    async def _call(self, stream: Stream, peer: Peer) -> None:
        with trio.CancelScope() as scope:
            stream.scope = scope
            with suppress(GrpcError):  # the caller is gone, and nobody is left to answer
                await self._answer(stream, peer)
        # RFC 9113, 8.1: an answer may be complete before the request is.
        stream.reset(ErrorCodes.NO_ERROR if stream.sent_end else ErrorCodes.CANCEL)

    async def _answer(self, stream: Stream, peer: Peer) -> None:
        headers = dict(stream.headers or [])
        if not headers.get(b"content-type", b"").startswith(b"application/grpc"):
            stream.send_headers([(b":status", b"415")], end=True)
            return
        try:
            call, run, timeout = self._bind(stream, headers, peer)
        except GrpcError as error:
            ServerCall(stream, Metadata(), peer).send_status(error.code, error.message)
        else:
            code, message = await _outcome(run, math.inf if timeout is None else timeout)
            call.send_status(code, message)

    def _bind(
        self, stream: Stream, headers: dict[bytes, bytes], peer: Peer
    ) -> tuple[ServerCall, Callable[[], Awaitable[None]], float | None]:
        path = headers.get(b":path", b"").decode("latin-1")
        bind = self._service.handlers.get(path)
        if headers.get(b":method") != b"POST" or bind is None:
            raise GrpcError(Status.UNIMPLEMENTED, f"unknown method {path[:200]}")
        value = headers.get(b"grpc-timeout")
        timeout = None if value is None else parse_timeout(value)
        call, run = bind(stream, decode_metadata(stream.headers or []), peer)
        call.request_timeout = self._limits.request_timeout
        return call, run, timeout


async def _outcome(run: Callable[[], Awaitable[None]], seconds: float) -> tuple[Status, str]:
    """Run a handler; whatever it raises becomes the call's status."""
    with trio.move_on_after(seconds) as deadline:
        try:
            await run()
        except Exception as error:  # one caller's bad luck must not end the server
            if (known := _grpc_error(error)) is not None:
                return known.code, known.message
            log.exception("a handler failed")
            return Status.INTERNAL, "internal error"
    if deadline.cancelled_caught:
        return Status.DEADLINE_EXCEEDED, "the caller's deadline passed"
    return Status.OK, ""


def _grpc_error(error: BaseException) -> GrpcError | None:
    """Return the one error inside the groups that a handler's nurseries made, if it is ours."""
    while isinstance(error, BaseExceptionGroup):
        inner = cast("BaseExceptionGroup[BaseException]", error).exceptions
        if len(inner) != 1:
            return None
        error = inner[0]
    return error if isinstance(error, GrpcError) else None


async def serve_grpc(
    service: Service,
    listeners: Sequence[trio.abc.Listener[trio.SocketStream]],
    *,
    accept: Accept = accept_plain,
    limits: Limits = DEFAULT_LIMITS,
    task_status: trio.TaskStatus[GrpcServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, or until `GrpcServer.drain` is done; the server is the start value."""
    await GrpcServer(service, accept, limits).run(listeners, task_status)
