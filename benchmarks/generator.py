"""The load: a server that answers and clients that ask, on epoll, the same for every peer.

Run as a process of its own, `python -m benchmarks.generator serve`, or with a kind of load and a
port; prints one line of JSON. A connection's first byte says what it is for: G asks for answers of
1 KiB each, U sends until it ends, D wants bytes until it ends.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict

REQUEST = b"GET /benchmark HTTP/1.1\r\nhost: server.foo\r\nx-padding: 0123456789\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 939\r\nserver: benchmark\r\n\r\n".ljust(1024, b".")
END = b"\r\n\r\n"
BLOCK = bytes(262144)
READ = 262144
PATIENCE = 20.0
"""Seconds after which a load that does not get anywhere gives up."""


class Result(TypedDict, total=False):
    """What a load found; which of these depends on its kind."""

    rate: float
    """Requests, connections or bytes a second."""
    count: int
    p50: float
    p99: float
    p999: float
    """Seconds."""
    failed: int


class Loop:
    """An epoll and what to call for each descriptor."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}

    def watch(self, sock: socket.socket, call: Callable[[], None], *, write: bool = False) -> None:
        fd = sock.fileno()
        mask = select.EPOLLOUT if write else select.EPOLLIN
        if fd in self._calls:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
        self._calls[fd] = call

    def forget(self, sock: socket.socket) -> None:
        self._calls.pop(sock.fileno(), None)
        sock.close()

    def turn(self, seconds: float = -1) -> None:
        for fd, _ in self._epoll.poll(seconds):
            call = self._calls.get(fd)
            if call is not None:
                call()


class Served:
    """One connection of the server."""

    def __init__(self, loop: Loop, sock: socket.socket, buffer: bytearray) -> None:
        self._loop, self._sock, self._buffer = loop, sock, buffer
        loop.watch(sock, self._first)

    def _receive(self) -> int:
        try:
            return self._sock.recv_into(self._buffer)
        except BlockingIOError:
            return -1
        except OSError:
            return 0

    def _first(self) -> None:
        kind = self._sock.recv(1, socket.MSG_PEEK)
        follow = {b"G": self._answer, b"U": self._take}.get(kind)
        if follow is not None:
            self._loop.watch(self._sock, follow)
            follow()
        elif kind == b"D":
            self._loop.watch(self._sock, self._give, write=True)
        else:
            self._loop.forget(self._sock)

    def _answer(self) -> None:
        got = self._receive()
        if got > 0:
            self._sock.send(ANSWER * self._buffer.count(END, 0, got))
        elif got == 0:
            self._loop.forget(self._sock)

    def _take(self) -> None:
        if self._receive() == 0:
            self._loop.forget(self._sock)

    def _give(self) -> None:
        try:
            self._sock.send(BLOCK)
        except BlockingIOError:
            pass
        except OSError:
            self._loop.forget(self._sock)


def serve() -> None:
    loop, buffer = Loop(), bytearray(READ)
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)

    def accept() -> None:
        for _ in range(64):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Served(loop, sock, buffer)

    loop.watch(listener, accept)
    print(listener.getsockname()[1], flush=True)
    while True:
        loop.turn()


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def ask(sock: socket.socket) -> None:
    """One request and its whole answer, waiting."""
    sock.sendall(REQUEST)
    left = len(ANSWER)
    while left:
        got = len(sock.recv(left))
        if not got:
            raise ConnectionResetError("the answer was cut")
        left -= got


def connections(port: int, count: int) -> list[socket.socket]:
    """Open connections that each have had an answer, so that all is set up end to end."""
    opened: list[socket.socket] = []
    for _ in range(count):
        sock = connect(port)
        ask(sock)
        opened.append(sock)
    return opened


@dataclass
class Asker:
    """A keep-alive connection: `begin` sends a request, `done` is called with the latency."""

    loop: Loop
    sock: socket.socket
    done: Callable[[Asker, float], None]
    buffer: bytearray
    due: float = 0.0
    left: int = field(default=0)

    def __post_init__(self) -> None:
        self.sock.setblocking(False)
        self.loop.watch(self.sock, self._readable)

    def begin(self, due: float) -> None:
        self.due, self.left = due, len(ANSWER)
        self.sock.send(REQUEST)

    def _readable(self) -> None:
        got = self.sock.recv_into(self.buffer)
        if not got:
            raise ConnectionResetError("the answer was cut")
        self.left -= got
        if self.left == 0:
            self.done(self, time.perf_counter() - self.due)


def latencies(found: list[float], seconds: float) -> Result:
    found.sort()
    if not found:
        return {"rate": 0.0, "count": 0}

    def at(share: float) -> float:
        return found[min(int(len(found) * share), len(found) - 1)]

    rate = len(found) / seconds
    return {
        "rate": rate,
        "count": len(found),
        "p50": at(0.5),
        "p99": at(0.99),
        "p999": at(0.999),
    }


def requests(port: int, count: int, seconds: float) -> Result:
    """Ask again as soon as the answer is there, on each of `count` connections."""
    loop, buffer, found = Loop(), bytearray(READ), list[float]()

    def again(asker: Asker, latency: float) -> None:
        found.append(latency)
        asker.begin(time.perf_counter())

    askers = [Asker(loop, sock, again, buffer) for sock in connections(port, count)]
    start = time.perf_counter()
    for asker in askers:
        asker.begin(time.perf_counter())
    while (now := time.perf_counter()) < start + seconds:
        loop.turn(start + seconds - now)
    return latencies(found, time.perf_counter() - start)


def paced(port: int, count: int, seconds: float, rate: float) -> Result:
    """Ask by the clock, whether answers come or not: latency counts from when it was due."""
    loop, buffer, found = Loop(), bytearray(READ), list[float]()
    idle: list[Asker] = []

    def rest(asker: Asker, latency: float) -> None:
        found.append(latency)
        idle.append(asker)

    idle += [Asker(loop, sock, rest, buffer) for sock in connections(port, count)]
    start = time.perf_counter()
    total, begun = int(rate * seconds), 0
    while len(found) < total and time.perf_counter() < start + seconds + PATIENCE:
        due = start + begun / rate
        while begun < total and idle and due <= time.perf_counter():
            idle.pop(0).begin(due)
            begun += 1
            due = start + begun / rate
        wait = due - time.perf_counter() if idle and begun < total else 1.0
        # The kernel's timers are coarse: poll through the last millisecond.
        loop.turn(max(wait - 0.001, 0))
    result = latencies(found, time.perf_counter() - start)
    result["failed"] = total - len(found)
    return result


class Churn:
    """Opens a connection, asks once, closes, and begins again."""

    def __init__(self, port: int) -> None:
        self.loop, self.buffer = Loop(), bytearray(READ)
        self.found: list[float] = []
        self.failed = 0
        self._port = port

    def begin(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        started = time.perf_counter()
        sock.connect_ex(("127.0.0.1", self._port))
        self.loop.watch(sock, lambda: self._connected(sock, started), write=True)

    def _connected(self, sock: socket.socket, started: float) -> None:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._over(sock, None)
            return
        left = len(ANSWER)

        def readable() -> None:
            nonlocal left
            try:
                got = sock.recv_into(self.buffer)
            except OSError:
                got = 0
            left -= got
            if not left:
                self._over(sock, time.perf_counter() - started)
            elif not got:
                self._over(sock, None)

        self.loop.watch(sock, readable)
        sock.send(REQUEST)

    def _over(self, sock: socket.socket, latency: float | None) -> None:
        self.loop.forget(sock)
        if latency is None:
            self.failed += 1
        else:
            self.found.append(latency)
        self.begin()


def churn(port: int, count: int, seconds: float) -> Result:
    """Open new connections all the time, `count` of them under way at once."""
    load, start = Churn(port), time.perf_counter()
    for _ in range(count):
        load.begin()
    while (now := time.perf_counter()) < start + seconds:
        load.loop.turn(start + seconds - now)
    return {**latencies(load.found, time.perf_counter() - start), "failed": load.failed}


def bulk(port: int, count: int, seconds: float, *, up: bool) -> Result:
    """Send or receive as much as will go, on each of `count` connections."""
    loop, buffer, moved = Loop(), bytearray(READ), 0
    for _ in range(count):
        sock = connect(port)
        sock.sendall(b"U" if up else b"D")
        sock.setblocking(False)

        def send(sock: socket.socket = sock) -> None:
            nonlocal moved
            moved += sock.send(BLOCK)

        def receive(sock: socket.socket = sock) -> None:
            nonlocal moved
            moved += sock.recv_into(buffer)

        loop.watch(sock, send if up else receive, write=up)
    start = time.perf_counter()
    warm = start + seconds / 5
    while (now := time.perf_counter()) < warm:
        loop.turn(warm - now)
    start, moved = now, 0
    while (now := time.perf_counter()) < start + seconds:
        loop.turn(start + seconds - now)
    return {"rate": moved / (time.perf_counter() - start), "count": moved}


def idle(port: int, count: int) -> Result:
    """Hold connections, each of which was used once, until the standard input ends."""
    opened = connections(port, count)
    print(json.dumps({"count": len(opened)}), flush=True)
    sys.stdin.read()
    return {"count": len(opened)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = ["serve", "requests", "paced", "churn", "up", "down", "idle"]
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=2000.0)
    given = parser.parse_args()
    port, count, seconds = given.port, given.connections, given.seconds
    match given.kind:
        case "serve":
            serve()
        case "requests":
            print(json.dumps(requests(port, count, seconds)))
        case "paced":
            print(json.dumps(paced(port, count, seconds, given.rate)))
        case "churn":
            print(json.dumps(churn(port, count, seconds)))
        case "idle":
            idle(port, count)
        case kind:
            print(json.dumps(bulk(port, count, seconds, up=kind == "up")))


if __name__ == "__main__":
    main()
