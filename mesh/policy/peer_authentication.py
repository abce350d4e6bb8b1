"""Which mutual TLS mode holds for a workload, for each of its ports, and who decided it.

Istio: the mesh's policy, then the namespace's, then one workload policy, then its ports; the
narrower always wins, even if it is weaker, and UNSET asks the next wider. On each level only the
oldest policy counts, as a whole: nothing is merged from the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mesh.policy.selection import Workload, selects
from mesh.resources.security import MtlsMode, PeerAuthentication
from mesh.resources.values import age_order

DEFAULT_MODE = MtlsMode.PERMISSIVE
"""Istio: the mode where no policy says one."""


@dataclass(frozen=True, slots=True)
class Mode:
    """A mode that is never UNSET, and the policy that decided it; None if it is the default."""

    mode: MtlsMode
    decided_by: PeerAuthentication | None = None

    def __str__(self) -> str:
        if self.decided_by is None:
            return f"{self.mode} by default"
        return f"{self.mode} by PeerAuthentication {self.decided_by.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveModes:
    """The mode of a workload, and those of the ports that have a setting of their own."""

    workload: Mode
    ports: Mapping[int, Mode]

    def of_port(self, port: int) -> Mode:
        """Return the mode of a WORKLOAD port, declared by a service or not."""
        return self.ports.get(port, self.workload)


class PeerAuthentications:
    """All PeerAuthentications of a mesh, sorted once for many questions."""

    def __init__(self, policies: Iterable[PeerAuthentication], *, root_namespace: str) -> None:
        self._root = root_namespace
        self._widest: dict[str, PeerAuthentication] = {}
        self._selecting: dict[str, list[PeerAuthentication]] = {}
        for policy in sorted(policies, key=age_order):
            namespace = policy.metadata.namespace
            if _selects_all(policy):
                self._widest.setdefault(namespace, policy)
            elif namespace != root_namespace:  # Istio ignores them in the root, for everyone.
                self._selecting.setdefault(namespace, []).append(policy)

    def effective(self, workload: Workload) -> EffectiveModes:
        """Resolve the modes of a workload, port by port."""
        levels = [self._widest.get(self._root), self._widest.get(workload.namespace)]
        chosen = self._oldest_selecting(workload)
        levels.append(chosen)
        mode = Mode(DEFAULT_MODE)
        for policy in levels:
            if policy is not None and policy.spec.mtls.mode is not MtlsMode.UNSET:
                mode = Mode(policy.spec.mtls.mode, policy)
        ports = {} if chosen is None else _port_modes(chosen, mode)
        return EffectiveModes(workload=mode, ports=ports)

    def namespace_mode(self, namespace: str) -> MtlsMode | None:
        """Return the mode that clients assume for a namespace; None is Istio's UNKNOWN.

        Only policies without selector count. A mesh policy that is UNSET means PERMISSIVE here.
        """
        mesh = self._widest.get(self._root)
        wider = None if mesh is None else mesh.spec.mtls.mode
        if wider is MtlsMode.UNSET:
            wider = DEFAULT_MODE
        own = self._widest.get(namespace) if namespace != self._root else None
        if own is None:
            return wider
        if own.spec.mtls.mode is MtlsMode.UNSET:
            return wider or DEFAULT_MODE
        return own.spec.mtls.mode

    def _oldest_selecting(self, workload: Workload) -> PeerAuthentication | None:
        for policy in self._selecting.get(workload.namespace, ()):
            if selects(policy.spec.selector, workload.labels):
                return policy
        return None


def _selects_all(policy: PeerAuthentication) -> bool:
    return policy.spec.selector is None or not policy.spec.selector.match_labels


def _port_modes(policy: PeerAuthentication, inherited: Mode) -> dict[int, Mode]:
    return {
        port: inherited if setting.mode is MtlsMode.UNSET else Mode(setting.mode, policy)
        for port, setting in policy.spec.port_level_mtls.items()
    }
