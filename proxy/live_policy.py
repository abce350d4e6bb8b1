"""The policies in force, and the open connections they are held against.

Why no change can fall between a connection's check and its use: everything here happens in one
step of one thread. A connection is registered before anything is asked about it. Whatever it
learns is judged, by the view of that moment, in the same step in which it becomes known. A new
view judges every registered connection, by what is known of each, in the same step in which it
comes into force. So at any moment each registered connection has been judged by the view in force.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import trio

from mesh.address import Address
from mesh.log import get_logger
from mesh.policy.decision import Decision
from mesh.spiffe import SpiffeId
from proxy.admission import Known, decide, refusal
from proxy.errors import ConnectionFailed
from proxy.metrics import Decisions
from proxy.policy_errors import PolicyChanged
from proxy.report import Transport
from proxy.route import Route
from proxy.view import View

log = get_logger("proxy.policy")


class Tracked:
    """A registered connection."""

    def __init__(self, policy: LivePolicy, known: Known) -> None:
        self._policy = policy
        self._known = known
        self.scope = trio.CancelScope()
        self.denial: ConnectionFailed | None = None

    @property
    def view(self) -> View:
        """The view in force at this moment: do not keep it over an await."""
        return self._policy.view

    def check(self) -> None:
        """Judge the connection by what is known of it. Raises the refusal."""
        if denial := refusal(self.view, self._known):
            raise denial

    def began(self, transport: Transport, sni: str | None = None) -> None:
        """Take note of what the connection begins with. Raises the refusal if that is too much.

        Whoever does no mutual TLS will never prove an identity, so that is judged at once.
        """
        self._known.transport, self._known.sni = transport, sni
        if transport is Transport.MTLS:
            self.check()
        else:
            self._identified(None)

    def proved(self, peer_id: SpiffeId | None) -> None:
        """Take note of who the peer is. Raises the refusal."""
        self._identified(peer_id)

    def _identified(self, peer_id: SpiffeId | None) -> None:
        self._known.peer_id, self._known.identified = peer_id, True
        decision = decide(self.view, self._known)
        self._policy.decisions.count(decision)
        self.check()
        _log_side_effects(decision, self._known)

    def judge_again(self, view: View) -> bool:
        """Close the connection if a new view denies it; tell whether it does."""
        denial = refusal(view, self._known)
        if denial is not None:
            self.denial = PolicyChanged(denial)
            self._policy.decisions.count_closed()
            self.scope.cancel()
        return denial is not None


class LivePolicy:
    """Holds the view in force."""

    def __init__(self, view: View | None = None) -> None:
        self.decisions = Decisions()
        self._view = view
        self._there = trio.Event()
        self._open: set[Tracked] = set()

    @property
    def view(self) -> View:
        """The view in force. There is one before any port is opened."""
        if self._view is None:
            raise RuntimeError("no port may be open before there is a view")
        return self._view

    def route(self, destination: Address, subset: str = "", *, named: bool = False) -> Route:
        """Return the way to a destination as the view in force has it, see Router.route."""
        return self.view.route(destination, subset, named=named)

    @property
    def is_there(self) -> bool:
        """Whether there is a view yet."""
        return self._view is not None

    @property
    def count(self) -> int:
        """How many connections are registered."""
        return len(self._open)

    async def ready(self) -> None:
        """Wait for the first view."""
        if self._view is None:
            await self._there.wait()

    def publish(self, view: View) -> None:
        """Put a view into force, and close the open connections that it denies."""
        self._view = view
        self._there.set()
        closed = sum([tracked.judge_again(view) for tracked in self._open])
        if closed:
            log.info("a change of policy closed connections", closed=closed, open=len(self._open))

    @contextmanager
    def admit(self, known: Known) -> Generator[Tracked]:
        """Register a connection for the block, which a denying change of policy ends.

        Raises what the block raises, and PolicyChanged or another refusal.
        """
        tracked = Tracked(self, known)
        self._open.add(tracked)
        try:
            with tracked.scope:
                tracked.check()
                yield tracked
        finally:
            self._open.discard(tracked)
        if tracked.scope.cancelled_caught and tracked.denial is not None:
            raise tracked.denial


def _log_side_effects(decision: Decision, known: Known) -> None:
    """Log what AUDIT policies ask to be logged, and what dry-run ones would have decided."""
    peer = str(known.peer_id) if known.peer_id else known.peer
    if decision.audited:
        rules = [rule.id for rule in decision.audited]
        log.info("connection audited", peer=peer, port=known.port, rules=rules)
    for shadow in decision.shadows:
        prefix = f"istio_dry_run_{shadow.action}_shadow"
        named = {f"{prefix}_engine_result": shadow.result}
        if shadow.policy_id:
            named[f"{prefix}_effective_policy_id"] = shadow.policy_id
        log.info("dry run of a policy", peer=peer, port=known.port, **named)
