"""TCP addresses as flags write them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mesh.errors import ConfigError

_PORT = re.compile("[0-9]{1,5}")

MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address or host name, and a port (0, where one listens: any free one)."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `HOST:PORT` or `[V6]:PORT`. Raises ConfigError."""
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        bare = host[1:-1] if bracketed else host
        if not colon or not bare or (":" in bare) != bracketed:
            raise ConfigError(f"{text!r} is not an address: write HOST:PORT, or [V6]:PORT")
        if not _PORT.fullmatch(port) or int(port) > MAX_PORT:
            raise ConfigError(f"{text!r} has no port between 0 and {MAX_PORT} after the last colon")
        check_host(bare, text)
        return cls(bare, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def check_host(host: str, where: str) -> None:
    """Refuse a name that no name service could be asked for. Raises ConfigError about `where`."""
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ConfigError(
            f"{where!r} has no valid host name: {error.__cause__ or error}"
        ) from error
