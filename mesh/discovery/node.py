"""How a proxy introduces itself: Istio's node ID and node metadata.

What a node says of itself is believed only as far as its authenticated identity covers it: the
namespace and the service account must be those of the identity. Labels are the workload's own
word, as in Istio: they choose which policies its own proxy enforces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.struct_pb2 import Struct, Value

from mesh.discovery.errors import BadNode
from mesh.protos.discovery_pb2 import Node
from mesh.resources.values import Labels

GROUP_ANNOTATION = "istio.io/autoRegistrationGroup"
"""Istio: on a WorkloadEntry that a proxy was registered as, its group. Such an entry says by which
labels policies select the workload; without one the proxy's own labels do."""

MAX_LABELS = 256
"""Istio: labels of a workload."""

MAX_ADDRESSES = 16
"""Addresses of one workload: a dual-stack machine has two, and some have a few more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyNode:
    """A proxy, and the workload it stands for.

    `group` names the WorkloadGroup of the workload's namespace to register under; empty registers
    nothing. `addresses` are where the workload is reached, the first being the one to register;
    `ports` maps the names of the workload's ports to their numbers.
    """

    name: str
    namespace: str
    service_account: str
    labels: Labels = field(default_factory=dict[str, str])
    addresses: tuple[str, ...] = ()
    ports: Mapping[str, int] = field(default_factory=dict[str, int])
    group: str = ""
    version: str = ""

    @property
    def id(self) -> str:
        """Istio's node ID: `sidecar~ADDRESS~NAME.NAMESPACE~DOMAIN`."""
        address = self.addresses[0] if self.addresses else ""
        domain = f"{self.namespace}.svc.cluster.local"
        return f"sidecar~{address}~{self.name}.{self.namespace}~{domain}"


def encode_node(node: ProxyNode) -> Node:
    """Write a node for the first request of a stream."""
    metadata = Struct()
    metadata.update(
        {
            "NAME": node.name,
            "NAMESPACE": node.namespace,
            "SERVICE_ACCOUNT": node.service_account,
            "LABELS": dict(node.labels),
            "INSTANCE_IPS": ",".join(node.addresses),
            "POD_PORTS": {name: float(port) for name, port in node.ports.items()},
            "AUTO_REGISTER_GROUP": node.group,
            "ISTIO_VERSION": node.version,
        }
    )
    return Node(id=node.id, metadata=metadata, user_agent_name="remora")


def decode_node(untrusted: Node) -> ProxyNode:
    """Read a node. Raises BadNode."""
    fields = untrusted.metadata.fields
    namespace, name = _text(fields, "NAMESPACE"), _text(fields, "NAME")
    if not namespace or not name:
        raise BadNode("the node's metadata must say NAME and NAMESPACE")
    addresses = tuple(part for part in _text(fields, "INSTANCE_IPS").split(",") if part)
    if len(addresses) > MAX_ADDRESSES:
        raise BadNode(f"the node says {len(addresses)} addresses, more than {MAX_ADDRESSES}")
    return ProxyNode(
        name=name,
        namespace=namespace,
        service_account=_text(fields, "SERVICE_ACCOUNT"),
        labels=_labels(fields),
        addresses=addresses,
        ports=_ports(fields),
        group=_text(fields, "AUTO_REGISTER_GROUP"),
        version=_text(fields, "ISTIO_VERSION"),
    )


def _text(fields: Mapping[str, Value], key: str) -> str:
    if key not in fields:
        return ""
    if fields[key].WhichOneof("kind") != "string_value":
        raise BadNode(f"{key} in the node's metadata must be text")
    return fields[key].string_value


def _entries(fields: Mapping[str, Value], key: str) -> Mapping[str, Value]:
    if key not in fields:
        return {}
    if fields[key].WhichOneof("kind") != "struct_value":
        raise BadNode(f"{key} in the node's metadata must be a mapping")
    entries = fields[key].struct_value.fields
    if len(entries) > MAX_LABELS:
        raise BadNode(f"{key} in the node's metadata has more than {MAX_LABELS} entries")
    return entries


def _labels(fields: Mapping[str, Value]) -> Labels:
    entries = _entries(fields, "LABELS")
    return {key: _text(entries, key) for key in entries}


def _ports(fields: Mapping[str, Value]) -> dict[str, int]:
    ports: dict[str, int] = {}
    for name, value in _entries(fields, "POD_PORTS").items():
        number = value.number_value
        if not number.is_integer() or not 1 <= number <= 65535:
            raise BadNode(f"port {name!r} in the node's metadata is not a number from 1 to 65535")
        ports[name] = int(number)
    return ports
