"""A control plane's words for tests: resources in responses, without a network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from mesh.discovery.codec import encode_mesh_config, encode_resource, url_of
from mesh.discovery.node import ProxyNode
from mesh.discovery.types import MESH_CONFIG_URL
from mesh.protos.discovery_pb2 import DeltaDiscoveryResponse
from mesh.protos.discovery_pb2 import Resource as Enveloped
from mesh.resources.loader import load_objects
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.values import Resource
from proxy.discovery_state import SUBSCRIBED, DiscoveryState

NODE = ProxyNode(
    name="httpbin-1", namespace="foo", service_account="httpbin", labels={"app": "httpbin"}
)


def resources(text: str) -> tuple[Resource, ...]:
    """Read YAML documents that must all be good."""
    return read_all(yaml.safe_load_all(text))


def read_all(objects: Iterable[Any]) -> tuple[Resource, ...]:
    loaded = load_objects(one for one in objects if one is not None)
    assert loaded.problems == (), loaded.problems
    return loaded.resources


def respond(
    url: str,
    *envelopes: Enveloped,
    removed: Iterable[str] = (),
    version: str = "1",
    nonce: str = "n1",
) -> DeltaDiscoveryResponse:
    return DeltaDiscoveryResponse(
        system_version_info=version,
        resources=envelopes,
        type_url=url,
        nonce=nonce,
        removed_resources=removed,
    )


def everything(
    *given: Resource, config: MeshConfig | None = None, version: str = "1"
) -> list[DeltaDiscoveryResponse]:
    """Return one response for each type, as after a subscription."""
    settings = encode_mesh_config(config or MeshConfig(), version)
    return [
        respond(
            url,
            *(
                [settings]
                if url == MESH_CONFIG_URL
                else [encode_resource(one, version) for one in given if url_of(one) == url]
            ),
            version=version,
            nonce=f"{version}-{index}",
        )
        for index, url in enumerate(SUBSCRIBED)
    ]


def told(
    *given: Resource, config: MeshConfig | None = None, node: ProxyNode = NODE
) -> DiscoveryState:
    """Return the state of a proxy that was told all of `given`."""
    state = DiscoveryState(node)
    for response in everything(*given, config=config):
        assert not state.take(response).HasField("error_detail")
    return state
