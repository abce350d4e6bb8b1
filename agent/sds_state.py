"""The conversation on one StreamSecrets stream, without the stream.

Envoy asks for names and acknowledges each response by asking again with its nonce; a new version
of a subscribed name is pushed unasked. Versions that clients send are never compared: what
matters is what this stream was sent last. Rules and their order are Istio's (pilot/pkg/xds
shouldRespond).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.errors import BadSubscription
from agent.resources import Resource


class Available(Protocol):
    """What a caller may have, and what of it there is."""

    def everything(self) -> Sequence[str]:
        """Return the names that a subscription without names stands for."""
        ...

    def check(self, name: str) -> None:
        """Raise BadSubscription for a name that the caller cannot have, now or later."""
        ...

    def get(self, name: str) -> Resource | None:
        """Return a secret as it is now, None if it is not there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a DiscoveryRequest says, as far as it matters here.

    `error` is the client's complaint about the response with `nonce`, or None.
    """

    node_id: str
    type_url: str
    names: Sequence[str]
    nonce: str
    error: str | None = None


class Meaning(enum.Enum):
    """What a request turned out to be."""

    NACK = "refused by the client"
    UNSUBSCRIBE = "unsubscribed"
    SUBSCRIBE = "subscribed"
    STALE = "stale"
    ACK = "acknowledged"


class StreamState:
    """What one stream is subscribed to and has been sent."""

    def __init__(self, type_url: str) -> None:
        self._type_url = type_url
        self._names: tuple[str, ...] | None = None
        self._everything = False
        self._sent: dict[str, str] = {}
        self._nonce = ""
        self.node_id = ""

    @property
    def names(self) -> Sequence[str]:
        """The names that were asked for one by one."""
        return self._names or ()

    def take(self, ask: Ask, available: Available) -> Meaning:
        """Note a request and tell what it meant. Raises BadSubscription, which ends the stream."""
        self.node_id = self.node_id or ask.node_id
        check_stream(self._type_url, ask.type_url, self.node_id)
        for name in ask.names:
            available.check(name)
        if ask.error is not None:
            return Meaning.NACK
        if not ask.names and ask.nonce and not self._everything:
            self._names = None
            self._sent.clear()
            return Meaning.UNSUBSCRIBE
        if not ask.nonce or self._names is None:
            self._sent.clear()
            self._subscribe(ask.names)
            return Meaning.SUBSCRIBE
        if ask.nonce != self._nonce:
            return Meaning.STALE
        self._subscribe(ask.names)
        return Meaning.ACK

    def due(self, available: Available) -> tuple[Resource, ...]:
        """Return what the client wants and does not have, of what there is.

        Nothing may be due although something was asked for: the answer waits until it is there.
        """
        names = available.everything() if self._everything else self._names
        return tuple(
            resource
            for name in names or ()
            if (resource := available.get(name)) and self._sent.get(name) != resource.version
        )

    def sending(self, resources: Sequence[Resource], nonce: str) -> None:
        """Note a response. Call it before sending: the answer may overtake the end of the send."""
        self._nonce = nonce
        self._sent.update({resource.name: resource.version for resource in resources})

    def _subscribe(self, names: Sequence[str]) -> None:
        """Replace the subscription; no names from the start means everything (SPIRE)."""
        self._everything = not names
        self._names = tuple(dict.fromkeys(names))
        if names:
            self._sent = {name: sent for name, sent in self._sent.items() if name in self._names}


def check_stream(expected_type: str, type_url: str, node_id: str) -> None:
    """Raise BadSubscription unless a request fits a stream of secrets."""
    if not node_id:
        raise BadSubscription("the first request of a secret stream must carry node.id")
    if type_url not in {"", expected_type}:
        raise BadSubscription(
            f"{type_url[:120]!r} was asked for, but this stream carries {expected_type}"
        )
