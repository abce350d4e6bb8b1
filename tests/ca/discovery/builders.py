"""Short ways to write resources, worlds and proxies in the tests of discovery."""

from __future__ import annotations

from typing import Any

from ca.discovery.viewer import Viewer
from ca.discovery.world import World
from ca.store.catalog import Change, InForce, ident_of
from mesh.resources.loader import KINDS, load_objects
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.problem import Refused
from mesh.resources.values import Resource


def resource(kind: str, key: str, spec: Any = None, **metadata: Any) -> Resource:
    """Load one resource; `key` is NAMESPACE/NAME."""
    namespace, _, name = key.partition("/")
    data = {
        "apiVersion": KINDS[kind].groups[0],
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": spec or {},
    }
    loaded = load_objects([data], already_admitted=True)
    assert loaded.problems == ()
    return loaded.resources[0]


def authz(key: str, labels: dict[str, str] | None = None, action: str = "ALLOW") -> Resource:
    selector = {} if labels is None else {"selector": {"matchLabels": labels}}
    return resource("AuthorizationPolicy", key, {"action": action, "rules": [{}], **selector})


def peer_authn(key: str, labels: dict[str, str] | None = None, mode: str = "STRICT") -> Resource:
    selector = {} if labels is None else {"selector": {"matchLabels": labels}}
    return resource("PeerAuthentication", key, {"mtls": {"mode": mode}, **selector})


def request_authn(key: str, labels: dict[str, str] | None = None) -> Resource:
    selector = {} if labels is None else {"selector": {"matchLabels": labels}}
    return resource("RequestAuthentication", key, selector)


def service(
    key: str,
    *hosts: str,
    selects: dict[str, str] | None = None,
    export: tuple[str, ...] = (),
    endpoints: Any = None,
    port: int = 80,
) -> Resource:
    spec: dict[str, Any] = {
        "hosts": list(hosts),
        "ports": [{"number": port, "name": "tcp"}],
        "location": "MESH_INTERNAL",
        "resolution": "STATIC",
        "exportTo": list(export),
    }
    if selects is not None:
        spec["workloadSelector"] = {"labels": selects}
    if endpoints is not None:
        spec["endpoints"] = endpoints
    return resource("ServiceEntry", key, spec)


def workload(key: str, address: str, labels: dict[str, str] | None = None) -> Resource:
    spec = {"address": address, "labels": labels or {}, "serviceAccount": "web"}
    return resource("WorkloadEntry", key, spec)


def rule(key: str, host: str, **spec: Any) -> Resource:
    return resource("DestinationRule", key, {"host": host, **spec})


def viewer(
    namespace: str = "app",
    labels: dict[str, str] | None = None,
    hosts: set[str] | None = None,
    addresses: tuple[str, ...] = (),
    own: str = "",
) -> Viewer:
    return Viewer(
        namespace=namespace,
        labels={"app": "web"} if labels is None else labels,
        hosts=None if hosts is None else frozenset(hosts),
        addresses=addresses,
        own=own,
    )


def change(before: InForce | None, after: InForce | None) -> Change:
    value = after if after is not None else before
    assert value is not None
    ident = (
        (value.kind, f"{value.namespace}/{value.name}")
        if isinstance(value, Refused)
        else ident_of(value)
    )
    return Change(ident=ident, before=before, after=after)


def world(*values: InForce, config: MeshConfig | None = None) -> World:
    made = World(config or MeshConfig())
    made.update([change(None, value) for value in values])
    return made
