"""The kinds by the names that people type, as kubectl takes them."""

from __future__ import annotations

from mesh.errors import ConfigError
from mesh.resources.decode import nearest
from mesh.resources.loader import KINDS

ALL = "all"

SHORT_NAMES = {
    "AuthorizationPolicy": "ap",
    "DestinationRule": "dr",
    "PeerAuthentication": "pa",
    "RequestAuthentication": "ra",
    "ServiceEntry": "se",
    "WorkloadEntry": "we",
    "WorkloadGroup": "wg",
}
"""Istio: the short names of its resource definitions."""


def plural(kind: str) -> str:
    """Write a kind in lower case for several: authorizationpolicies."""
    lower = kind.lower()
    return f"{lower[:-1]}ies" if lower.endswith("y") else f"{lower}s"


def parse_kinds(text: str) -> tuple[str, ...]:
    """Return the kinds that a word means: a kind, its plural or short name, or `all`.

    The API group may follow after a dot. Raises ConfigError.
    """
    word = text.lower().partition(".")[0]
    if word == ALL:
        return tuple(sorted(KINDS))
    for kind in KINDS:
        if word in {kind.lower(), plural(kind), SHORT_NAMES[kind]}:
            return (kind,)
    words = sorted({*(kind.lower() for kind in KINDS), *SHORT_NAMES.values(), ALL})
    known = ", ".join(f"{plural(kind)} ({SHORT_NAMES[kind]})" for kind in sorted(KINDS))
    raise ConfigError(
        f"there is no kind {text[:80]!r}{nearest(word, words)}. There are {known}, and {ALL}"
    )


def full_name(kind: str, name: str) -> str:
    """Name a resource as kubectl does: authorizationpolicy.security.istio.io/NAME."""
    group = KINDS[kind].groups[0].partition("/")[0]
    return f"{kind.lower()}.{group}/{name}"
