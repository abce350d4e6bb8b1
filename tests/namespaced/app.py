"""An app that knows nothing of any mesh, on all addresses of its pod: `python app.py PORT`.

A client's first line says what it wants: WHO, to be told the address that its connection came
from; SINK, to be told the size and SHA-256 of all it sends; ECHO, to get its bytes back.
"""

from __future__ import annotations

import hashlib
import socket
import socketserver
import sys


class App(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        try:
            self.answer(self.rfile.readline().strip())
        except ConnectionError:
            return

    def answer(self, wish: bytes) -> None:
        if wish == b"WHO":
            host = self.client_address[0].removeprefix("::ffff:")
            self.wfile.write(host.encode() + b"\n")
        elif wish == b"SINK":
            digest, size = hashlib.sha256(), 0
            while data := self.rfile.read1(65536):
                digest.update(data)
                size += len(data)
            self.wfile.write(f"{size} {digest.hexdigest()}\n".encode())
        elif wish == b"ECHO":
            while data := self.rfile.read1(65536):
                self.wfile.write(data)


class Server(socketserver.ThreadingTCPServer):
    address_family: int = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 4096


if __name__ == "__main__":
    with Server(("::", int(sys.argv[1])), App) as server:
        print("app ready", file=sys.stderr, flush=True)
        server.serve_forever()
