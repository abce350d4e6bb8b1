"""A client of app.py: `python dial.py HOST PORT WHAT [ARGUMENT]`, prints one line.

WHAT: `who`; `sink BYTES`; `say TEXT`, which sends the text to SINK; `many COUNT`, connections at
once; `hold`, which opens an ECHO connection and echoes once for every line of standard input.
Failures are printed as one word: refused, reset, timeout, unreachable, or ended.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

TIMEOUT = 20.0
AT_ONCE = 64


def connect() -> socket.socket:
    source = (os.environ["SOURCE"], 0) if "SOURCE" in os.environ else None
    return socket.create_connection((sys.argv[1], int(sys.argv[2])), TIMEOUT, source)


def read_all(connection: socket.socket) -> str:
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    return data.decode().strip() or "ended"


def who() -> str:
    with connect() as connection:
        connection.sendall(b"WHO\n")
        return read_all(connection)


def sink(payload: bytes) -> str:
    expected = f"{len(payload)} {hashlib.sha256(payload).hexdigest()}"
    with connect() as connection:
        connection.sendall(b"SINK\n" + payload)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    return "whole" if answer == expected else answer


def many(count: int) -> str:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda _: attempt(who), range(count)))
    return " ".join(f"{answer}:{answers.count(answer)}" for answer in sorted(set(answers)))


def hold() -> str:
    with connect() as connection:
        connection.sendall(b"ECHO\n")
        for line in sys.stdin:
            connection.sendall(line.encode())
            received = b""
            while not received.endswith(b"\n"):
                chunk = connection.recv(65536)
                if not chunk:
                    return "ended"
                received += chunk
            print(received.decode(), end="", flush=True)
    return "done"


def attempt(work: Callable[[], str]) -> str:
    try:
        return work()
    except ConnectionRefusedError:
        return "refused"
    except (ConnectionResetError, BrokenPipeError):
        return "reset"
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return "reset" if error.errno == errno.ENOTCONN else "unreachable"


WORK = {
    "who": who,
    "sink": lambda: sink(os.urandom(int(sys.argv[4]))),
    "say": lambda: sink(sys.argv[4].encode()),
    "many": lambda: many(int(sys.argv[4])),
    "hold": hold,
}

if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        print(attempt(WORK[sys.argv[3]]), flush=True)
