"""Finding by labels without looking at everything: who selects this, and whom does this select."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from mesh.resources.values import Labels

Key = TypeVar("Key")

_Bucket = tuple[str, tuple[str, str] | None]


def covers(wanted: Labels, labels: Labels) -> bool:
    """Tell whether every wanted label is among the others; none wanted are always."""
    return all(labels.get(key) == value for key, value in wanted.items())


class SelectorIndex(Generic[Key]):
    """Things with a selector, each under one label that it asks for."""

    def __init__(self) -> None:
        self._buckets: dict[_Bucket, dict[Key, Labels]] = {}
        self._where: dict[Key, _Bucket] = {}
        self._within: dict[str, dict[Key, None]] = {}

    def add(self, key: Key, namespace: str, selector: Labels) -> None:
        """Put a thing in; an empty selector selects everything in its namespace."""
        bucket = namespace, min(selector.items(), default=None)
        self._where[key] = bucket
        self._within.setdefault(namespace, {})[key] = None
        self._buckets.setdefault(bucket, {})[key] = selector

    def remove(self, key: Key) -> None:
        """Take a thing out, if it is there."""
        bucket = self._where.pop(key, None)
        if bucket is not None:
            self._within[bucket[0]].pop(key)
            self._buckets[bucket].pop(key)
            if not self._buckets[bucket]:
                del self._buckets[bucket]

    def all_in(self, namespace: str) -> Iterable[Key]:
        """Return whatever is in a namespace."""
        return self._within.get(namespace, {})

    def matching(self, namespace: str, labels: Labels) -> Iterator[Key]:
        """Yield whatever of a namespace selects these labels."""
        for pair in (None, *labels.items()):
            for key, selector in self._buckets.get((namespace, pair), {}).items():
                if covers(selector, labels):
                    yield key


class LabelIndex(Generic[Key]):
    """Things with labels, each under all that it carries."""

    def __init__(self) -> None:
        self._buckets: dict[_Bucket, dict[Key, None]] = {}
        self._labels: dict[Key, tuple[str, Labels]] = {}

    def add(self, key: Key, namespace: str, labels: Labels) -> None:
        """Put a thing in."""
        self._labels[key] = namespace, labels
        for pair in (None, *labels.items()):
            self._buckets.setdefault((namespace, pair), {})[key] = None

    def remove(self, key: Key) -> None:
        """Take a thing out, if it is there."""
        if key not in self._labels:
            return
        namespace, labels = self._labels.pop(key)
        for pair in (None, *labels.items()):
            bucket = self._buckets[namespace, pair]
            del bucket[key]
            if not bucket:
                del self._buckets[namespace, pair]

    def labels_of(self, key: Key) -> Labels:
        """Return the labels of a thing that is in."""
        return self._labels[key][1]

    def selected(self, namespace: str | None, selector: Labels) -> Iterator[Key]:
        """Yield whatever of a namespace, or of all, a selector selects, the rarest label first."""
        if namespace is None:
            yield from (
                key for key, (_, labels) in self._labels.items() if covers(selector, labels)
            )
            return
        buckets = [
            self._buckets.get((namespace, pair), {}) for pair in (selector.items() or (None,))
        ]
        for key in min(buckets, key=len):
            if covers(selector, self._labels[key][1]):
                yield key
