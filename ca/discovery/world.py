"""All resources, and which proxy is concerned by which.

The same question has two forms that must agree: `concerns` asks of one resource, for a change that
is offered to the proxies it may matter to; `everything_for` collects all, for a proxy that comes.
Neither looks at resources that have nothing to do with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ca.discovery.held import (
    AUTHORIZATION_POLICY,
    DESTINATION_RULE,
    PEER_AUTHENTICATION,
    REQUEST_AUTHENTICATION,
    SERVED,
    SERVICE_ENTRY,
    WORKLOAD_ENTRY,
    WORKLOAD_GROUP,
    Held,
    held_of,
    held_settings,
)
from ca.discovery.indexes import SelectorIndex, covers
from ca.discovery.services import Services, labels_of
from ca.discovery.viewer import Viewer
from ca.store.catalog import EVERYWHERE, Change, InForce
from mesh.discovery.types import MESH_CONFIG_NAME, MESH_CONFIG_URL
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.networking import DestinationRule, ServiceEntry, WorkloadEntry, WorkloadGroup
from mesh.resources.problem import Refused
from mesh.resources.security import (
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
)
from mesh.resources.values import Labels

POLICIES = (PEER_AUTHENTICATION, AUTHORIZATION_POLICY, REQUEST_AUTHENTICATION)
"""The types that select workloads."""

ON_SERVICES = (SERVICE_ENTRY, WORKLOAD_ENTRY, DESTINATION_RULE, PEER_AUTHENTICATION)
"""The types of which a proxy's share depends on the services that it calls."""

Name = tuple[str, str]
"""A type URL, and the name of a resource of that type."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Whom a policy selects: labels, or nobody here because it is for gateways."""

    labels: Labels | None


class World:
    """Every resource that can be sent, with the indexes that say to whom."""

    def __init__(self, config: MeshConfig) -> None:
        self.config = config
        self.services = Services()
        self.groups: dict[str, WorkloadGroup] = {}
        self._held: dict[str, dict[str, Held]] = {url: {} for url in SERVED}
        self._held[MESH_CONFIG_URL][MESH_CONFIG_NAME] = held_settings(config)
        self._selecting: dict[str, SelectorIndex[str]] = {url: SelectorIndex() for url in POLICIES}
        self._unread: dict[tuple[str, str], dict[str, None]] = {}

    @property
    def root(self) -> str:
        """The namespace whose policies reach everybody."""
        return self.config.root_namespace

    def get(self, url: str, name: str) -> Held | None:
        """Return a resource by type and name."""
        return self._held.get(url, {}).get(name)

    def all_of(self, url: str) -> Mapping[str, Held]:
        """Return every resource of a type, whomever it concerns."""
        return self._held[url]

    # Changing.

    def set_config(self, config: MeshConfig | None) -> bool:
        """Take new mesh settings, None for unreadable ones; tell whether anything depends on it.

        The settings of before go on deciding who is concerned by what.
        """
        self._held[MESH_CONFIG_URL][MESH_CONFIG_NAME] = held_settings(config)
        if config is None:
            return False
        moved = config.root_namespace != self.config.root_namespace
        self.config = config
        return moved

    def update(self, changes: Iterable[Change]) -> dict[Name, None]:
        """Take changes, and return every resource that some proxy may have to be told of anew.

        Those are the changed ones, and others that a proxy gains or loses by them: a service
        brings its workloads, and the rules and modes that clients must know.
        """
        touched = dict[Name, None]()
        for change in changes:
            for value in (change.before, change.after):
                if value is not None:
                    touched[held_of(value).url, change.ident[1]] = None
            moves = _moves(change)
            if moves:
                touched |= dict.fromkeys(self._depending(change.before))
            self._set(change)
            if moves:
                touched |= dict.fromkeys(self._depending(change.after))
        return {name: None for name in touched if name[0] != WORKLOAD_GROUP}

    def _set(self, change: Change) -> None:
        value = change.after if change.after is not None else change.before
        if value is None:
            return
        url, name = held_of(value).url, change.ident[1]
        readable = change.after if not isinstance(change.after, Refused) else None
        if url == WORKLOAD_GROUP:
            self._set_group(name, readable)
            return
        if change.after is None:
            self._held[url].pop(name, None)
        else:
            self._held[url][name] = held_of(change.after)
        self._index_unread(url, name, change.after)
        self._index(url, name, readable)

    def _set_group(self, name: str, group: InForce | None) -> None:
        if isinstance(group, WorkloadGroup):
            self.groups[name] = group
        else:
            self.groups.pop(name, None)

    def _index_unread(self, url: str, name: str, value: InForce | None) -> None:
        place = url, name.partition("/")[0]
        if isinstance(value, Refused):
            self._unread.setdefault(place, {})[name] = None
        elif place in self._unread:
            self._unread[place].pop(name, None)

    def _index(self, url: str, name: str, value: InForce | None) -> None:
        if url == SERVICE_ENTRY:
            self.services.set_entry(name, value if isinstance(value, ServiceEntry) else None)
        elif url == WORKLOAD_ENTRY:
            self.services.set_workload(name, value if isinstance(value, WorkloadEntry) else None)
        elif url == DESTINATION_RULE:
            self.services.set_rule(name, value if isinstance(value, DestinationRule) else None)
        else:
            index = self._selecting[url]
            index.remove(name)
            labels = None if value is None else selection_of(value).labels
            if labels is not None:
                index.add(name, name.partition("/")[0], labels)

    def _depending(self, value: InForce | None) -> Iterator[Name]:
        """Yield what proxies gain or lose with a service or a workload, as the indexes are now."""
        if isinstance(value, WorkloadEntry):
            yield from self._modes_for(value.metadata.namespace, labels_of(value))
        if not isinstance(value, ServiceEntry):
            return
        namespace = value.metadata.namespace
        for name in self.services.behind(value):
            yield WORKLOAD_ENTRY, name
            yield from self._modes_for(namespace, labels_of(self.services.workloads[name]))
        for endpoint in value.spec.endpoints or ():
            yield from self._modes_for(namespace, endpoint.labels)
        for name in self.services.rules_about(value):
            yield DESTINATION_RULE, name
        yield from self._modes_for(namespace, {})

    def _modes_for(self, namespace: str, labels: Labels) -> Iterator[Name]:
        for name in self._selecting[PEER_AUTHENTICATION].matching(namespace, labels):
            yield PEER_AUTHENTICATION, name

    # Whom it concerns.

    def concerns(self, viewer: Viewer, held: Held) -> bool:
        """Tell whether a proxy is to be told of a resource."""
        value = held.value
        if isinstance(value, Refused):
            return _may_concern(viewer, value, held.url, self.root)
        match value:
            case PeerAuthentication():
                return self._decides_modes(viewer, value)
            case AuthorizationPolicy() | RequestAuthentication():
                labels = selection_of(value).labels
                near = value.metadata.namespace in {self.root, viewer.namespace}
                return near and labels is not None and covers(labels, viewer.labels)
            case MeshConfig():
                return True
            case _:
                return self._is_called(viewer, held.name, value)

    def _is_called(self, viewer: Viewer, name: str, value: InForce) -> bool:
        """Tell whether something of the registry is about what the proxy calls, or is itself."""
        match value:
            case ServiceEntry():
                return self.services.sees(viewer, value)
            case WorkloadEntry():
                owned = self.services.owns(viewer, name, value)
                return owned or self.services.reaches(viewer, value)
            case DestinationRule():
                return self.services.follows(viewer, value, self.root)
            case _:
                return False

    def _decides_modes(self, viewer: Viewer, policy: PeerAuthentication) -> bool:
        """Tell whether a policy can decide the modes of the workload, or of what it calls."""
        labels = selection_of(policy).labels or {}
        namespace = policy.metadata.namespace
        if namespace == self.root:
            return not labels  # Istio: with a selector it is ignored there, for everybody.
        own = namespace == viewer.namespace and covers(labels, viewer.labels)
        return own or self.services.calls_into(viewer, namespace, labels)

    def everything_for(self, viewer: Viewer, url: str) -> dict[str, Held]:
        """Return all resources of a type that a proxy is to be told of."""
        held = self._held.get(url)
        if held is None:  # WorkloadGroups are for the control plane alone.
            return {}
        names = dict.fromkeys(self._candidates(viewer, url))
        return {name: held[name] for name in names if self.concerns(viewer, held[name])}

    def _candidates(self, viewer: Viewer, url: str) -> Iterator[str]:
        for namespace in (viewer.namespace, self.root, EVERYWHERE):
            yield from self._unread.get((url, namespace), ())
        finders: dict[str, Callable[[], Iterable[str]]] = {
            MESH_CONFIG_URL: lambda: (MESH_CONFIG_NAME,),
            SERVICE_ENTRY: lambda: self.services.entries_for(viewer),
            WORKLOAD_ENTRY: lambda: self.services.workloads_for(viewer),
            DESTINATION_RULE: lambda: self.services.rules_for(viewer, self.root),
        }
        if url in finders:
            yield from finders[url]()
            return
        for namespace in (viewer.namespace, self.root):
            yield from self._selecting[url].matching(namespace, viewer.labels)
        if url == PEER_AUTHENTICATION:
            for namespace in self.services.namespaces_for(viewer):
                yield from self._selecting[url].all_in(namespace)


def selection_of(value: InForce) -> Selection:
    """Return whom a policy selects. One that cannot be read may select anybody."""
    if isinstance(value, AuthorizationPolicy | RequestAuthentication) and (
        value.spec.target_ref is not None or value.spec.target_refs
    ):
        return Selection(None)
    if isinstance(value, AuthorizationPolicy | RequestAuthentication | PeerAuthentication):
        selector = value.spec.selector
        return Selection({} if selector is None else selector.match_labels)
    return Selection({})


def _may_concern(viewer: Viewer, refused: Refused, url: str, root: str) -> bool:
    """Tell whether something unreadable may be about a proxy, going by where it stands.

    Policies of the root namespace reach everybody, and so does what may be in any. A service or a
    rule is kept to its own namespace: whoever may call it elsewhere had no good version of it to
    lose, and one bad document must not take the calls of a whole mesh down.
    """
    if url == MESH_CONFIG_URL or refused.namespace == viewer.namespace:
        return True
    return url in POLICIES and refused.namespace in {root, EVERYWHERE}


def _moves(change: Change) -> bool:
    """Tell whether a change can make other resources matter to proxies, or no longer matter."""
    before, after = change.before, change.after
    if isinstance(before, ServiceEntry) and isinstance(after, ServiceEntry):
        return _reach(before) != _reach(after)
    if isinstance(before, WorkloadEntry) and isinstance(after, WorkloadEntry):
        return labels_of(before) != labels_of(after)
    return True


def _reach(entry: ServiceEntry) -> tuple[object, ...]:
    spec = entry.spec
    return spec.hosts, spec.export_to, spec.workload_selector, spec.endpoints
