"""A small mesh that the tests of the tools ask about."""

from __future__ import annotations

from mesh.resources.loader import load_mesh_config, load_resources
from mesh.resources.mesh_config import MeshConfig
from remora.policy_tools.world import World

CATALOG = "catalog.shop.svc.cluster.local"

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
"""

ALLOW_WEB = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: catalog, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  rules:
  - from: [{source: {serviceAccounts: [web]}}]
    to: [{operation: {methods: [GET], paths: [/products/*]}}]
"""

REGISTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog.shop.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - {number: 80, name: http, protocol: HTTP, targetPort: 8080}
  - {number: 9000, name: admin, protocol: TCP}
  workloadSelector: {labels: {app: catalog}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: catalog-1, namespace: shop}
spec: {address: 10.0.0.7, labels: {app: catalog}, serviceAccount: catalog, ports: {admin: 9001}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web-1, namespace: shop}
spec: {address: 10.0.0.8, labels: {app: web}, serviceAccount: web}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: old-1, namespace: shop}
spec: {address: 10.0.0.9, labels: {app: old}}
"""


def text(*documents: str) -> str:
    """Join documents to one text."""
    return "\n---\n".join(documents)


def world(*documents: str, mesh: str = "") -> World:
    """Build a world of documents, which must all be good."""
    loaded = load_resources(text(*documents))
    assert loaded.problems == ()
    config, problems = load_mesh_config(mesh)
    assert problems == ()
    return World(loaded.resources, config or MeshConfig())
