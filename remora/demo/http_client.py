"""The client app of the demo: one HTTP request over a socket, reported like curl does.

`python -m remora.demo.http_client get URL` fetches; `... upload URL` sends random bytes until its
standard input ends. Either prints one JSON object: `status` is "000" if no answer came, and
`exit_code` says why by curl's numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import h11

TIMEOUT = 30.0
"""Seconds without a byte after which the client gives up."""

READ_SIZE = 65536
PIECE = 32 * 1024
PACE = 0.04
"""An upload sends PIECE bytes every PACE seconds: less than 1 MB/s, so that it leaves the
processors to others however long it lasts."""

NO_ANSWER = "000"
CURL_CONNECT, CURL_EMPTY, CURL_TIMEOUT, CURL_RESET = 7, 52, 28, 56
"""curl's exit codes: could not connect, empty reply, timed out, connection reset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of a request. `sent` and `sha256` are of the body."""

    status: str
    error: str = ""
    exit_code: int = 0
    body: str = ""
    sent: int = 0
    sha256: str = ""


class Failed(Exception):
    """The request got no answer; `exit_code` is curl's."""

    def __init__(self, exit_code: int, error: str) -> None:
        super().__init__(error)
        self.exit_code = exit_code


class Body:
    """The body of an upload, counted and hashed on its way."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self._digest = hashlib.sha256()
        self.sent = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            yield piece
            self.sent += len(piece)
            self._digest.update(piece)

    @property
    def sha256(self) -> str:
        """The hash of what was sent so far."""
        return self._digest.hexdigest()


def request(method: str, url: str, body: Body) -> Report:
    """Make one request on one connection of its own."""
    parts = urlsplit(url)
    try:
        with _connect(parts.hostname or "", parts.port or 80) as stream:
            status, answer = _exchange(stream, method, url, body)
    except Failed as error:
        return Report(status=NO_ANSWER, error=str(error), exit_code=error.exit_code, sent=body.sent)
    return Report(status=status, body=answer, sent=body.sent, sha256=body.sha256)


def _connect(host: str, port: int) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=TIMEOUT)
    except OSError as error:
        raise Failed(CURL_CONNECT, f"could not connect: {error}") from error


def _exchange(stream: socket.socket, method: str, url: str, body: Body) -> tuple[str, str]:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = [("Host", parts.netloc), ("User-Agent", "remora-demo"), ("Connection", "close")]
    if method == "POST":
        headers.append(("Transfer-Encoding", "chunked"))
    connection = h11.Connection(h11.CLIENT)
    try:
        _send(stream, connection, h11.Request(method=method, target=target, headers=headers))
        for piece in body:
            _send(stream, connection, h11.Data(piece))
        _send(stream, connection, h11.EndOfMessage())
        return _read_answer(stream, connection)
    except TimeoutError as error:
        raise Failed(CURL_TIMEOUT, "timed out") from error
    except ConnectionError as error:
        raise Failed(CURL_RESET, "connection reset") from error
    except h11.RemoteProtocolError as error:
        raise Failed(CURL_EMPTY, f"no whole answer: {error}") from error


def _send(stream: socket.socket, connection: h11.Connection, event: h11.Event) -> None:
    stream.sendall(connection.send(event) or b"")


def _read_answer(stream: socket.socket, connection: h11.Connection) -> tuple[str, str]:
    status, body = "", b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(stream.recv(READ_SIZE))
        elif isinstance(event, h11.Response):
            status = str(event.status_code)
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return status, body.decode("utf-8", "replace")
        else:
            raise Failed(CURL_EMPTY, "empty reply")


def until_stdin_ends() -> Iterator[bytes]:
    """Yield random pieces at a steady pace, until standard input ends."""
    while not select.select([sys.stdin], [], [], PACE)[0]:
        yield os.urandom(PIECE)


def main() -> None:
    """Make the request that the command line names and print the report."""
    command, url = sys.argv[1:]
    if command == "upload":
        report = request("POST", url, Body(until_stdin_ends()))
    else:
        report = request("GET", url, Body(()))
    print(json.dumps(asdict(report)))  # noqa: T201 - the command's output


if __name__ == "__main__":
    main()
