"""The WorkloadEntries of a registry, found by labels without looking at all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from mesh.resources.networking import WorkloadEntry, WorkloadEntrySpec
from mesh.resources.values import Labels

_Place = tuple[str, tuple[str, str] | None]
"""A namespace, and one label or None for everything in it."""


class Workloads:
    """Workloads with an address, each under every label that it carries."""

    def __init__(self, entries: Iterable[WorkloadEntry]) -> None:
        self._under: dict[_Place, list[WorkloadEntrySpec]] = {}
        for entry in sorted(entries, key=lambda one: one.key):
            spec = _labelled(entry)
            if spec.address:
                for pair in (None, *spec.labels.items()):
                    self._under.setdefault((entry.metadata.namespace, pair), []).append(spec)

    def selected(self, namespace: str, selector: Labels) -> Iterator[WorkloadEntrySpec]:
        """Yield the workloads of a namespace that carry all labels of a selector, by name."""
        buckets = [self._under.get((namespace, pair), []) for pair in (selector.items() or (None,))]
        for spec in min(buckets, key=len):
            if selector.items() <= spec.labels.items():
                yield spec


def _labelled(entry: WorkloadEntry) -> WorkloadEntrySpec:
    """Return a workload with all its labels. Istio: those of the metadata win."""
    if not entry.metadata.labels:
        return entry.spec
    return replace(entry.spec, labels={**entry.spec.labels, **entry.metadata.labels})
