from __future__ import annotations

from typing import Any

import pytest

from mesh.discovery.errors import BadNode
from mesh.discovery.node import MAX_ADDRESSES, MAX_LABELS, ProxyNode, decode_node, encode_node
from mesh.protos.discovery_pb2 import Node

NODE = ProxyNode(
    name="httpbin-1",
    namespace="foo",
    service_account="httpbin",
    labels={"app": "httpbin", "version": "v1"},
    addresses=("10.0.0.1", "fd00::1"),
    ports={"http": 8080},
    group="httpbin",
    version="0.1.0",
)


def test_a_node_survives_the_journey() -> None:
    assert decode_node(Node.FromString(encode_node(NODE).SerializeToString())) == NODE


def test_the_id_is_in_istios_form() -> None:
    assert NODE.id == "sidecar~10.0.0.1~httpbin-1.foo~foo.svc.cluster.local"


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"NAME": "a"},
        {"NAME": 5, "NAMESPACE": "b"},
        {"NAME": "a", "NAMESPACE": "b", "LABELS": "c"},
        {"NAME": "a", "NAMESPACE": "b", "LABELS": {"c": 5}},
        {"NAME": "a", "NAMESPACE": "b", "LABELS": {str(i): "" for i in range(MAX_LABELS + 1)}},
        {"NAME": "a", "NAMESPACE": "b", "POD_PORTS": {"http": "x"}},
        {"NAME": "a", "NAMESPACE": "b", "POD_PORTS": {"http": 70000}},
        {"NAME": "a", "NAMESPACE": "b", "POD_PORTS": {"http": 80.5}},
        {"NAME": "a", "NAMESPACE": "b", "INSTANCE_IPS": ",".join(["::1"] * (MAX_ADDRESSES + 1))},
    ],
    ids=lambda metadata: ",".join(metadata) + f" {len(str(metadata))}",
)
def test_a_node_that_says_nonsense_is_refused(metadata: dict[str, Any]) -> None:
    node = Node(id="x")
    node.metadata.update(metadata)

    with pytest.raises(BadNode):
        decode_node(node)
