"""Calling gRPC methods: a channel is one connection, and as many calls as it allows."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio
import trio.abc
from google.protobuf.message import DecodeError, Message

from mesh.grpc.connection import Connection
from mesh.grpc.framing import (
    Header,
    Metadata,
    decode_metadata,
    decode_status_message,
    encode_metadata,
    format_timeout,
)
from mesh.grpc.limits import DEFAULT_LIMITS, Limits
from mesh.grpc.method import Method
from mesh.grpc.status import GrpcError, Status, from_http_status
from mesh.grpc.stream import Stream

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)

MetadataItems = Sequence[tuple[str, str | bytes]]
Connect = Callable[[], Awaitable[trio.abc.Stream]]
"""Opens the transport, TLS included. What it raises, `open_channel` raises."""

USER_AGENT = b"grpc-python-remora/0.1"


class ClientCall(Generic[Req, Res]):
    """A call under way: send requests, iterate over responses, in any order."""

    def __init__(self, stream: Stream, response_type: type[Res]) -> None:
        self.trailing_metadata = Metadata()
        self._stream = stream
        self._response_type = response_type
        self._over = False

    async def send(self, request: Req) -> None:
        """Send one request, waiting while the server takes none. Raises GrpcError."""
        try:
            await self._stream.send(request.SerializeToString())
        except GrpcError:
            # RFC 9113, 8.1: a server may answer and then stop taking. Its answer says more.
            if self._stream.ended:
                self._finish()
            raise

    async def done_sending(self) -> None:
        """Say that no more requests will come."""
        self._stream.finish()
        await trio.lowlevel.checkpoint()

    async def initial_metadata(self) -> Metadata:
        """Return what the server sent before its first response. Raises GrpcError."""
        headers = await self._stream.wait_headers()
        return decode_metadata(headers)

    def __aiter__(self) -> ClientCall[Req, Res]:
        return self

    async def __anext__(self) -> Res:
        response = await self._receive()
        if response is None:
            raise StopAsyncIteration
        return response

    async def _receive(self) -> Res | None:
        if self._over:
            return None
        _check_answer(await self._stream.wait_headers())
        body = await self._stream.receive()
        if body is None:
            self._over = True
            self._finish()
            return None
        message = self._response_type()
        try:
            message.ParseFromString(body)
        except DecodeError as error:
            raise GrpcError(Status.INTERNAL, "the response cannot be decoded") from error
        return message

    def _finish(self) -> None:
        """Read the status; a server that sent only trailers sent them as headers."""
        trailers = self._stream.trailers or self._stream.headers or []
        self.trailing_metadata = decode_metadata(trailers)
        code, message = _read_status(trailers)
        if code is not Status.OK:
            raise GrpcError(code, message)


def _check_answer(headers: list[Header]) -> None:
    """Refuse an answer that is not gRPC's, by its HTTP status and content type."""
    values = dict(headers)
    status = values.get(b":status", b"")
    content = values.get(b"content-type", b"")
    if status != b"200":
        code = from_http_status(int(status)) if status.isdigit() else Status.UNKNOWN
        raise GrpcError(code, f"the server answered with HTTP status {status.decode('latin-1')}")
    if not content.startswith(b"application/grpc"):
        kind = content.decode("latin-1")[:80]
        raise GrpcError(Status.UNKNOWN, f"the server answered with {kind!r}, which is not gRPC")


def _read_status(trailers: list[Header]) -> tuple[Status, str]:
    values = dict(trailers)
    raw = values.get(b"grpc-status")
    if raw is None:
        return Status.INTERNAL, "the server ended the call without a status"
    message = decode_status_message(values.get(b"grpc-message", b""))
    try:
        return Status(int(raw)), message
    except ValueError:
        return Status.UNKNOWN, f"the server sent the status {raw[:20]!r}: {message}"


class Channel:
    """Calls over one connection. When it is lost, every call is UNAVAILABLE: open a new one."""

    def __init__(self, connection: Connection, authority: str, scheme: bytes) -> None:
        self._connection = connection
        self._authority = authority.encode()
        self._scheme = scheme

    async def unary(
        self,
        method: Method[Req, Res],
        request: Req,
        *,
        metadata: MetadataItems = (),
        timeout: float | None = None,  # noqa: ASYNC109 - it is also sent to the server
    ) -> Res:
        """Make a call with one request and one response; `timeout` in seconds. Raises GrpcError."""
        async with self.stream(method, metadata=metadata, timeout=timeout) as call:
            await call.send(request)
            await call.done_sending()
            responses = [response async for response in call]
        if len(responses) != 1:
            raise GrpcError(Status.INTERNAL, f"{len(responses)} responses came instead of one")
        return responses[0]

    @asynccontextmanager
    async def stream(
        self,
        method: Method[Req, Res],
        *,
        metadata: MetadataItems = (),
        timeout: float | None = None,  # noqa: ASYNC109 - it is also sent to the server
    ) -> AsyncGenerator[ClientCall[Req, Res]]:
        """Make a call with streams either way; leaving the block cancels what is left of it.

        Raises GrpcError, DEADLINE_EXCEEDED when `timeout` passes.
        """
        stream = self._connection.open_stream(self._headers(method.path, metadata, timeout))
        try:
            with trio.move_on_after(math.inf if timeout is None else timeout) as deadline:  # noqa: ASYNC100 - the caller runs inside
                yield ClientCall(stream, method.response)
        finally:
            stream.reset()
        if deadline.cancelled_caught:
            raise GrpcError(Status.DEADLINE_EXCEEDED, f"no answer within {timeout:g} s")

    def _headers(
        self,
        path: str,
        metadata: MetadataItems,
        timeout: float | None,
    ) -> list[Header]:
        headers = [
            (b":method", b"POST"),
            (b":scheme", self._scheme),
            (b":path", path.encode()),
            (b":authority", self._authority),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", USER_AGENT),
        ]
        if timeout is not None:
            headers.append((b"grpc-timeout", format_timeout(timeout)))
        return headers + encode_metadata(metadata)


@asynccontextmanager
async def open_channel(
    connect: Connect,
    *,
    authority: str = "localhost",
    scheme: bytes = b"http",
    limits: Limits = DEFAULT_LIMITS,
) -> AsyncGenerator[Channel]:
    """Open a connection and keep it for the block; raises what `connect` raises.

    A server that goes silent is noticed by PING, and its calls end as UNAVAILABLE.
    """
    transport = await connect()
    try:
        async with trio.open_nursery() as nursery:
            connection = Connection(transport, limits, client=True)
            connection.begin()
            nursery.start_soon(connection.run)
            nursery.start_soon(connection.keep_alive)
            yield Channel(connection, authority, scheme)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The tasks here never raise, so this is the block's own exception in the nursery's wrapper.
        if len(group.exceptions) != 1:
            raise
        raise group.exceptions[0] from group.exceptions[0].__cause__  # noqa: ASYNC123
    finally:
        await trio.aclose_forcefully(transport)
