"""The policies of one workload, compiled: what its proxy asks for each connection.

A view never changes. A change of configuration makes a new one, of which every part whose input
is the same is taken over from the last; a policy that did not change is not compiled again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from mesh.address import Address
from mesh.discovery.node import GROUP_ANNOTATION
from mesh.policy.authorization import Authorization, providers_of
from mesh.policy.destination import Client
from mesh.policy.peer_authentication import EffectiveModes, PeerAuthentications
from mesh.policy.rules import CompiledPolicy, compile_policy
from mesh.policy.selection import Workload, applicable
from mesh.policy.trust_domains import TrustDomains
from mesh.resources.checks import go_duration
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.networking import WorkloadEntry
from mesh.resources.security import AuthorizationPolicy
from proxy.mode import MtlsMode
from proxy.received import Received
from proxy.route import Blocked, OutboundBlocked, Route
from proxy.router import Router

DENYING = frozenset(
    {"AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication", "MeshConfig"}
)
"""Kinds that may deny: while one of them is not understood, nobody is let in."""


DEFAULTS = MeshConfig()
"""Istio's settings where nobody has set any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMode:
    """The mode of one port; `decided_by` is the PeerAuthentication, empty for flag or default."""

    mode: MtlsMode
    decided_by: str = ""


class Modes(Protocol):
    """Knows the mode of every port of the workload."""

    def of_port(self, port: int, /) -> PortMode:
        """Return the mode of a WORKLOAD port."""
        ...


@dataclass(frozen=True, slots=True)
class FixedMode:
    """The mode that the operator gave as a flag."""

    mode: MtlsMode

    def of_port(self, _port: int, /) -> PortMode:
        """Return the mode, whatever the port."""
        return PortMode(mode=self.mode)


@dataclass(frozen=True, slots=True)
class PolicyModes:
    """Modes that PeerAuthentications decide."""

    modes: EffectiveModes

    def of_port(self, port: int, /) -> PortMode:
        """Return the mode of a WORKLOAD port, and who decided it."""
        found = self.modes.of_port(port)
        by = "" if found.decided_by is None else found.decided_by.key
        return PortMode(mode=MtlsMode(found.mode), decided_by=by)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that is decided for one workload at one moment.

    `trust_domains` are those that clients may be of; None leaves it to the proxy's own identity
    and its flags. `unread` names policies that are not understood: then everybody is denied.
    """

    modes: Modes
    authorization: Authorization
    trust_domains: TrustDomains | None = None
    unread: tuple[str, ...] = ()
    config: MeshConfig = DEFAULTS
    version: str = ""
    router: Router | None = None

    @property
    def mesh_config(self) -> MeshConfig | None:
        """The mesh settings that were received, None where there is no control plane."""
        return None if self.trust_domains is None else self.config

    def route(self, destination: Address, subset: str = "", *, named: bool = False) -> Route:
        """Return the way to a destination, see Router.route. Without a registry there is none."""
        if self.router is None:
            return Blocked(kind=OutboundBlocked, why=f"no registry says how to reach {destination}")
        return self.router.route(destination, subset, named=named)

    @property
    def detect_timeout(self) -> float | None:
        """Seconds to wait for a client's first bytes, None if the mesh settings do not say.

        Istio: 0 waits for ever.
        """
        written = self.config.protocol_detection_timeout
        nanoseconds = None if written is None else go_duration(written)
        if nanoseconds is None:
            return None
        return nanoseconds / 1e9 or math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """How a workload that registered under a WorkloadGroup finds its own entry."""

    group: str
    addresses: tuple[str, ...]

    def find(self, received: Received, namespace: str) -> WorkloadEntry | None:
        """Return the entry, None if the control plane did not send it."""
        for entry in received.workload_entries:
            made_from = entry.metadata.annotations.get(GROUP_ANNOTATION)
            if (
                made_from == self.group
                and entry.metadata.namespace == namespace
                and entry.spec.address in self.addresses
            ):
                return entry
        return None


def fixed_view(mode: MtlsMode) -> View:
    """Return the view of a port without a control plane: the mode of its flag, no policies."""
    return View(modes=FixedMode(mode), authorization=Authorization(()))


class ViewCompiler:
    """Makes views of what is received, reusing what the last one was made of."""

    def __init__(self, workload: Workload, registered: Registered | None = None) -> None:
        """Take the workload by its own labels; one that is `registered` has those of its entry."""
        self._registered = registered
        self._workload = workload
        self._client = Client(namespace=workload.namespace, labels=workload.labels)
        self._received: Received | None = None
        self._compiled: dict[str, tuple[AuthorizationPolicy, CompiledPolicy]] = {}
        self._view: View | None = None

    def compile(self, received: Received) -> View:
        """Return the view of `received`."""
        last, view = self._received, self._view
        config = received.config or DEFAULTS
        unread = [str(one) for one in received.unread if one.kind in DENYING]
        known = self._relabel(received, unread)
        same_mesh = last is not None and view is not None and view.config == config
        if not same_mesh or not known:
            self._compiled.clear()
            last = view = None
        made = View(
            modes=self._modes(received, config, last, view),
            authorization=self._authorization(received, config, last, view),
            trust_domains=TrustDomains.of(config),
            unread=tuple(unread),
            config=config,
            version=received.version,
            router=self._router(received, last, view),
        )
        self._received, self._view = received, made
        return made

    def _relabel(self, received: Received, unread: list[str]) -> bool:
        """Take over the labels of the workload's entry; tell whether they are as before."""
        if self._registered is None:
            return True
        entry = self._registered.find(received, self._workload.namespace)
        if entry is None:
            unread.append(f"WorkloadEntry of the group {self._registered.group}")
            return True
        before, self._workload = (
            self._workload,
            Workload(namespace=self._workload.namespace, labels=entry.spec.labels),
        )
        self._client = Client(namespace=before.namespace, labels=entry.spec.labels)
        return before == self._workload

    def _modes(
        self, received: Received, config: MeshConfig, last: Received | None, view: View | None
    ) -> Modes:
        policies = received.peer_authentications
        if last is not None and view is not None and last.peer_authentications is policies:
            return view.modes
        found = PeerAuthentications(policies, root_namespace=config.root_namespace)
        return PolicyModes(found.effective(self._workload))

    def _authorization(
        self, received: Received, config: MeshConfig, last: Received | None, view: View | None
    ) -> Authorization:
        policies = received.authorization_policies
        if last is not None and view is not None and last.authorization_policies is policies:
            return view.authorization
        chosen = applicable(policies, self._workload, config.root_namespace)
        self._compile_changed(chosen, TrustDomains.of(config))
        # Istio passes TCP by a provider that speaks HTTP alone. Here HTTP comes as TCP, so as long
        # as no provider is asked at all, a rule that would ask one denies.
        providers = dict.fromkeys(providers_of(config), True)
        return Authorization(
            [compiled for _, compiled in self._compiled.values()], providers=providers
        )

    def _router(self, received: Received, last: Received | None, view: View | None) -> Router:
        if last is not None and view is not None and view.router is not None:
            unchanged = (
                last.config is received.config
                and last.service_entries is received.service_entries
                and last.workload_entries is received.workload_entries
                and last.destination_rules is received.destination_rules
                and last.peer_authentications is received.peer_authentications
                and last.unread == received.unread
            )
            if unchanged:
                return view.router
        return Router(received, self._client)

    def _compile_changed(self, policies: list[AuthorizationPolicy], domains: TrustDomains) -> None:
        before, self._compiled = self._compiled, {}
        for policy in policies:
            known = before.get(policy.key)
            self._compiled[policy.key] = (
                known
                if known is not None and known[0] is policy
                else (policy, compile_policy(policy, domains))
            )
