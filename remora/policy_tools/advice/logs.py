"""Advice from the logs of proxies: who still speaks plaintext, and to whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from msgspec import DecodeError, Struct, ValidationError, json

from remora.policy_tools.advice.message import Advice, Code, advice

MAX_PAIRS = 10_000
"""Different callers and listeners that are counted: beyond that, a list helps nobody."""

MAX_LINE = 64 * 1024
"""Characters of one log line that is looked at; the proxy's own have a few hundred."""

PLAINTEXT_ON_STRICT = "plaintext_on_strict"
"""The proxy's reason for refusing plaintext."""


class _Line(Struct, frozen=True):
    """What matters of a proxy's log line about a connection."""

    event: str = ""
    reason: str = ""
    direction: str = ""
    transport: str = ""
    source: str = ""
    listener: str = ""
    own_id: str = ""


_DECODER = json.Decoder(_Line)


@dataclass(frozen=True, slots=True, order=True)
class Pair:
    """A listener of a proxy, and the address of who called it."""

    server: str
    caller: str


@dataclass(slots=True)
class Seen:
    """Plaintext that was seen: how often, from whom, to whom."""

    refused: Counter[Pair]
    accepted: Counter[Pair]
    unreadable: int = 0


def read_log(lines: Iterable[str]) -> Seen:
    """Count the plaintext connections in a proxy's JSON log; other lines are passed over."""
    seen = Seen(Counter(), Counter())
    for line in lines:
        if not line.strip():
            continue
        try:
            entry = _DECODER.decode(line[:MAX_LINE])
        except (DecodeError, ValidationError):
            seen.unreadable += 1
            continue
        if entry.direction == "inbound":
            _count(entry, seen)
    return seen


def _count(entry: _Line, seen: Seen) -> None:
    # A refused connection may have no identity yet; the listener is always known.
    server = f"{entry.own_id} at {entry.listener}" if entry.own_id else entry.listener
    pair = Pair(server, entry.source.rpartition(":")[0].strip("[]") or entry.source)
    if entry.reason == PLAINTEXT_ON_STRICT:
        counter = seen.refused
    elif entry.transport == "plaintext":
        counter = seen.accepted
    else:
        return
    if pair in counter or len(counter) < MAX_PAIRS:
        counter[pair] += 1


def log_advice(seen: Seen, names: dict[str, str]) -> Iterator[Advice]:
    """Yield a message for each caller and listener; `names` are workloads by their address."""
    for pair, count in sorted(seen.refused.items()):
        text = (
            f"refused plaintext from {_named(pair.caller, names)}, {_times(count)}: give that "
            "caller a proxy, or set the port PERMISSIVE until it has one"
        )
        yield advice(Code.PLAINTEXT_REFUSED, pair.server, text)
    for pair, count in sorted(seen.accepted.items()):
        text = (
            f"took plaintext from {_named(pair.caller, names)}, {_times(count)}: STRICT would "
            "refuse it"
        )
        yield advice(Code.PLAINTEXT_ACCEPTED, pair.server, text)


def _named(address: str, names: dict[str, str]) -> str:
    return f"{address} ({names[address]})" if address in names else address


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
