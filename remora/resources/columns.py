"""Resources as lines of text, with the columns that Istio's own definitions print."""

from __future__ import annotations

from collections.abc import Container, Sequence
from datetime import datetime, timedelta

from mesh.resources.networking import DestinationRule, ServiceEntry, WorkloadEntry
from mesh.resources.security import AuthorizationPolicy, PeerAuthentication
from mesh.resources.values import Resource

GAP = "   "
"""Between two columns, as kubectl has it."""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of text under the first, which is the head."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def resource_table(resources: Sequence[Resource], now: datetime, in_files: Container[str]) -> str:
    """Return resources of one kind as a table; `in_files` are WorkloadEntries nobody registered."""
    head = ("NAMESPACE", "NAME", *columns(resources[0], in_files), "AGE")
    rows = [
        (
            one.metadata.namespace,
            one.metadata.name,
            *columns(one, in_files).values(),
            age(one.metadata.creation_timestamp, now),
        )
        for one in resources
    ]
    return table([head, *rows])


def columns(resource: Resource, in_files: Container[str]) -> dict[str, str]:
    """Return what is worth seeing of a resource, by the column's head."""
    match resource:
        case AuthorizationPolicy():
            return {"ACTION": resource.spec.action}
        case PeerAuthentication():
            return {"MODE": resource.spec.mtls.mode}
        case DestinationRule():
            return {"HOST": resource.spec.host}
        case ServiceEntry():
            return {
                "HOSTS": ",".join(resource.spec.hosts),
                "LOCATION": resource.spec.location,
                "RESOLUTION": resource.spec.resolution,
            }
        case WorkloadEntry():
            source = "file" if resource.key in in_files else "registered"
            return {"ADDRESS": resource.spec.address, "SOURCE": source}
        case _:
            return {}


def age(since: datetime | None, now: datetime) -> str:
    """Write how long ago something was, in its largest unit: 5s, 3m, 2h, 4d."""
    if since is None:
        return "<unknown>"
    passed = max(now - since, timedelta())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if passed.total_seconds() >= 2 * size or (unit == "d" and passed.days):
            return f"{int(passed.total_seconds() // size)}{unit}"
    return f"{int(passed.total_seconds())}s"
