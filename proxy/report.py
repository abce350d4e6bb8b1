"""One log line for each connection, when it is over: what it was, or why it was not.

Here is also where every connection ends, so that none can end without its line.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from mesh.log import get_logger
from mesh.spiffe import SpiffeId
from proxy.errors import ConnectionFailed, InternalError, PeerClosed, ProxyStopped, RelayBroken
from proxy.relay import Relayed
from proxy.socket_options import reset, wait_delivered

log = get_logger("proxy")


class Direction(enum.StrEnum):
    """Which side of the app a connection is on."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class Transport(enum.StrEnum):
    """What protects a connection between the proxies."""

    MTLS = "mtls"
    TLS = "tls"
    """TLS of ours to a server that is no mesh peer."""
    PASSTHROUGH = "passthrough"
    """TLS that belongs to the app, untouched."""
    PLAINTEXT = "plaintext"


@dataclass(slots=True, kw_only=True)
class Connection:
    """What is known of one connection so far; each step adds what it learns."""

    direction: Direction
    listener: str
    source: str
    """Who connected to us: the peer (inbound) or the app (outbound)."""
    target: str
    """Where it goes to: the app (inbound) or the destination (outbound)."""
    started: float = field(default_factory=trio.current_time)
    endpoint: str | None = None
    """The endpoint that was chosen for a destination, the last one that was tried."""
    transport: Transport | None = None
    own_id: SpiffeId | None = None
    peer_id: SpiffeId | None = None

    def facts(self) -> dict[str, str | float]:
        """Return what is known as keys for a log line, leaving out what is not."""
        known: dict[str, str | float | None] = {
            "direction": self.direction.value,
            "listener": self.listener,
            "source": self.source,
            "target": self.target,
            "endpoint": self.endpoint if self.endpoint != self.target else None,
            "transport": self.transport.value if self.transport else None,
            "own_id": str(self.own_id) if self.own_id else None,
            "peer_id": str(self.peer_id) if self.peer_id else None,
            "seconds": round(trio.current_time() - self.started, 3),
        }
        return {key: value for key, value in known.items() if value is not None}


async def see_through(
    connection: Connection, stream: trio.SocketStream, work: Callable[[], Awaitable[Relayed]]
) -> None:
    """Run `work`, log how it ended, and close `stream`, which the connection came in by.

    Whoever is refused gets a reset, never a FIN that looks like an empty answer. An exception that
    nobody foresaw ends this connection and no other: a peer may have provoked it.
    """
    try:
        report_relayed(connection, await work())
    except ConnectionFailed as failure:
        report_failed(connection, failure)
        await wait_delivered(stream)
    except trio.Cancelled:
        report_failed(connection, ProxyStopped())
        raise
    except Exception:
        bug, facts = InternalError(), connection.facts()
        log.exception("connection failed", reason=bug.reason, detail=str(bug), **facts)
    finally:
        reset(stream)


def report_failed(connection: Connection, failure: ConnectionFailed) -> None:
    """Log that a connection was refused or could not be made."""
    everyday = isinstance(failure, PeerClosed) and connection.direction is Direction.INBOUND
    _log_failure("connection failed", connection.facts(), failure, everyday=everyday)


def report_relayed(connection: Connection, relayed: Relayed) -> None:
    """Log that an established connection is over, cleanly or not."""
    facts = {**connection.facts(), "sent": relayed.sent, "received": relayed.received}
    if relayed.failure is None:
        log.info("connection closed", **facts)
    else:
        everyday = isinstance(relayed.failure, RelayBroken)
        _log_failure("connection cut", facts, relayed.failure, everyday=everyday)


def _log_failure(
    event: str, facts: dict[str, str | float], failure: ConnectionFailed, *, everyday: bool
) -> None:
    # Resets and health checks happen all day; a warning is for what needs somebody's hand.
    write = log.info if everyday else log.warning
    write(event, reason=failure.reason, detail=str(failure), **failure.facts, **facts)
