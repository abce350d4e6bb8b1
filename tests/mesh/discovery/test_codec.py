from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.struct_pb2 import Struct

from mesh.discovery.codec import (
    decode_mesh_config,
    decode_resource,
    encode_mesh_config,
    encode_resource,
    encode_unreadable,
    url_of,
)
from mesh.discovery.errors import NotUnderstood
from mesh.discovery.types import MESH_CONFIG_URL
from mesh.protos.discovery_pb2 import Resource as Enveloped
from mesh.protos.mcp_pb2 import Resource as Envelope
from mesh.resources.loader import load_resources
from mesh.resources.mesh_config import MeshConfig, OutboundMode, OutboundTrafficPolicy
from mesh.resources.problem import Refused
from mesh.resources.values import Resource

AUTHORIZATION_POLICY = "security.istio.io/v1/AuthorizationPolicy"

EVERY_KIND = """
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata:
  name: ports
  namespace: foo
  creationTimestamp: 2026-01-02T03:04:05Z
  resourceVersion: "7"
  labels: {team: a}
spec: {selector: {matchLabels: {app: x}}, portLevelMtls: {8080: {mode: STRICT}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: foo, annotations: {istio.io/dry-run: "true"}}
spec:
  action: DENY
  rules:
  - from: [{source: {notPrincipals: ["*"]}}]
    to: [{operation: {ports: ["8080"]}}]
    when: [{key: connection.sni, values: [a]}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: foo}
spec: {jwtRules: [{issuer: me, jwksUri: "https://keys.example"}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: rule, namespace: foo}
spec:
  host: a.example
  trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: ISTIO_MUTUAL}}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: service, namespace: foo}
spec:
  hosts: [a.example]
  ports: [{number: 80, name: http, targetPort: 8080}]
  location: MESH_INTERNAL
  resolution: STATIC
  workloadSelector: {labels: {app: x}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: workload, namespace: foo}
spec: {address: 10.0.0.1, ports: {http: 8080}, labels: {app: x}, serviceAccount: sa}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: group, namespace: foo}
spec: {template: {serviceAccount: sa}}
"""


def resources() -> tuple[Resource, ...]:
    loaded = load_resources(EVERY_KIND)
    assert not loaded.problems
    return loaded.resources


@pytest.mark.parametrize("resource", resources(), ids=lambda resource: type(resource).__name__)
def test_every_kind_survives_the_journey(resource: Resource) -> None:
    wire = Enveloped.FromString(encode_resource(resource, "v1").SerializeToString())

    assert (wire.name, wire.version) == (resource.key, "v1")
    arrived = decode_resource(url_of(resource), wire)
    assert arrived.metadata == resource.metadata
    assert arrived.spec == resource.spec  # type: ignore[attr-defined]


def test_mesh_settings_survive_the_journey() -> None:
    config = MeshConfig(
        trust_domain="td1",
        trust_domain_aliases=("td2",),
        outbound_traffic_policy=OutboundTrafficPolicy(mode=OutboundMode.REGISTRY_ONLY),
    )

    assert decode_mesh_config(encode_mesh_config(config, "v1")) == config


def test_a_field_of_a_newer_version_is_not_understood() -> None:
    wire = _with_spec({"action": "DENY", "rules": [{}], "onWeekends": True})

    with pytest.raises(NotUnderstood, match="onWeekends") as caught:
        decode_resource(AUTHORIZATION_POLICY, wire)
    assert caught.value.name == "foo/deny"


def test_an_action_of_a_newer_version_is_not_understood() -> None:
    with pytest.raises(NotUnderstood, match="must be one of"):
        decode_resource(AUTHORIZATION_POLICY, _with_spec({"action": "TARPIT"}))


def test_a_kind_of_a_newer_version_is_not_understood() -> None:
    with pytest.raises(NotUnderstood, match="kind of resource is not known"):
        decode_resource("security.istio.io/v9/Moat", _with_spec({}))


def test_an_unreadable_resource_is_announced_and_not_understood() -> None:
    refused = Refused("AuthorizationPolicy", "foo", "deny")

    with pytest.raises(NotUnderstood, match="could not read"):
        decode_resource(AUTHORIZATION_POLICY, encode_unreadable(refused, "v1"))


@pytest.mark.parametrize(
    "content",
    [
        AnyMessage(),
        AnyMessage(type_url="x/y", value=b"z"),
        AnyMessage(type_url="type.googleapis.com/istio.mcp.v1alpha1.Resource", value=b"\xff"),
    ],
    ids=["nothing", "another type", "not a message"],
)
def test_garbage_is_not_understood(content: AnyMessage) -> None:
    wire = Enveloped(name="foo/deny", resource=content)

    with pytest.raises(NotUnderstood):
        decode_resource(AUTHORIZATION_POLICY, wire)
    with pytest.raises(NotUnderstood):
        decode_mesh_config(wire)


def test_a_body_in_another_encoding_is_not_understood() -> None:
    envelope = Envelope()
    envelope.metadata.name = "foo/deny"
    envelope.body.type_url = "type.googleapis.com/istio.security.v1beta1.AuthorizationPolicy"
    content = AnyMessage()
    content.Pack(envelope)

    with pytest.raises(NotUnderstood, match="not a Struct"):
        decode_resource(AUTHORIZATION_POLICY, Enveloped(name="foo/deny", resource=content))


def test_an_envelope_under_another_name_is_not_understood() -> None:
    wire = _with_spec({"action": "DENY", "rules": [{}]})
    wire.name = "foo/other"

    with pytest.raises(NotUnderstood, match="names 'foo/deny'"):
        decode_resource(AUTHORIZATION_POLICY, wire)


def test_mesh_settings_of_a_newer_version_are_not_understood() -> None:
    wire = encode_mesh_config(MeshConfig(), "v1")
    envelope, body = Envelope(), Struct()
    wire.resource.Unpack(envelope)
    body.update({"trustDomain": 5})
    envelope.body.Pack(body)
    wire.resource.Pack(envelope)

    with pytest.raises(NotUnderstood, match="trustDomain") as caught:
        decode_mesh_config(wire)
    assert caught.value.type_url == MESH_CONFIG_URL


def _with_spec(spec: dict[str, Any]) -> Enveloped:
    envelope, body = Envelope(), Struct()
    envelope.metadata.name = "foo/deny"
    body.update(spec)
    envelope.body.Pack(body)
    content = AnyMessage()
    content.Pack(envelope)
    return Enveloped(name="foo/deny", version="v1", resource=content)
