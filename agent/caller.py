"""What the kernel tells of a caller, and the selectors that it has by that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.cgroup import NOWHERE, Place
from agent.selector import (
    CONTAINER,
    GID,
    GROUP,
    PATH,
    POD_UID,
    SHA256,
    SUPPLEMENTARY_GID,
    SUPPLEMENTARY_GROUP,
    SYSTEMD_UNIT,
    UID,
    USER,
    Selector,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A process as it is now; None and empty for what could not be found out."""

    pid: int
    uid: int
    gid: int
    supplementary_gids: tuple[int, ...] = ()
    user: str | None = None
    group: str | None = None
    supplementary_groups: tuple[str, ...] = ()
    path: str | None = None
    sha256: str | None = None
    place: Place = NOWHERE


def selectors_of(facts: Facts) -> frozenset[Selector]:
    """Return everything that may be said of a caller. What is not known is not said."""
    return frozenset(Selector(kind, value) for kind, value in _said(facts) if value is not None)


def _said(facts: Facts) -> Iterator[tuple[str, str | None]]:
    yield UID, str(facts.uid)
    yield GID, str(facts.gid)
    yield USER, facts.user
    yield GROUP, facts.group
    for gid in facts.supplementary_gids:
        yield SUPPLEMENTARY_GID, str(gid)
    for name in facts.supplementary_groups:
        yield SUPPLEMENTARY_GROUP, name
    yield PATH, facts.path
    yield SHA256, facts.sha256
    yield SYSTEMD_UNIT, facts.place.unit
    yield CONTAINER, facts.place.container
    yield POD_UID, facts.place.pod_uid


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStatus:
    """The lines of `/proc/PID/status` that matter: ids in effect, and all groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def parse_status(text: str) -> ProcessStatus:
    """Read `/proc/PID/status` (proc_pid_status(5)). Raises ValueError if it is not that."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    try:
        # Real, effective, saved and file system id: a connection carries the effective one.
        uid, gid = int(fields["Uid"].split()[1]), int(fields["Gid"].split()[1])
        groups = tuple(int(number) for number in fields["Groups"].split())
    except (KeyError, IndexError) as error:
        raise ValueError(f"no ids in the status of a process: {error}") from error
    return ProcessStatus(uid=uid, gid=gid, groups=groups)
