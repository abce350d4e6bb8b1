"""What an analysis looks at: resources, and what their cluster holds besides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Self, cast

from msgspec import Struct, ValidationError, convert, field

from mesh.resources.loader import KINDS, load_objects
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.problem import Problem
from mesh.resources.values import Labels, Resource

PROXY_CONTAINER = "istio-proxy"
"""Istio: the name of the sidecar's container, by which a pod is known to be in the mesh."""

CLAIM_HEADER = "@request.auth.claims"
"""Istio: beginning of a route's header that stands for a claim of the request's token."""

INJECT = "sidecar.istio.io/inject"
"""Istio: the label, formerly annotation, by which a pod asks for a sidecar or declines it."""

NAMESPACE_INJECTION = "istio-injection"
"""Istio: the label by which a namespace has sidecars given to its pods, if it is `enabled`."""

REDIRECTION = "ambient.istio.io/redirection"
"""Istio: the annotation, `enabled`, of a pod that is in the mesh without a sidecar."""

BLOCKED_CIDRS = "BLOCKED_CIDRS_IN_JWKS_URIS"
"""Istio: the control plane's environment variable with the addresses that hold no key sets."""

MESH_GATEWAY = "mesh"
"""Istio: the name that stands for all sidecars in a VirtualService's gateways."""


@dataclass(frozen=True, slots=True)
class Pod:
    """One workload of a cluster."""

    namespace: str
    name: str
    labels: Labels
    in_mesh: bool


@dataclass(frozen=True, slots=True)
class ClaimRoute:
    """A VirtualService that routes by a claim: the header, and its gateways as `NAMESPACE/NAME`."""

    namespace: str
    name: str
    header: str
    gateways: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Resources with what was wrong in them, and the cluster's namespaces, pods and gateways.

    `unrestricted` are the deployments of control planes, as `NAMESPACE/NAME`, that would fetch
    key sets from any address.
    """

    config: MeshConfig
    resources: tuple[Resource, ...] = ()
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    namespaces: tuple[str, ...] = ()
    pods: tuple[Pod, ...] = ()
    gateways: Mapping[str, Labels]
    claim_routes: tuple[ClaimRoute, ...] = ()
    unrestricted: tuple[str, ...] = ()

    @classmethod
    def of(cls, objects: Iterable[object], config: MeshConfig | None = None) -> Self:
        """Sort Kubernetes objects by what they are; kinds that nothing asks for are left out."""
        everything = list(objects)
        loaded = load_objects(one for one in everything if _kind(one) in KINDS)
        return replace(
            cls.of_cluster(everything, config or MeshConfig()),
            resources=loaded.resources,
            problems=loaded.problems,
            warnings=loaded.warnings,
        )

    @classmethod
    def of_cluster(cls, objects: Iterable[object], config: MeshConfig) -> Self:
        """Take only what a cluster holds besides the resources that decide."""
        others = [other for one in objects if (other := _read(one)) is not None]
        injecting = frozenset(
            one.metadata.name for one in others if one.kind == "Namespace" and _injects(one)
        )
        return cls(
            config=config,
            namespaces=tuple(one.metadata.name for one in others if one.kind == "Namespace"),
            pods=tuple(_pod(one, injecting) for one in others if one.kind == "Pod"),
            gateways={
                f"{one.metadata.namespace}/{one.metadata.name}": _labels(one.spec.selector)
                for one in others
                if one.kind == "Gateway" and one.api_version.startswith("networking.istio.io/")
            },
            claim_routes=tuple(
                route
                for one in others
                if one.kind == "VirtualService" and (route := _claim_route(one)) is not None
            ),
            unrestricted=tuple(
                f"{one.metadata.namespace}/{one.metadata.name}"
                for one in others
                if one.kind == "Deployment" and _fetches_from_anywhere(one)
            ),
        )


class _Meta(Struct, frozen=True):
    name: str = ""
    namespace: str = "default"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class _Variable(Struct, frozen=True):
    name: str = ""
    value: str = ""


class _Container(Struct, frozen=True):
    name: str = ""
    env: list[_Variable] = []


class _Match(Struct, frozen=True):
    headers: dict[str, object] = {}
    without_headers: dict[str, object] = field(
        name="withoutHeaders", default_factory=dict[str, object]
    )


class _Route(Struct, frozen=True):
    match: list[_Match] = []


class _PodSpec(Struct, frozen=True):
    containers: list[_Container] = []


class _Template(Struct, frozen=True):
    spec: _PodSpec = _PodSpec()


class _Spec(Struct, frozen=True):
    """What matters of any kind's spec, together; a gateway's selector is the labels themselves."""

    containers: list[_Container] = []
    init_containers: list[_Container] = field(
        name="initContainers", default_factory=list[_Container]
    )
    selector: dict[str, object] = {}
    template: _Template = _Template()
    gateways: list[str] = []
    http: list[_Route] = []


class _Object(Struct, frozen=True):
    """The few fields of other kinds that matter here; all else is ignored."""

    kind: str
    api_version: str = field(name="apiVersion", default="")
    metadata: _Meta = _Meta()
    spec: _Spec = _Spec()


OTHER_KINDS = frozenset({"Deployment", "Gateway", "Namespace", "Pod", "VirtualService"})
"""Kinds of a cluster that an analysis looks at besides those that decide."""


def _kind(data: object) -> str:
    if not isinstance(data, Mapping):
        return ""
    return str(cast("Mapping[str, object]", data).get("kind", ""))


def _read(data: object) -> _Object | None:
    if _kind(data) not in OTHER_KINDS:
        return None
    try:
        return convert(data, _Object)
    except ValidationError:
        return None  # Somebody else's kind in a shape unknown here; nothing is decided by it.


def _labels(selector: Mapping[str, object]) -> Labels:
    return {key: str(value) for key, value in selector.items()}


def _injects(namespace: _Object) -> bool:
    return namespace.metadata.labels.get(NAMESPACE_INJECTION) == "enabled"


def _pod(one: _Object, injecting: frozenset[str]) -> Pod:
    meta = one.metadata
    return Pod(meta.namespace, meta.name, meta.labels, _in_mesh(one, injecting))


def _in_mesh(one: _Object, injecting: frozenset[str]) -> bool:
    """Istio: a pod has a proxy, or will be given one: its label, annotation or namespace says."""
    meta = one.metadata
    containers = (*one.spec.containers, *one.spec.init_containers)
    if any(container.name == PROXY_CONTAINER for container in containers):
        return True
    if meta.annotations.get(REDIRECTION) == "enabled":
        return True
    for given in (meta.labels, meta.annotations):
        if INJECT in given:
            return given[INJECT] == "true"
    return meta.namespace in injecting


def _fetches_from_anywhere(deployment: _Object) -> bool:
    if deployment.metadata.labels.get("app") != "istiod":
        return False
    variables = (
        variable
        for container in deployment.spec.template.spec.containers
        for variable in container.env
    )
    return not any(one.name == BLOCKED_CIDRS and one.value for one in variables)


def _claim_route(one: _Object) -> ClaimRoute | None:
    headers = (
        header
        for route in one.spec.http
        for match in route.match
        for header in (*match.headers, *match.without_headers)
    )
    header = next((header for header in headers if header.startswith(CLAIM_HEADER)), None)
    if header is None:
        return None
    namespace = one.metadata.namespace
    gateways = tuple(
        name if "/" in name else f"{namespace}/{name}"
        for name in one.spec.gateways
        if name != MESH_GATEWAY
    )
    return ClaimRoute(namespace, one.metadata.name, header, gateways)
