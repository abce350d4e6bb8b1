"""The conversation about one type on one discovery stream, without the stream.

Incremental xDS: the client subscribes, acknowledges each response by its nonce, and is sent what
differs from what it has. Only one response at a time is on its way: while it is not acknowledged,
changes are gathered by name, so that a slow client costs names, never a queue, and in the end gets
the newest state.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from ca.discovery.errors import SubscriptionRefused
from ca.discovery.held import SERVICE_ENTRY, Held, kind_name
from ca.discovery.viewer import Viewer
from ca.discovery.world import World
from mesh.discovery.types import EVERYTHING

MAX_NAMES = 10_000
"""Names that one stream may subscribe to per type. A proxy that calls more than that many hosts
should ask for everything."""

MAX_REPORTED = 100_000
"""Resources that a reconnecting client may say it has; ten times a large mesh."""

MAX_COMPLAINT = 4000
"""Characters kept of a client's NACK."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a DeltaDiscoveryRequest says about its type; `error` is the complaint of a NACK."""

    subscribe: Sequence[str] = ()
    unsubscribe: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    nonce: str = ""
    error: str | None = None


class Meaning(enum.Enum):
    """What the nonce of a request turned out to be about."""

    NEW = "subscribed"
    ACK = "acknowledged"
    NACK = "refused by the client"
    STALE = "about no response that is on its way"
    NONE = "about no response"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """A response that is due: what is new or changed, and what is gone."""

    resources: tuple[Held, ...]
    removed: tuple[str, ...]


@dataclass(slots=True)
class Status:
    """What is known of a client's state for one type; None and empty before the first response."""

    sent_version: str = ""
    sent_nonce: str = ""
    sent_at: datetime | None = None
    acked_version: str = ""
    nacked_at: datetime | None = None
    nacked_version: str = ""
    complaint: str = ""


class Subscription:
    """One type on one stream. It begins unasked, and then follows the client's requests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked = False
        self.names: set[str] = set()
        self.wildcard = False
        self.sent: dict[str, str] = {}
        self.on_its_way = ""
        self.status = Status()
        self._dirty: set[str] = set()
        self._everything = False
        self._answer = False

    def take(self, ask: Ask, now: datetime) -> Meaning:
        """Note a request. Raises SubscriptionRefused, which ends the stream."""
        if not self.asked:
            return self._begin(ask)
        meaning = self._acknowledge(ask, now)
        self._change(ask)
        return meaning

    def touch(self, name: str) -> None:
        """Note that a resource may have changed for this client."""
        if self.asked and not self._everything:
            self._dirty.add(name)

    def touch_everything(self) -> None:
        """Note that anything may have changed for this client."""
        self._everything = self.asked
        self._dirty.clear()

    def has(self, name: str) -> bool:
        """Tell whether the client was sent a resource and has not been told that it is gone."""
        return name in self.sent

    @property
    def pending(self) -> bool:
        """Whether something may be due, now or after the next acknowledgement."""
        return bool(self._dirty) or self._everything or self._answer

    @property
    def waits(self) -> bool:
        """Whether something may be due, once the client has acknowledged what is on its way."""
        return bool(self.on_its_way) and self.pending

    def only_loses(self, world: World, viewer: Viewer) -> bool:
        """Tell whether what is due takes resources away, and brings none."""
        if not self.sent or not (self._dirty or self._everything):
            return False
        changed, gone = self._difference(world, viewer)
        return bool(gone) and not changed

    def due(self, world: World, viewer: Viewer) -> Sending | None:
        """Return what must be sent now, and take it as looked at; `sending` must follow.

        A subscription is always answered, if only by an empty response: so the client knows that
        it has everything.
        """
        if self.on_its_way or not self.pending:
            return None
        changed, gone = self._difference(world, viewer)
        answer, self._answer = self._answer, False
        self._dirty.clear()
        self._everything = False
        if not (changed or gone or answer):
            return None
        return Sending(
            resources=tuple(sorted(changed, key=lambda held: held.name)),
            removed=tuple(sorted(gone)),
        )

    def sending(self, sending: Sending, *, version: str, nonce: str, now: datetime) -> None:
        """Note a response. Call it before sending: the answer may overtake the end of the send."""
        self.on_its_way = nonce
        for name in sending.removed:
            self.sent.pop(name, None)
        self.sent.update({held.name: held.version for held in sending.resources})
        self.status.sent_version, self.status.sent_nonce = version, nonce
        self.status.sent_at = now

    def _begin(self, ask: Ask) -> Meaning:
        """Take the first request of a type. xDS: no names at all mean everything."""
        if len(ask.versions) > MAX_REPORTED:
            raise SubscriptionRefused(
                f"{len(ask.versions)} versions of {kind_name(self.url)} are reported, more than "
                f"{MAX_REPORTED}"
            )
        self.asked = True
        self._subscribe(ask.subscribe)
        self.wildcard = EVERYTHING in ask.subscribe or not ask.subscribe
        self.sent = dict(ask.versions)
        self._answer = True
        self.touch_everything()
        return Meaning.NEW

    def _acknowledge(self, ask: Ask, now: datetime) -> Meaning:
        if not ask.nonce:
            return Meaning.NONE
        if ask.nonce != self.on_its_way:
            return Meaning.STALE
        self.on_its_way = ""
        if ask.error is None:
            self.status.acked_version = self.status.sent_version
            self.status.complaint = ""
            return Meaning.ACK
        self.status.nacked_at, self.status.nacked_version = now, self.status.sent_version
        self.status.complaint = ask.error[:MAX_COMPLAINT]
        return Meaning.NACK

    def _change(self, ask: Ask) -> None:
        if not ask.subscribe and not ask.unsubscribe:
            return
        for name in ask.unsubscribe:
            self.names.discard(name)
            if not self._by_host:
                self.sent.pop(name, None)  # xDS: the client forgets it by itself.
        if EVERYTHING in ask.unsubscribe:
            self.wildcard = False
        self._subscribe(ask.subscribe)
        for name in ask.subscribe:
            self.sent.pop(name, None)  # xDS: asking again means to be sent it again.
        self.wildcard |= EVERYTHING in ask.subscribe
        self._answer |= bool(ask.subscribe)
        self.touch_everything()

    def _subscribe(self, names: Iterable[str]) -> None:
        self.names |= {name for name in names if name != EVERYTHING}
        if len(self.names) > MAX_NAMES:
            raise SubscriptionRefused(
                f"{len(self.names)} names of {kind_name(self.url)} are subscribed to, more than "
                f"{MAX_NAMES}: subscribe to {EVERYTHING!r}"
            )

    @property
    def _by_host(self) -> bool:
        """Whether names are those of hosts, which are looked at as part of the viewer."""
        return self.url == SERVICE_ENTRY

    def _wants(self, name: str) -> bool:
        return self.wildcard or self._by_host or name in self.names

    def _difference(self, world: World, viewer: Viewer) -> tuple[list[Held], list[str]]:
        if not self._everything:
            return self._difference_of(self._dirty, world, viewer)
        wanted = {
            name: held
            for name, held in world.everything_for(viewer, self.url).items()
            if self._wants(name)
        }
        changed = [held for name, held in wanted.items() if self.sent.get(name) != held.version]
        gone = [name for name in self.sent if name not in wanted]
        if self._answer and not self.wildcard and not self._by_host:
            # xDS: whoever asks by name for what is not there is told so.
            gone += [name for name in self.names if name not in wanted and name not in self.sent]
        return changed, gone

    def _difference_of(
        self, names: Iterable[str], world: World, viewer: Viewer
    ) -> tuple[list[Held], list[str]]:
        changed: list[Held] = []
        gone: list[str] = []
        for name in names:
            held = world.get(self.url, name)
            if held is not None and self._wants(name) and world.concerns(viewer, held):
                if self.sent.get(name) != held.version:
                    changed.append(held)
            elif name in self.sent:
                gone.append(name)
        return changed, gone
