"""Which policies are about a workload."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mesh.resources.security import Action, AuthorizationPolicy, RequestAuthentication
from mesh.resources.values import Labels, WorkloadSelector


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What policies know of a workload: where it runs and its labels."""

    namespace: str
    labels: Labels = field(default_factory=dict[str, str])


Attached = TypeVar("Attached", AuthorizationPolicy, RequestAuthentication)


def selects(selector: WorkloadSelector | None, labels: Labels) -> bool:
    """Tell whether every label of a selector is on the workload; no selector selects all."""
    if selector is None:
        return True
    return all(labels.get(key) == value for key, value in selector.match_labels.items())


def applicable(
    policies: Iterable[Attached], workload: Workload, root_namespace: str
) -> list[Attached]:
    """Return the policies for a workload, of its own and the root namespace, in their order.

    Istio: selectors of the root namespace reach workloads of all namespaces, and a policy with a
    target is for a gateway or waypoint, never for a sidecar.
    """
    namespaces = {workload.namespace, root_namespace}
    return [
        policy
        for policy in policies
        if policy.metadata.namespace in namespaces and attaches(policy, workload)
    ]


def attaches(policy: Attached, workload: Workload) -> bool:
    """Tell whether a policy of the right namespace is for a workload."""
    return (
        policy.spec.target_ref is None
        and not policy.spec.target_refs
        and selects(policy.spec.selector, workload.labels)
    )


class Attachments(Generic[Attached]):
    """Policies by namespace: a workload looks only at its own and at the root's.

    So a mesh of ten thousand policies costs a workload no more than those of its namespace.
    """

    def __init__(self, policies: Iterable[Attached], *, root_namespace: str) -> None:
        """Take policies of one kind; a later one of the same name replaces the earlier."""
        self._root = root_namespace
        self._by_namespace: dict[str, dict[str, Attached]] = {}
        for policy in policies:
            self.put(policy)

    def put(self, policy: Attached) -> None:
        """Add a policy, or replace the one of its name."""
        names = self._by_namespace.setdefault(policy.metadata.namespace, {})
        names[policy.metadata.name] = policy

    def discard(self, namespace: str, name: str) -> None:
        """Remove a policy if it is there."""
        self._by_namespace.get(namespace, {}).pop(name, None)

    def for_workload(self, workload: Workload) -> list[Attached]:
        """Return what `applicable` would, the root's policies first."""
        return [
            policy
            for namespace in dict.fromkeys((self._root, workload.namespace))
            for policy in self._by_namespace.get(namespace, {}).values()
            if attaches(policy, workload)
        ]


def by_action(
    policies: Iterable[AuthorizationPolicy],
) -> Mapping[Action, tuple[AuthorizationPolicy, ...]]:
    """Group policies by what they do; every action is present."""
    chosen = list(policies)
    return {
        action: tuple(policy for policy in chosen if policy.spec.action is action)
        for action in Action
    }
