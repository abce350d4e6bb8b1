"""Services, the workloads behind them, and the rules for their clients: who is concerned by which.

Every question is answered from an index, so that its cost does not grow with what it is not about.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from ca.discovery.indexes import LabelIndex, SelectorIndex, covers
from ca.discovery.viewer import Viewer
from mesh.policy.destination import full_host, host_matches
from mesh.resources.networking import DestinationRule, ServiceEntry, WorkloadEntry
from mesh.resources.values import Labels

_Key = TypeVar("_Key")

EVERYBODY = "*"
"""In exportTo: all namespaces, which is also the default."""

DOMAIN = "cluster.local"
"""What completes the short host of a DestinationRule, as everywhere in the mesh."""


class Services:
    """The registry's resources by name, and what connects them."""

    def __init__(self) -> None:
        self.entries: dict[str, ServiceEntry] = {}
        self.workloads: dict[str, WorkloadEntry] = {}
        self.rules: dict[str, DestinationRule] = {}
        self._exported: dict[str, dict[str, None]] = {}
        self._entries_in: dict[str, dict[str, None]] = {}
        self._entries_of: _Hosts = _Hosts()
        self._rules_of: _Hosts = _Hosts()
        self._selectors: SelectorIndex[str] = SelectorIndex()
        self._labels: LabelIndex[str] = LabelIndex()
        self._addresses: dict[tuple[str, str], dict[str, None]] = {}

    # Changing.

    def set_entry(self, name: str, entry: ServiceEntry | None) -> None:
        """Put a service in the place of the one of its name, or remove that."""
        old = self.entries.pop(name, None)
        if old is not None:
            for namespace in exported_to(old.metadata.namespace, old.spec.export_to):
                _drop(self._exported, namespace, name)
            _drop(self._entries_in, old.metadata.namespace, name)
            self._entries_of.remove(name, old.spec.hosts)
            self._selectors.remove(name)
        if entry is None:
            return
        self.entries[name] = entry
        for namespace in exported_to(entry.metadata.namespace, entry.spec.export_to):
            self._exported.setdefault(namespace, {})[name] = None
        self._entries_in.setdefault(entry.metadata.namespace, {})[name] = None
        self._entries_of.add(name, entry.spec.hosts)
        if entry.spec.workload_selector is not None:
            selector = entry.spec.workload_selector.labels
            self._selectors.add(name, entry.metadata.namespace, selector)

    def set_workload(self, name: str, workload: WorkloadEntry | None) -> None:
        """Put a workload in the place of the one of its name, or remove that."""
        old = self.workloads.pop(name, None)
        if old is not None:
            _drop(self._addresses, (old.metadata.namespace, old.spec.address), name)
            self._labels.remove(name)
        if workload is None:
            return
        self.workloads[name] = workload
        place = workload.metadata.namespace, workload.spec.address
        self._addresses.setdefault(place, {})[name] = None
        self._labels.add(name, workload.metadata.namespace, labels_of(workload))

    def set_rule(self, name: str, rule: DestinationRule | None) -> None:
        """Put a rule in the place of the one of its name, or remove that."""
        old = self.rules.pop(name, None)
        if old is not None:
            self._rules_of.remove(name, (full_host(old, DOMAIN),))
        if rule is not None:
            self.rules[name] = rule
            self._rules_of.add(name, (full_host(rule, DOMAIN),))

    # Whom it concerns.

    def sees(self, viewer: Viewer, entry: ServiceEntry) -> bool:
        """Tell whether a proxy is told of a service: one that it calls, or that it is behind."""
        exports = exported_to(entry.metadata.namespace, entry.spec.export_to)
        visible = EVERYBODY in exports or viewer.namespace in exports
        called = visible and any(viewer.calls(host) for host in entry.spec.hosts)
        return called or _is_behind(viewer, entry)

    def reaches(self, viewer: Viewer, workload: WorkloadEntry) -> bool:
        """Tell whether a workload is behind a service that a proxy is told of."""
        names = self._selectors.matching(workload.metadata.namespace, labels_of(workload))
        return any(self.sees(viewer, self.entries[name]) for name in names)

    def owns(self, viewer: Viewer, name: str, workload: WorkloadEntry) -> bool:
        """Tell whether a WorkloadEntry is the proxy's own."""
        return name == viewer.own or (
            workload.metadata.namespace == viewer.namespace
            and workload.spec.address in viewer.addresses
        )

    def follows(self, viewer: Viewer, rule: DestinationRule, root: str) -> bool:
        """Tell whether a rule can apply to a service that a proxy is told of."""
        namespace = rule.metadata.namespace
        entries = map(self.entries.__getitem__, self._entries_of.related(full_host(rule, DOMAIN)))
        return _eligible(viewer, rule) and any(
            namespace in {viewer.namespace, root, entry.metadata.namespace}
            and self.sees(viewer, entry)
            for entry in entries
        )

    def calls_into(self, viewer: Viewer, namespace: str, selector: Labels) -> bool:
        """Tell whether a proxy calls endpoints in a namespace that a selector selects.

        An empty selector is about the namespace as a whole, endpoints or not.
        """
        within = self._entries_in.get(namespace, {})
        if not selector:
            return any(self.sees(viewer, self.entries[name]) for name in within)
        if any(
            self.reaches(viewer, self.workloads[name])
            for name in self._labels.selected(namespace, selector)
        ):
            return True
        return any(
            any(covers(selector, endpoint.labels) for endpoint in entry.spec.endpoints or ())
            and self.sees(viewer, entry)
            for entry in map(self.entries.__getitem__, within)
        )

    # Everything for one proxy.

    def entries_for(self, viewer: Viewer) -> dict[str, ServiceEntry]:
        """Return all services that a proxy is told of."""
        names = dict[str, None]()
        if viewer.hosts is None:
            names |= self._exported.get(EVERYBODY, {})
            names |= self._exported.get(viewer.namespace, {})
        else:
            for host in viewer.hosts:
                names |= dict.fromkeys(self._entries_of.covering(host))
        names |= self._entries_in.get(viewer.namespace, {})
        found = {name: self.entries[name] for name in names}
        return {name: entry for name, entry in found.items() if self.sees(viewer, entry)}

    def behind(self, entry: ServiceEntry) -> Iterator[str]:
        """Yield the names of the workloads behind a service."""
        if entry.spec.workload_selector is not None:
            selector = entry.spec.workload_selector.labels
            yield from self._labels.selected(entry.metadata.namespace, selector)

    def workloads_for(self, viewer: Viewer) -> dict[str, None]:
        """Return the names of the workloads that a proxy is told of."""
        names = dict[str, None]()
        for entry in self.entries_for(viewer).values():
            names |= dict.fromkeys(self.behind(entry))
        for address in viewer.addresses:
            names |= self._addresses.get((viewer.namespace, address), {})
        if viewer.own in self.workloads:
            names[viewer.own] = None
        return names

    def rules_for(self, viewer: Viewer, root: str) -> dict[str, None]:
        """Return the names of the rules that a proxy may have to follow."""
        names = dict[str, None]()
        for entry in self.entries_for(viewer).values():
            places = {viewer.namespace, root, entry.metadata.namespace}
            for name in self.rules_about(entry):
                rule = self.rules[name]
                if rule.metadata.namespace in places and _eligible(viewer, rule):
                    names[name] = None
        return names

    def rules_about(self, entry: ServiceEntry) -> Iterator[str]:
        """Yield the names of the rules for a service's hosts, whoever may follow them."""
        for host in entry.spec.hosts:
            yield from self._rules_of.related(host)

    def namespaces_for(self, viewer: Viewer) -> set[str]:
        """Return the namespaces that a proxy calls into."""
        return {entry.metadata.namespace for entry in self.entries_for(viewer).values()}


class _Hosts:
    """Names of resources by host; a host may begin with a `*`."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, None]] = {}
        self._wildcards: dict[str, dict[str, None]] = {}

    def add(self, name: str, hosts: tuple[str, ...]) -> None:
        for host in hosts:
            table = self._wildcards if host.startswith("*") else self._exact
            table.setdefault(host.lower(), {})[name] = None

    def remove(self, name: str, hosts: tuple[str, ...]) -> None:
        for host in {host.lower() for host in hosts}:
            _drop(self._wildcards if host.startswith("*") else self._exact, host, name)

    def covering(self, host: str) -> Iterator[str]:
        """Yield what stands under a host, or under a wildcard that covers it."""
        host = host.lower()
        yield from self._exact.get(host, {})
        for pattern, names in self._wildcards.items():
            if host_matches(pattern, host):
                yield from names

    def related(self, host: str) -> Iterator[str]:
        """Yield what covers a host, and if that is a wildcard, also what it covers."""
        yield from self.covering(host)
        if host.startswith("*"):
            for table in (self._exact, self._wildcards):
                for other, names in table.items():
                    if host_matches(host, other):
                        yield from names


def labels_of(workload: WorkloadEntry) -> Labels:
    """Return a workload's labels. Istio: those of its metadata come before those of its spec."""
    return {**workload.spec.labels, **workload.metadata.labels}


def exported_to(namespace: str, export_to: tuple[str, ...]) -> frozenset[str]:
    """Return the namespaces that see a resource, `*` for all of them."""
    if not export_to:
        return frozenset({EVERYBODY})
    return frozenset(namespace if one == "." else one for one in export_to)


def _is_behind(viewer: Viewer, entry: ServiceEntry) -> bool:
    if entry.metadata.namespace != viewer.namespace:
        return False
    selector = entry.spec.workload_selector
    if selector is not None:
        return covers(selector.labels, viewer.labels)
    return any(endpoint.address in viewer.addresses for endpoint in entry.spec.endpoints or ())


def _eligible(viewer: Viewer, rule: DestinationRule) -> bool:
    """Tell whether a rule is for a client. Istio: a selector is for the rule's own namespace."""
    exports = exported_to(rule.metadata.namespace, rule.spec.export_to)
    if EVERYBODY not in exports and viewer.namespace not in exports:
        return False
    selector = rule.spec.workload_selector
    if selector is None:
        return True
    same = rule.metadata.namespace == viewer.namespace
    return same and covers(selector.match_labels, viewer.labels)


def _drop(table: dict[_Key, dict[str, None]], key: _Key, name: str) -> None:
    names = table.get(key, {})
    names.pop(name, None)
    if not names:
        table.pop(key, None)
