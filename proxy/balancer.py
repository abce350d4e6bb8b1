"""Which endpoint of a service gets the next connection, and which are left alone for a while.

No I/O, and neither a clock nor chance of its own: both are given. It outlives the routes that it is
asked with, so that an endpoint keeps its record when something else in the registry changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from mesh.resources.networking import Balancing
from proxy.route import Candidate, Ejection, Forward

MAX_EJECTION = 300.0
"""Seconds (Envoy's max_ejection_time), unless the base time is longer."""

_Place = tuple[str, int]


@dataclass(slots=True)
class _Record:
    """What is remembered of one endpoint; `until` is the end of its last ejection."""

    active: int = 0
    failures: int = 0
    ejections: int = 0
    until: float = -math.inf
    turn: float = 0.0


@dataclass(slots=True)
class _Cluster:
    candidates: tuple[Candidate, ...] = ()
    records: dict[_Place, _Record] = field(default_factory=dict[_Place, _Record])

    def of(self, candidate: Candidate) -> _Record:
        return self.records.setdefault((candidate.address, candidate.port), _Record())


class Balancer:
    """Keeps the records of all endpoints of all services."""

    def __init__(self, random: Callable[[], float], now: Callable[[], float]) -> None:
        """Take a source of chance, from 0 up to 1, and a clock in seconds."""
        self._random = random
        self._now = now
        self._clusters: dict[str, _Cluster] = {}

    def choose(self, way: Forward, tried: Collection[Candidate] = ()) -> Candidate | None:
        """Return the endpoint to connect to next, None if all of them were tried.

        Ejected ones are left out, unless there are no others: then the one whose time is over
        first is better than nobody.
        """
        left = [one for one in way.candidates if one not in tried]
        if not way.kept:
            return left[0] if left else None
        cluster, now = self._cluster(way), self._now()
        if len(left) < 2:
            return left[0] if left else None
        healthy = [one for one in left if cluster.of(one).until <= now]
        if not healthy:
            return min(left, key=lambda one: cluster.of(one).until)
        match way.balancing:
            case Balancing.ROUND_ROBIN:
                return _in_turn(cluster, healthy)
            case Balancing.RANDOM:
                return self._by_chance(healthy)
            case _:
                return self._less_busy(cluster, healthy)

    @contextmanager
    def using(self, way: Forward, candidate: Candidate) -> Generator[None]:
        """Count a connection to an endpoint for the block."""
        if not way.kept:
            yield
            return
        record = self._cluster(way).of(candidate)
        record.active += 1
        try:
            yield
        finally:
            record.active -= 1

    def succeeded(self, way: Forward, candidate: Candidate) -> None:
        """Take note that a connection was made."""
        if way.kept:
            self._cluster(way).of(candidate).failures = 0

    def failed(self, way: Forward, candidate: Candidate) -> float | None:
        """Take note that no connection could be made; return for how long that ejects, if it does.

        Seconds.
        """
        if way.ejection is None or not way.kept:
            return None
        cluster, now = self._cluster(way), self._now()
        record = cluster.of(candidate)
        record.failures += 1
        ejected = sum(1 for one in way.candidates if cluster.of(one).until > now)
        if (
            record.failures < way.ejection.failures
            or record.until > now
            or ejected >= _most_ejected(way)
        ):
            return None
        return _eject(record, way.ejection, now)

    def _cluster(self, way: Forward) -> _Cluster:
        cluster = self._clusters.setdefault(way.name, _Cluster())
        if cluster.candidates is not way.candidates:
            cluster.candidates = way.candidates
            there = {(one.address, one.port) for one in way.candidates}
            for place in [place for place in cluster.records if place not in there]:
                del cluster.records[place]
        return cluster

    def _by_chance(self, candidates: Sequence[Candidate]) -> Candidate:
        point = self._random() * _total(candidates)
        for one in candidates:
            point -= one.weight
            if point < 0:
                return one
        return candidates[-1]

    def _less_busy(self, cluster: _Cluster, candidates: Sequence[Candidate]) -> Candidate:
        """Take the less busy of two: nearly as good as the least busy of all, without herding."""
        first = self._by_chance(candidates)
        others = [one for one in candidates if one is not first]
        if not others:
            return first
        second = self._by_chance(others)
        return min(first, second, key=lambda one: cluster.of(one).active / one.weight)


def _in_turn(cluster: _Cluster, candidates: Sequence[Candidate]) -> Candidate:
    """Take turns by weight, and smoothly: 2 and 1 give a, b, a and not a, a, b."""
    for one in candidates:
        cluster.of(one).turn += one.weight
    chosen = max(candidates, key=lambda one: cluster.of(one).turn)
    cluster.of(chosen).turn -= _total(candidates)
    return chosen


def _total(candidates: Iterable[Candidate]) -> int:
    return sum(one.weight for one in candidates)


def _most_ejected(way: Forward) -> int:
    """Return how many endpoints may be ejected at once: Envoy always allows one."""
    percent = way.ejection.max_percent if way.ejection is not None else 0
    return max(1, len(way.candidates) * percent // 100)


def _eject(record: _Record, ejection: Ejection, now: float) -> float:
    if record.ejections:
        quiet = int((now - record.until) // ejection.interval)
        record.ejections = max(0, record.ejections - quiet)
    record.ejections += 1
    record.failures = 0
    seconds = min(ejection.base * record.ejections, max(ejection.base, MAX_EJECTION))
    record.until = now + seconds
    return seconds
