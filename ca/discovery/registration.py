"""A WorkloadEntry for a proxy that registers itself, made from its WorkloadGroup as Istio does."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from ca.discovery.errors import NodeRefused
from mesh.discovery.node import GROUP_ANNOTATION, ProxyNode
from mesh.policy.outbound import TLS_MODE_LABEL
from mesh.resources.checks import MAX_NAME
from mesh.resources.networking import WorkloadEntry, WorkloadEntrySpec, WorkloadGroup
from mesh.resources.values import Metadata

GRACE = timedelta(seconds=10)
"""Istio: PILOT_WORKLOAD_ENTRY_GRACE_PERIOD, how long an entry outlives its proxy's connection."""

CONNECTED_ANNOTATION = "istio.io/connectedAt"
"""Istio: on entries that were made by registration, since when."""

_NOT_IN_NAMES = re.compile(r"[^a-z0-9.-]+")


def entry_name(group: str, address: str) -> str:
    """Name the entry: GROUP-ADDRESS, with dashes for an IPv6 address's colons."""
    name = f"{group}-{_NOT_IN_NAMES.sub('-', address.lower())}"
    return name[-MAX_NAME:].lstrip("-.").rstrip("-.")


def entry_for(node: ProxyNode, group: WorkloadGroup, now: datetime) -> WorkloadEntry:
    """Make the entry of a proxy. Raises NodeRefused when the group is not for it.

    Istio: labels of the group's template, of its metadata and of the node are joined, the later
    ones winning; the address is the node's; ports of the node add to the template's.
    """
    template = group.spec.template
    if template.service_account != node.service_account:
        raise NodeRefused(
            f"the WorkloadGroup {group.key} is for the service account "
            f"{template.service_account or '(none)'!r}, and this workload is "
            f"{node.service_account!r}: correct serviceAccount in the group's template"
        )
    if not node.addresses:
        raise NodeRefused(
            f"a workload that registers under the WorkloadGroup {group.key} must say its address"
        )
    meta = group.spec.metadata
    labels = {**template.labels, **meta.labels, **node.labels, TLS_MODE_LABEL: "istio"}
    return WorkloadEntry(
        api_version=WorkloadEntry.groups[0],
        metadata=Metadata(
            name=entry_name(group.metadata.name, node.addresses[0]),
            namespace=group.metadata.namespace,
            labels=labels,
            annotations={
                **meta.annotations,
                GROUP_ANNOTATION: group.metadata.name,
                CONNECTED_ANNOTATION: now.isoformat(),
            },
            creation_timestamp=now.replace(microsecond=0),
        ),
        spec=WorkloadEntrySpec(
            address=node.addresses[0],
            ports={**template.ports, **node.ports},
            labels=labels,
            network=template.network,
            locality=template.locality,
            weight=template.weight,
            service_account=node.service_account,
        ),
    )
