"""A small web app: takes orders and lists them, in plain HTTP. It knows nothing of any mesh."""

from __future__ import annotations

import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 8080
MAX_ORDER = 10_000

orders: list[Any] = []


class Orders(BaseHTTPRequestHandler):
    """GET /orders lists them, POST /orders takes one as JSON."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with all orders and who is asking."""
        if self.path == "/orders":
            self._answer(HTTPStatus.OK, {"orders": len(orders), "client": self.client_address[0]})
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": "there is only /orders"})

    def do_POST(self) -> None:
        """Take an order."""
        size = int(self.headers.get("Content-Length", "0"))
        if not 0 < size <= MAX_ORDER:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": "an order has 1 to 10000 bytes"})
            return
        orders.append(json.loads(self.rfile.read(size)))
        self._answer(HTTPStatus.CREATED, {"order": len(orders)})

    def _answer(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


if __name__ == "__main__":
    ThreadingHTTPServer(("", PORT), Orders).serve_forever()
