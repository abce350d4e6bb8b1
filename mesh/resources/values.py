"""What all resources share: their base, metadata, selectors and references.

Values are msgspec structs, so that the control plane and the proxies can exchange them as JSON in
Istio's own field names; a field that a reader does not know is an error there as here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

Text = Annotated[str, Meta(min_length=1)]
"""A text that must not be empty when it is given."""

Labels = Mapping[str, str]


class Value(
    Struct,
    frozen=True,
    kw_only=True,
    rename="camel",
    omit_defaults=True,
    forbid_unknown_fields=True,
):
    """Base of all resource values: immutable, with Istio's lowerCamelCase names in JSON."""

    also_known: ClassVar[frozenset[str]] = frozenset()
    """Fields of Istio's schema that are accepted and left out: nothing here acts on them."""

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other spellings that Istio's schema takes for a field, and the attribute they mean."""


class Metadata(Value, frozen=True, kw_only=True):
    """Kubernetes object metadata, as far as the mesh uses it."""

    name: str
    namespace: str = "default"
    labels: Labels = {}
    annotations: Labels = {}
    creation_timestamp: datetime | None = None
    resource_version: str = ""

    also_known: ClassVar[frozenset[str]] = frozenset(
        {
            "clusterName", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers",
            "generateName", "generation", "managedFields", "ownerReferences", "selfLink", "uid",
        }
    )  # fmt: skip


class WorkloadSelector(Value, frozen=True, kw_only=True):
    """Which workloads of a namespace a policy is for: all that carry every listed label."""

    match_labels: Labels = {}


class TargetRef(Value, frozen=True, kw_only=True):
    """A gateway, waypoint or service that a policy is attached to instead of a selector."""

    group: str = ""
    kind: Text
    name: Text
    namespace: str = ""


class Resource(Value, frozen=True, kw_only=True):
    """Base of the kinds: apiVersion and metadata; each kind adds its spec."""

    api_version: str
    metadata: Metadata

    also_known: ClassVar[frozenset[str]] = frozenset({"status"})
    groups: ClassVar[tuple[str, ...]] = ()
    """The apiVersions this kind is read under."""

    @property
    def key(self) -> str:
        """Name the resource as messages do: `NAMESPACE/NAME`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"


def age_order(resource: Resource) -> tuple[float, str, str]:
    """Sort key for Istio's age order: oldest first, then name, then namespace, byte by byte.

    Istio: timestamps have one-second resolution, and a missing one sorts first.
    """
    created = resource.metadata.creation_timestamp
    seconds = float("-inf") if created is None else float(int(created.timestamp()))
    return seconds, resource.metadata.name, resource.metadata.namespace
