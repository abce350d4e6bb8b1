"""Istio's string patterns, many compiled into one test.

`*` alone is a non-empty value; a leading `*` a suffix, looked at first; a trailing `*` a prefix;
all else is literal, an inner `*` too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

Test = Callable[[str], bool]


def text_test(patterns: Iterable[str]) -> Test:
    """Compile patterns to one test: true if any of them matches."""
    exact: set[str] = set()
    prefixes: list[str] = []
    suffixes: list[str] = []
    for pattern in patterns:
        if pattern == "*":
            return bool  # Whatever another pattern matches is not empty either.
        if pattern.startswith("*"):
            suffixes.append(pattern[1:])
        elif pattern.endswith("*"):
            prefixes.append(pattern[:-1])
        else:
            exact.add(pattern)
    return _combined(frozenset(exact), tuple(prefixes), tuple(suffixes))


def _combined(exact: frozenset[str], prefixes: tuple[str, ...], suffixes: tuple[str, ...]) -> Test:
    """Choose the cheapest test that does; str's own methods take whole tuples."""
    if not prefixes and not suffixes:
        return exact.__contains__
    if not exact and not suffixes:
        return lambda text: text.startswith(prefixes)
    if not exact and not prefixes:
        return lambda text: text.endswith(suffixes)
    return lambda text: text in exact or text.startswith(prefixes) or text.endswith(suffixes)
