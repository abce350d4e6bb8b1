"""A client of the orders app: places an order every second, in plain HTTP, and says how it went."""

from __future__ import annotations

import itertools
import json
import time
import urllib.error
import urllib.request

URL = "http://orders:8080/orders"
PAUSE = 1.0
TIMEOUT = 5.0


def place(number: int) -> str:
    """Place one order; return what came of it."""
    order = json.dumps({"item": "tea", "number": number}).encode()
    request = urllib.request.Request(URL, order, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            return f"accepted as {json.load(answer)['order']}"
    except (OSError, urllib.error.URLError) as error:
        return f"failed: {error}"


if __name__ == "__main__":
    for number in itertools.count(1):
        print(f"order {number}: {place(number)}", flush=True)  # noqa: T201
        time.sleep(PAUSE)
