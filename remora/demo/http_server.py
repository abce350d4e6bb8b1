"""The server app of the demo: plain HTTP, knowing nothing of any mesh.

`python -m remora.demo.http_server HOST:PORT...` answers GET with the path that was asked for, and
POST with the size and the SHA-256 of what it received.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Sequence

import h11
import trio

from remora.demo.ports import split_address

READY = "app ready"
"""Logged when every port is open."""

READ_SIZE = 65536
"""Bytes taken from a connection at once."""


async def serve(addresses: Sequence[str]) -> None:
    """Serve on every address until cancelled."""
    listeners: list[trio.SocketListener] = []
    for host, port in map(split_address, addresses):
        listeners += await trio.open_tcp_listeners(port, host=host)
    _log(READY, addresses=list(addresses))
    await trio.serve_listeners(_serve_connection, listeners)


async def _serve_connection(stream: trio.SocketStream) -> None:
    connection = h11.Connection(h11.SERVER)
    try:
        while connection.our_state is h11.IDLE:
            await _exchange(stream, connection)
    except (h11.RemoteProtocolError, trio.BrokenResourceError) as error:
        _log("connection ended", why=str(error))
    finally:
        await trio.aclose_forcefully(stream)


async def _exchange(stream: trio.SocketStream, connection: h11.Connection) -> None:
    request = await _next_event(stream, connection)
    if isinstance(request, h11.ConnectionClosed):
        connection.send(h11.ConnectionClosed())
        return
    if not isinstance(request, h11.Request):
        raise h11.RemoteProtocolError(f"expected a request, got {type(request).__name__}")
    size, digest = await _read_body(stream, connection)
    _log("request", method=request.method.decode(), target=request.target.decode(), bytes=size)
    answer = f"This is foo's server. You asked for {request.target.decode()}\n"
    if request.method == b"POST":
        answer = json.dumps({"bytes": size, "sha256": digest}) + "\n"
    await _reply(stream, connection, answer.encode())
    if connection.our_state is h11.DONE and connection.their_state is h11.DONE:
        connection.start_next_cycle()


async def _read_body(stream: trio.SocketStream, connection: h11.Connection) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    while True:
        event = await _next_event(stream, connection)
        if not isinstance(event, h11.Data):
            return size, digest.hexdigest()
        size += len(event.data)
        digest.update(event.data)


async def _reply(stream: trio.SocketStream, connection: h11.Connection, body: bytes) -> None:
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    events = (h11.Response(status_code=200, headers=headers), h11.Data(body), h11.EndOfMessage())
    await stream.send_all(b"".join(connection.send(event) or b"" for event in events))


async def _next_event(stream: trio.SocketStream, connection: h11.Connection) -> h11.Event:
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(READ_SIZE))
        elif isinstance(event, h11.Event):
            return event
        else:
            raise h11.RemoteProtocolError("a second request came before the first was answered")


def _log(event: str, **facts: object) -> None:
    print(json.dumps({"event": event, **facts}), file=sys.stderr)  # noqa: T201 - its log


def main() -> None:
    """Serve until SIGTERM, whose default is all that is needed here."""
    trio.run(functools.partial(serve, sys.argv[1:]))


if __name__ == "__main__":
    main()
