"""What a control group's path tells of a process: its systemd unit, its container, its pod.

The path is read from the root down, and reading stops where somebody else than root may have made
the rest: at the first systemd service, whose subtree can be delegated. `user@1000.service` is such
a one, so the names that a user gives to groups of his own, or to containers that he runs without
root, prove nothing and are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

UNIFIED, SYSTEMD = "", "name=systemd"
"""The hierarchies that name every process's place: version 2's, and systemd's own in version 1."""

_CONTAINER = re.compile(
    r"(?:(?:docker|libpod|cri-containerd|crio|containerd|podman)-)?([0-9a-f]{64})(?:\.scope)?"
)
"""How Docker, Podman, containerd and CRI-O name groups, under systemd and without it."""

_POD = re.compile(
    r"(?:kubepods.*-)?pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})(?:\.slice)?"
)
"""How the kubelet names a pod's group; systemd's names cannot hold dashes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process lives, None for what it is not in."""

    unit: str | None = None
    container: str | None = None
    pod_uid: str | None = None


NOWHERE = Place()
"""Where a process is of which nothing is known."""


def parse_cgroup(text: str) -> Place:
    """Read the content of `/proc/PID/cgroup`. Never raises: what is not understood says nothing."""
    components = _components(text)
    unit = container = pod = None
    for component in components:
        if match := _POD.fullmatch(component):
            pod = pod or match[1].replace("_", "-")
        elif match := _CONTAINER.fullmatch(component):
            container = match[1]
        if component.endswith((".service", ".scope")):
            unit = component
        if unit or container:
            break
    return Place(unit=unit, container=container, pod_uid=pod)


def _components(text: str) -> Iterator[str]:
    """Yield the path's parts, none for a place outside our own view of the hierarchy."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        hierarchy, _, path = rest.partition(":")
        if hierarchy in {UNIFIED, SYSTEMD} and number.isascii() and number.isdigit():
            paths[hierarchy] = path
    chosen = next((p for h in (UNIFIED, SYSTEMD) if (p := paths.get(h, "/")) != "/"), "/")
    parts = chosen.strip("/").split("/")
    return iter(()) if ".." in parts else iter(parts)
