"""A tiny HTTP/1.1 server for a program's own pages: metrics, health. By h11, on trio.

GET and HEAD of fixed paths, nothing else; everything a client may do is bounded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import h11
import trio
import trio.abc

from mesh.errors import RemoraError
from mesh.log import get_logger

log = get_logger("http")

REQUEST_DEADLINE = 10.0
"""Seconds for one request and its answer, and for a connection to stand idle: scrapers come every
15 to 60 s and reconnect."""

MAX_CONNECTIONS = 64
"""A scraper or two and a health check; whoever opens more is closed at once."""

READ_SIZE = 4096
"""Bytes. A whole request of this kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """An answer."""

    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


Pages = Mapping[str, Callable[[], Page]]
"""What makes each page, by path."""


Accept = Callable[[trio.SocketStream], Awaitable[trio.abc.Stream]]
"""Turns a socket into the stream that HTTP runs on; a TLS handshake goes here.

May raise RemoraError, trio.BrokenResourceError.
"""


async def accept_plain(stream: trio.SocketStream) -> trio.abc.Stream:
    """Take a connection as it is."""
    await trio.lowlevel.checkpoint()
    return stream


async def serve_pages(
    pages: Pages,
    listeners: Sequence[trio.SocketListener],
    accept: Accept = accept_plain,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled."""
    open_now = trio.CapacityLimiter(MAX_CONNECTIONS)

    async def handle(stream: trio.SocketStream) -> None:
        try:
            open_now.acquire_nowait()
        except trio.WouldBlock:
            return
        try:
            await _serve_socket(pages, stream, accept)
        finally:
            open_now.release()

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, handle, list(listeners))
        task_status.started()


async def _serve_socket(pages: Pages, socket: trio.SocketStream, accept: Accept) -> None:
    try:
        with trio.fail_after(REQUEST_DEADLINE):
            stream = await accept(socket)
    except (RemoraError, trio.TooSlowError, trio.BrokenResourceError) as error:
        log.debug("connection lost before it was up", error=str(error))
        return
    async with stream:
        await _serve_connection(pages, stream)


async def _serve_connection(pages: Pages, stream: trio.abc.Stream) -> None:
    connection = h11.Connection(h11.SERVER)
    try:
        while connection.our_state is h11.IDLE:
            with trio.fail_after(REQUEST_DEADLINE):
                if not await _serve_request(pages, connection, stream):
                    return
    except (h11.RemoteProtocolError, trio.TooSlowError, trio.BrokenResourceError):
        return


async def _serve_request(pages: Pages, connection: h11.Connection, stream: trio.abc.Stream) -> bool:
    """Answer one request. False if there is none, or will be no other."""
    request: h11.Request | None = None
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(READ_SIZE)))
        elif isinstance(event, h11.Request):
            request = event
        elif not isinstance(event, h11.Data):
            return False
    if request is None:
        return False
    await stream.send_all(_answer(pages, connection, request))
    if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
        return False
    connection.start_next_cycle()
    return True


def _answer(pages: Pages, connection: h11.Connection, request: h11.Request) -> bytes:
    page = _page(pages, request)
    headers = [("content-type", page.content_type), ("content-length", str(len(page.body)))]
    send = partial(_send, connection)
    head = send(h11.Response(status_code=page.status, headers=headers))
    body = b"" if request.method == b"HEAD" else send(h11.Data(data=page.body))
    return head + body + send(h11.EndOfMessage())


def _send(connection: h11.Connection, event: h11.Event) -> bytes:
    return connection.send(event) or b""


def _page(pages: Pages, request: h11.Request) -> Page:
    if request.method not in {b"GET", b"HEAD"}:
        return Page(status=405, body=b"only GET and HEAD\n")
    path = request.target.partition(b"?")[0].decode("latin-1")
    if path not in pages:
        return Page(status=404, body="".join(f"{known}\n" for known in sorted(pages)).encode())
    return pages[path]()
