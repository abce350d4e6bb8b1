"""Resources in the envelopes of a discovery stream, and back.

The envelope is Istio's (istio.mcp.v1alpha1.Resource). The body is a google.protobuf.Struct with
the `spec` as JSON: whoever reads it sees every field that was written, also one that only a newer
version knows, and so can tell that it does not understand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct, Value

from mesh.discovery.errors import NotUnderstood
from mesh.discovery.types import MESH_CONFIG_NAME, MESH_CONFIG_URL, RESOURCE_URLS, URL_OF
from mesh.protos.discovery_pb2 import Resource as Enveloped
from mesh.protos.mcp_pb2 import Resource as Envelope
from mesh.resources.decode import read_value, reader_of
from mesh.resources.loader import load_objects
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.problem import Refused
from mesh.resources.tree import show_path, tree_of
from mesh.resources.values import Resource

_MESH_READER = reader_of(MeshConfig)


def encode_resource(resource: Resource, version: str) -> Enveloped:
    """Put a resource into its envelope, named `NAMESPACE/NAME`."""
    metadata = resource.metadata
    envelope = Envelope()
    envelope.metadata.name = resource.key
    envelope.metadata.version = metadata.resource_version
    envelope.metadata.labels.update(metadata.labels)
    envelope.metadata.annotations.update(metadata.annotations)
    if metadata.creation_timestamp is not None:
        envelope.metadata.create_time.FromDatetime(metadata.creation_timestamp)
    spec = cast("Any", resource).spec
    _put_body(envelope, spec)
    return _wrap(resource.key, version, envelope)


def encode_unreadable(refused: Refused, version: str) -> Enveloped:
    """Announce a resource that exists but cannot be read: an envelope without a body.

    Every receiver finds it not understood, and so fails closed. What has no namespace, as the mesh
    settings, goes by its bare name.
    """
    name = f"{refused.namespace}/{refused.name}" if refused.namespace else refused.name
    envelope = Envelope()
    envelope.metadata.name = name
    return _wrap(name, version, envelope)


def encode_mesh_config(config: MeshConfig, version: str) -> Enveloped:
    """Put the mesh settings into an envelope."""
    envelope = Envelope()
    envelope.metadata.name = MESH_CONFIG_NAME
    _put_body(envelope, config)
    return _wrap(MESH_CONFIG_NAME, version, envelope)


def decode_resource(type_url: str, untrusted: Enveloped) -> Resource:
    """Read a resource of a type of RESOURCE_URLS. Raises NotUnderstood, never anything else.

    What the control plane admitted is not judged again; but every field must be known.
    """
    kind = RESOURCE_URLS.get(type_url)
    if kind is None:
        raise NotUnderstood(type_url, untrusted.name, "this kind of resource is not known here")
    envelope, spec = _open(type_url, untrusted)
    namespace, _, name = envelope.metadata.name.partition("/")
    metadata: dict[str, object] = {
        "name": name,
        "namespace": namespace,
        "labels": dict(envelope.metadata.labels),
        "annotations": dict(envelope.metadata.annotations),
        "resourceVersion": envelope.metadata.version,
    }
    if envelope.metadata.HasField("create_time"):
        metadata["creationTimestamp"] = envelope.metadata.create_time.ToJsonString()
    whole = {
        "apiVersion": kind.groups[0],
        "kind": kind.__name__,
        "metadata": metadata,
        "spec": spec,
    }
    loaded = load_objects([whole], already_admitted=True)
    if not loaded.resources:
        why = "; ".join(f"{problem.field}: {problem.message}" for problem in loaded.problems)
        raise NotUnderstood(type_url, untrusted.name, why)
    return loaded.resources[0]


def decode_mesh_config(untrusted: Enveloped) -> MeshConfig:
    """Read the mesh settings. Raises NotUnderstood."""
    _, spec = _open(MESH_CONFIG_URL, untrusted)
    config, findings = read_value(_MESH_READER, MeshConfig, tree_of(spec), ())
    if config is None:
        why = "; ".join(f"{show_path(found.path)}: {found.message}" for found in findings)
        raise NotUnderstood(MESH_CONFIG_URL, untrusted.name, why)
    return config


def hosts_named(untrusted: Enveloped) -> tuple[str, ...]:
    """Return the hosts that an unreadable resource seems to be about; none if that is unknown.

    For a ServiceEntry or DestinationRule that is not understood, so that only its hosts are out of
    reach. A short name is given as it stands.
    """
    try:
        _, spec = _open("", untrusted)
    except NotUnderstood:
        return ()
    hosts = spec.get("hosts", [spec.get("host")])
    found = cast("list[object]", hosts) if isinstance(hosts, list) else []
    names = [host for host in found if isinstance(host, str) and host]
    return tuple(names) if len(names) == len(found) else ()


def url_of(resource: Resource) -> str:
    """Return the type URL that a resource travels under."""
    return URL_OF[type(resource)]


def _put_body(envelope: Envelope, value: msgspec.Struct) -> None:
    body = Struct()
    body.update(msgspec.to_builtins(value, str_keys=True))
    envelope.body.Pack(body)


def _wrap(name: str, version: str, envelope: Envelope) -> Enveloped:
    content = AnyMessage()
    content.Pack(envelope)
    return Enveloped(name=name, version=version, resource=content)


def _open(type_url: str, untrusted: Enveloped) -> tuple[Envelope, Mapping[str, object]]:
    envelope, body = Envelope(), Struct()
    try:
        if not untrusted.resource.Unpack(envelope):
            raise NotUnderstood(type_url, untrusted.name, "it is not in Istio's MCP envelope")
        if not envelope.HasField("body"):
            raise NotUnderstood(
                type_url, untrusted.name, "the control plane holds it but could not read it"
            )
        if not envelope.body.Unpack(body):
            raise NotUnderstood(
                type_url, untrusted.name, f"its body is {envelope.body.type_url}, not a Struct"
            )
    except DecodeError as error:
        raise NotUnderstood(type_url, untrusted.name, "it cannot be decoded") from error
    if envelope.metadata.name != untrusted.name:
        raise NotUnderstood(
            type_url, untrusted.name, f"its envelope names {envelope.metadata.name!r}"
        )
    return envelope, {key: _plain(value) for key, value in body.fields.items()}


def _plain(value: Value) -> object:
    """Return a Struct's value as JSON data. Struct knows only floats, so whole ones become ints."""
    match value.WhichOneof("kind"):
        case "struct_value":
            return {key: _plain(item) for key, item in value.struct_value.fields.items()}
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None
