"""Print what GET /orders is answered with: an HTTP status, or 000 for no answer, as curl would."""

from __future__ import annotations

import urllib.error
import urllib.request

URL = "http://orders:8080/orders"
TIMEOUT = 5.0


def ask() -> int:
    """Return the status; 0 for none."""
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


if __name__ == "__main__":
    print(f"{ask():03}")  # noqa: T201
