"""A node's registration entries, followed as their file changes, and a certificate for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from agent.ca_client import Credential
from agent.config import AgentConfig
from agent.readiness import Wanted
from agent.registration import RegistrationInvalid, Registrations, parse_registrations
from agent.rotation import Rotation
from agent.store import SecretStore
from agent.watch import signature, wait_change
from mesh.errors import ConfigError
from mesh.files import read_file
from mesh.log import get_logger
from mesh.spiffe import SpiffeId, TrustDomain

log = get_logger("agent.node")

MakeRotation = Callable[[SpiffeId, Credential], Rotation]
"""Makes what keeps one identity's certificate fresh."""


def read_registrations(path: Path, trust_domain: TrustDomain) -> Registrations:
    """Read the registration file. Raises ConfigError."""
    return parse_registrations(read_file(path, "registration file"), path, trust_domain)


@dataclass(slots=True, kw_only=True)
class _Running:
    """One identity whose certificate is kept fresh, and by which token."""

    credential: Credential
    rotation: Rotation
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Node:
    """The entries in force, and the rotations they need."""

    def __init__(
        self, config: AgentConfig, path: Path, store: SecretStore, make_rotation: MakeRotation
    ) -> None:
        """Read the file for the first time. Raises ConfigError."""
        self._config = config
        self._path = path
        self._store = store
        self._make_rotation = make_rotation
        self._signature = signature([path])
        self._registrations = read_registrations(path, config.trust_domain)
        self._running: dict[SpiffeId, _Running] = {}

    @property
    def registrations(self) -> Registrations:
        """The entries in force."""
        return self._registrations

    def wanted(self) -> list[Wanted]:
        """Return what each entry is to have, and why the last attempt did not bring it."""
        return [running.rotation.wanted for running in self._running.values()]

    def credential_of(self, identity: SpiffeId) -> Credential | None:
        """Return by what the CA is asked in the name of `identity`, None if nobody has it."""
        running = self._running.get(identity)
        return None if running is None else running.credential

    async def run(self) -> None:
        """Keep every identity's certificate fresh, and follow the file, until cancelled.

        A file that cannot be used changes nothing.
        """
        async with trio.open_nursery() as nursery:
            while True:
                self._apply(nursery)
                self._signature = await wait_change([self._path], self._signature)
                self._reload()

    def _reload(self) -> None:
        try:
            found = read_registrations(self._path, self._config.trust_domain)
        except ConfigError as error:
            _complain(error)
            return
        if found != self._registrations:
            self._registrations = found
            self._store.announce()

    def _apply(self, nursery: trio.Nursery) -> None:
        """Stop what is not wanted any more, and start what is new."""
        wanted = {
            entry.identity: self._credential(entry.identity, entry.token_file)
            for entry in self._registrations.entries
        }
        for identity, running in list(self._running.items()):
            if wanted.get(identity) != running.credential:
                running.scope.cancel()
                del self._running[identity]
        for identity in set(self._store.holdings.svids) - set(wanted):
            self._store.drop(identity)
        for identity, credential in wanted.items():
            if identity not in self._running:
                rotation = self._make_rotation(identity, credential)
                running = self._running[identity] = _Running(
                    credential=credential, rotation=rotation
                )
                nursery.start_soon(_keep, running)
        log.info("registration entries in force", entries=len(self._registrations.entries))

    def _credential(self, identity: SpiffeId, token_file: Path | None) -> Credential:
        if token_file is not None:
            return Credential(token_file=token_file)
        return Credential(token_file=self._config.token_file, acting_for=identity)


async def _keep(running: _Running) -> None:
    with running.scope:
        await running.rotation.run()


def _complain(error: ConfigError) -> None:
    log.error(
        "registration file not taken over; the entries before it stay in force",
        reason=RegistrationInvalid.reason,
        error=str(error),
    )
