"""Text to resources: good documents come out as values, bad ones as problems, none as both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from mesh.resources.checks import namespace_name, object_name
from mesh.resources.decode import Reader, closest, nearest, read_value, reader_of
from mesh.resources.errors import ResourceError, UnreadableDocument
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.networking import DestinationRule, ServiceEntry, WorkloadEntry, WorkloadGroup
from mesh.resources.problem import Finding, Problem, Refused
from mesh.resources.security import AuthorizationPolicy, PeerAuthentication, RequestAuthentication
from mesh.resources.tree import Node, Path, line_of, show_path, tree_of
from mesh.resources.validate import findings_in
from mesh.resources.validate_mesh import mesh_findings
from mesh.resources.values import Resource
from mesh.resources.yaml_text import Document, read_documents

KINDS: Mapping[str, type[Resource]] = {
    kind.__name__: kind
    for kind in (
        AuthorizationPolicy,
        DestinationRule,
        PeerAuthentication,
        RequestAuthentication,
        ServiceEntry,
        WorkloadEntry,
        WorkloadGroup,
    )
}
"""The kinds that are read, by the name in a document's `kind`."""

_READERS: Mapping[str, Reader] = {name: reader_of(kind) for name, kind in KINDS.items()}
_MESH_READER = reader_of(MeshConfig)
_SECURITY_GROUP = "security.istio.io"
"""The API group of which every kind is read here."""

MISSPELT = 0.8
"""How alike a kind must be to one of ours to be taken for a misspelling of it, from 0 to 1. A
Service is to a ServiceEntry 0.74, a ServiceMonitor 0.77; an Authorization is 0.81 to a policy."""

UNKNOWN = Refused("AuthorizationPolicy", "", "")
"""What a document of which nothing can be read may be at worst."""

_LIST_KINDS = frozenset({"List", *(f"{name}List" for name in KINDS)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a text held: valid resources, what was wrong, what is doubtful, what was passed over.

    `refused` names the resources of known kinds that are not among `resources` because of their
    problems. `unnamed` has what else is not among them, as far as it could be read: what is not
    YAML, or has no valid name, or none of our kinds. The kind is then the one that was most likely
    meant, or another controller's. `skipped` names documents of kinds that are not read; it fills
    only when that was asked for. `empty` tells that there was no text at all.
    """

    resources: tuple[Resource, ...] = ()
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    skipped: tuple[Problem, ...] = ()
    refused: tuple[Refused, ...] = ()
    unnamed: tuple[Refused, ...] = ()
    empty: bool = False


def load_resources(
    text: str,
    *,
    file: str = "<text>",
    default_namespace: str = "default",
    skip_unknown_kinds: bool = False,
    already_admitted: bool = False,
) -> Loaded:
    """Read every resource in a YAML or JSON text of one or more documents.

    A bad document is reported and leaves the others as they are. Never raises for bad input.
    With `already_admitted`, for objects that somebody's API server already holds, what admission
    would refuse is only warned of; what cannot be understood at all remains a problem.
    """
    loading = _Loading(
        file,
        default_namespace,
        skip_unknown_kinds=skip_unknown_kinds,
        already_admitted=already_admitted,
    )
    try:
        for document in read_documents(text):
            loading.document(document)
    except ResourceError as error:
        loading.problem(0, "", "", str(error))
        loading.unnamed.append(UNKNOWN)
    loading.empty = not text
    return loading.result()


def load_objects(
    objects: Iterable[object],
    *,
    source: str = "<objects>",
    default_namespace: str = "default",
    skip_unknown_kinds: bool = False,
    already_admitted: bool = False,
) -> Loaded:
    """Read resources from plain Python data, such as the JSON objects of a Kubernetes watch.

    The options are those of `load_resources`.
    """
    loading = _Loading(
        source,
        default_namespace,
        skip_unknown_kinds=skip_unknown_kinds,
        already_admitted=already_admitted,
    )
    for data in objects:
        loading.document(tree_of(data))
    return loading.result()


def load_mesh_config(
    text: str, *, file: str = "<text>"
) -> tuple[MeshConfig | None, tuple[Problem, ...]]:
    """Read the mesh settings; an empty text gives the defaults, a problem gives None."""
    try:
        documents = list(read_documents(text))
    except ResourceError as error:
        return None, (_problem(file, 0, "", "", str(error)),)
    if not documents:
        return MeshConfig(), ()
    first = documents[0]
    if isinstance(first, UnreadableDocument):
        return None, (_problem(file, first.line, "MeshConfig", "", str(first)),)
    config, findings = read_value(_MESH_READER, MeshConfig, first, ())
    if config is not None:
        findings = list(mesh_findings(config))
    if len(documents) > 1:
        findings.append(Finding((), "there must be only one document of mesh settings"))
    problems = tuple(
        _problem(
            file, line_of(first, found.path), "MeshConfig", show_path(found.path), found.message
        )
        for found in findings
    )
    return (None if problems else config), problems


@dataclass(slots=True)
class _Loading:
    """The state of one load."""

    file: str
    default_namespace: str
    skip_unknown_kinds: bool = field(kw_only=True)
    already_admitted: bool = field(kw_only=True)
    resources: dict[tuple[str, str], Resource] = field(
        default_factory=dict[tuple[str, str], Resource]
    )
    problems: list[Problem] = field(default_factory=list[Problem])
    warnings: list[Problem] = field(default_factory=list[Problem])
    skipped: list[Problem] = field(default_factory=list[Problem])
    refused: list[Refused] = field(default_factory=list[Refused])
    unnamed: list[Refused] = field(default_factory=list[Refused])
    empty: bool = False

    def result(self) -> Loaded:
        return Loaded(
            resources=tuple(self.resources.values()),
            problems=tuple(self.problems),
            warnings=tuple(self.warnings),
            skipped=tuple(self.skipped),
            refused=tuple(self.refused),
            unnamed=tuple(self.unnamed),
            empty=self.empty,
        )

    def problem(self, line: int, resource: str, place: str, message: str) -> None:
        self.problems.append(_problem(self.file, line, resource, place, message))

    def document(self, document: Document) -> None:
        if isinstance(document, UnreadableDocument):
            self.problem(document.line, "", "", str(document))
            self.unnamed.append(UNKNOWN)
            return
        for node in unpacked(document):
            self._resource(node)

    def _resource(self, node: Node) -> None:
        kind, version = _text_at(node, "kind"), _text_at(node, "apiVersion")
        label = _label(node, kind, self.default_namespace)
        if not kind or not version:
            missing = "apiVersion" if kind else "kind"
            self.problem(node.line, label, missing, "a resource needs an apiVersion and a kind")
            self._refuse(node, kind, version)
        elif kind not in KINDS:
            self._unknown_kind(node, kind, version, label)
        elif version not in KINDS[kind].groups:
            versions = ", ".join(KINDS[kind].groups)
            line = line_of(node, ("apiVersion",))
            message = f"{version!r} is not an apiVersion of {kind}: write one of {versions}"
            self.problem(line, label, "apiVersion", message)
            self._refuse(node, kind, version)
        else:
            self._known_kind(node, kind, version, label)

    def _unknown_kind(self, node: Node, kind: str, version: str, label: str) -> None:
        message = f"{kind} of {version} is not a kind that is read here{nearest(kind, list(KINDS))}"
        line = line_of(node, ("kind",))
        if self.skip_unknown_kinds:
            self.skipped.append(_problem(self.file, line, label, "kind", message))
        else:
            self.problem(line, label, "kind", message)
            self._refuse(node, kind, version)

    def _known_kind(self, node: Node, kind: str, version: str, label: str) -> None:
        resource, findings = read_value(_READERS[kind], KINDS[kind], node, ())
        if resource is not None:
            resource = _in_namespace(resource, node, self.default_namespace)
            findings = [*_naming_findings(resource), *findings_in(resource)]
            if (kind, resource.key) in self.resources:
                findings.append(Finding(("metadata", "name"), "this resource is given twice"))
        for found in findings:
            problem = _problem(
                self.file, line_of(node, found.path), label, show_path(found.path), found.message
            )
            tolerated = found.warning or (self.already_admitted and resource is not None)
            (self.warnings if tolerated else self.problems).append(problem)
        if resource is not None and (
            self.already_admitted or all(found.warning for found in findings)
        ):
            self.resources[kind, resource.key] = resource
        else:
            self._refuse(node, kind, version)

    def _refuse(self, node: Node, kind: str, version: str) -> None:
        namespace, name = _identity(node, self.default_namespace)
        if kind in KINDS and namespace and name:
            self.refused.append(Refused(kind, namespace, name))
        else:
            self.unnamed.append(Refused(_kind_meant(kind, version), namespace, name))


def _problem(file: str, line: int, resource: str, place: str, message: str) -> Problem:
    return Problem(file=file, line=line, resource=resource, field=place, message=message)


def unpacked(node: Node) -> Iterator[Node]:
    """Yield the resources of a document: itself, or the items of a `kubectl get -o yaml` list."""
    items = node.value.get("items") if isinstance(node.value, Mapping) else None
    if _text_at(node, "kind") in _LIST_KINDS and items and isinstance(items.value, tuple):
        yield from items.value
    else:
        yield node


def _text_at(node: Node, *path: str) -> str:
    for step in path:
        child = node.value.get(step) if isinstance(node.value, Mapping) else None
        if child is None:
            return ""
        node = child
    return node.value if isinstance(node.value, str) else ""


def _identity(node: Node, default_namespace: str) -> tuple[str, str]:
    """Return namespace and name, each empty if it is none; a default is for what is left out."""
    metadata = node.value.get("metadata") if isinstance(node.value, Mapping) else None
    if metadata is None or not isinstance(metadata.value, Mapping):
        return "", ""
    given = metadata.value.get("namespace")
    left_out = given is None or given.value in {None, ""}
    namespace = default_namespace if left_out else _text_at(metadata, "namespace")
    name = _text_at(metadata, "name")
    return (
        "" if namespace_name(namespace) else namespace,
        "" if object_name(name) else name,
    )


def _kind_meant(kind: str, version: str) -> str:
    """Return which of our kinds a document most likely means; `kind` itself if it means none."""
    if kind in KINDS:
        return kind
    if close := closest(kind, list(KINDS), MISSPELT):
        return close
    ours = not kind or kind in _LIST_KINDS or version.partition("/")[0] == _SECURITY_GROUP
    return UNKNOWN.kind if ours else kind


def _label(node: Node, kind: str, default_namespace: str) -> str:
    name = _text_at(node, "metadata", "name")
    namespace = _text_at(node, "metadata", "namespace") or default_namespace
    return " ".join(part for part in (kind, f"{namespace}/{name}" if name else "") if part)


def _in_namespace(resource: Resource, node: Node, default_namespace: str) -> Resource:
    if _text_at(node, "metadata", "namespace"):
        return resource
    return replace(resource, metadata=replace(resource.metadata, namespace=default_namespace))


def _naming_findings(resource: Resource) -> Iterator[Finding]:
    name: Path = ("metadata", "name")
    if wrong := object_name(resource.metadata.name):
        yield Finding(name, wrong)
    if wrong := namespace_name(resource.metadata.namespace):
        yield Finding(("metadata", "namespace"), wrong)
