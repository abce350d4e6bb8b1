"""The conversation on one DeltaSecrets stream, without the stream (Envoy: incremental xDS).

Subscriptions are added and taken away one by one, and each secret has a version of its own, so a
client that reconnects says what it still has and is sent only the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.resources import Resource
from agent.sds_state import Available, Meaning, check_stream

WILDCARD = "*"
"""xDS: the name that stands for everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaAsk:
    """What a DeltaDiscoveryRequest says, as far as it matters here.

    `initial_versions` is what the client still has of an earlier stream; only the first request of
    a stream may tell. `error` is its complaint about the response with `nonce`, or None.
    """

    node_id: str
    type_url: str
    subscribe: Sequence[str]
    unsubscribe: Sequence[str]
    initial_versions: Mapping[str, str]
    nonce: str
    error: str | None = None


class DeltaState:
    """What one stream is subscribed to and has been sent."""

    def __init__(self, type_url: str) -> None:
        self._type_url = type_url
        self._begun = False
        self._everything = False
        self._names: dict[str, None] = {}
        self._sent: dict[str, str] = {}
        self.node_id = ""

    @property
    def names(self) -> Sequence[str]:
        """The names that were asked for one by one."""
        return tuple(self._names)

    def take(self, ask: DeltaAsk, available: Available) -> Meaning:
        """Note a request and tell what it meant. Raises BadSubscription, which ends the stream."""
        self.node_id = self.node_id or ask.node_id
        check_stream(self._type_url, ask.type_url, self.node_id)
        added = [name for name in ask.subscribe if name != WILDCARD]
        for name in added:
            available.check(name)
        first, self._begun = not self._begun, True
        if first:
            known = {*added, *available.everything()}
            self._sent = {n: v for n, v in ask.initial_versions.items() if n in known}
            # xDS: naming nothing at first is the old way of asking for everything.
            self._everything = not ask.subscribe
        self._everything |= WILDCARD in ask.subscribe
        self._add(added, again=not first)
        self._remove(ask.unsubscribe)
        if ask.error is not None:
            return Meaning.NACK
        if ask.subscribe or first:
            return Meaning.SUBSCRIBE
        return Meaning.UNSUBSCRIBE if ask.unsubscribe else Meaning.ACK

    def due(self, available: Available) -> tuple[Resource, ...]:
        """Return what the client wants and does not have, of what there is."""
        everything = available.everything() if self._everything else ()
        return tuple(
            resource
            for name in dict.fromkeys((*everything, *self._names))
            if (resource := available.get(name)) and self._sent.get(name) != resource.version
        )

    def sending(self, resources: Sequence[Resource]) -> None:
        """Note a response, before it is sent."""
        self._sent.update({resource.name: resource.version for resource in resources})

    def _add(self, names: Sequence[str], *, again: bool) -> None:
        for name in names:
            self._names[name] = None
            if again:
                # xDS: who subscribes to what it had already has lost it, and gets it again.
                self._sent.pop(name, None)

    def _remove(self, names: Sequence[str]) -> None:
        for name in names:
            if name == WILDCARD:
                self._everything = False
            self._names.pop(name, None)
            self._sent.pop(name, None)
