"""The types of resources on a discovery stream.

Istio's control plane serves its own resources over xDS under these URLs (`GROUP/VERSION/KIND`),
and the mesh settings beside them.
"""

from __future__ import annotations

from collections.abc import Mapping

from mesh.resources.loader import KINDS
from mesh.resources.values import Resource

MESH_CONFIG_URL = "core/v1alpha1/MeshConfig"
"""Istio: the type of the mesh settings, of which there is one resource."""

MESH_CONFIG_NAME = "mesh"

RESOURCE_URLS: Mapping[str, type[Resource]] = {
    f"{kind.groups[0]}/{name}": kind for name, kind in KINDS.items()
}
"""Every kind of resource by its type URL, in the preferred version whatever was written."""

URL_OF: Mapping[type[Resource], str] = {kind: url for url, kind in RESOURCE_URLS.items()}

EVERYTHING = "*"
"""xDS: a subscription to whatever the server thinks the client should have."""
