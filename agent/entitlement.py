"""Who is calling, and what may that caller have? Asked once per call, and again when it changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from agent.caller import selectors_of
from agent.errors import AttestationFailed, NoIdentity
from agent.grants import NOTHING, Grant, Grants, grants_of
from agent.process import Process
from agent.registration import Registrations
from mesh.grpc import GrpcError, Peer, Status
from mesh.log import get_logger
from mesh.spiffe import SpiffeId

log = get_logger("agent.attest")


class Session(Protocol):
    """One call's caller."""

    async def grants(self) -> Grants | None:
        """Return what the caller may have now, None while that is not known yet.

        Raises AttestationFailed, or NoIdentity for a caller that nothing is for.
        """
        ...


OpenSession = Callable[[Peer], Session]
"""Begins to serve a caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestedPeer(Peer):
    """A caller of a node's agent, with hold of its process."""

    process: Process


@dataclass(frozen=True, slots=True)
class SingleIdentity:
    """Every caller that was let in is the one workload; `identity` is None until it is known."""

    identity: Callable[[], SpiffeId | None]

    def __call__(self, _peer: Peer) -> SingleIdentity:
        """Begin to serve a caller: they are all alike."""
        return self

    async def grants(self) -> Grants | None:
        """Return the one identity, with every trust domain that there is a bundle of."""
        await trio.lowlevel.checkpoint()
        identity = self.identity()
        if identity is None:
            return None
        return Grants((Grant(identity=identity, federates_with=None),))


@dataclass(frozen=True, slots=True)
class NodeDoor:
    """Callers are attested, and get what the registration entries have for them."""

    registrations: Callable[[], Registrations]

    def __call__(self, peer: Peer) -> Session:
        """Begin to serve a caller."""
        if not isinstance(peer, AttestedPeer):
            raise TypeError("a node's agent serves attested callers only")
        return _Attested(peer.process, self.registrations)


class _Attested:
    """A caller looked at when it calls, and anew whenever the entries change."""

    def __init__(self, process: Process, registrations: Callable[[], Registrations]) -> None:
        self._process = process
        self._registrations = registrations
        self._by: Registrations | None = None
        self._grants = NOTHING

    async def grants(self) -> Grants:
        await trio.lowlevel.checkpoint()
        registrations = self._registrations()
        if registrations is not self._by:
            self._grants = await self._attest(registrations)
            self._by = registrations
        if not self._grants.all:
            raise NoIdentity(
                f"no registration entry is for process {self._process.credentials.pid}"
            )
        return self._grants

    async def _attest(self, registrations: Registrations) -> Grants:
        facts = await self._process.facts(registrations.kinds)
        selectors = selectors_of(facts)
        grants = grants_of(registrations.entries_of(selectors))
        log.info(
            "caller attested" if grants.all else "caller unknown",
            pid=facts.pid,
            uid=facts.uid,
            identities=[str(identity) for identity in grants.identities],
            selectors=sorted(str(selector) for selector in selectors),
        )
        return grants


def refusal(error: AttestationFailed | NoIdentity) -> GrpcError:
    """Return the status that the Workload API has for it (SPIRE's words); why is for the log."""
    log.warning("caller refused", reason=error.reason, error=str(error))
    if isinstance(error, NoIdentity):
        return GrpcError(Status.PERMISSION_DENIED, "no identity issued")
    return GrpcError(Status.UNAVAILABLE, "workload attestation failed")
