"""Many rules, of which few can match: found by the caller's identity, tried in order of name."""

from __future__ import annotations

from collections.abc import Iterable

from mesh.policy.facts import Facts
from mesh.policy.rules import CompiledRule

Numbered = tuple[int, CompiledRule]


class RuleSet:
    """The enforced rules of one action for one workload.

    Envoy reports the smallest name of the rules that match, so rules are tried by name and the
    first match is the answer. Most rules name the identities they are about: those are looked up,
    and only the others are tried for everyone. A hundred policies then cost a few microseconds.
    """

    __slots__ = ("_all", "_anchored", "_others")

    def __init__(self, rules: Iterable[CompiledRule]) -> None:
        self._all: tuple[Numbered, ...] = tuple(enumerate(sorted(rules, key=lambda rule: rule.id)))
        self._others = tuple(pair for pair in self._all if pair[1].anchors is None)
        anchored: dict[str, list[Numbered]] = {}
        for pair in self._all:
            for anchor in pair[1].anchors or ():
                anchored.setdefault(anchor, []).append(pair)
        self._anchored = anchored

    def __bool__(self) -> bool:
        return bool(self._all)

    def first_match(self, facts: Facts) -> CompiledRule | None:
        """Return the matching rule with the smallest name, or None."""
        if facts.anchors is None:
            found = _first(self._all, facts)
            return None if found is None else found[1]
        best: Numbered | None = None
        for anchor in facts.anchors:
            if anchor in self._anchored:
                best = _smaller(best, _first(self._anchored[anchor], facts))
        best = _smaller(best, _first(self._others, facts))
        return None if best is None else best[1]

    def matching(self, facts: Facts) -> tuple[CompiledRule, ...]:
        """Return every rule that matches, by name."""
        return tuple(rule for _, rule in self._all if rule.matches(facts))


def _first(rules: Iterable[Numbered], facts: Facts) -> Numbered | None:
    for pair in rules:
        if pair[1].matches(facts):
            return pair
    return None


def _smaller(one: Numbered | None, other: Numbered | None) -> Numbered | None:
    if one is None or other is None:
        return one or other
    return one if one[0] < other[0] else other
