"""Short ways to write resources, connections and requests in the tables of the tests."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from mesh.policy.authorization import Authorization, authorization_for
from mesh.policy.facts import Connection, HttpRequest
from mesh.policy.selection import Workload
from mesh.resources.loader import load_objects
from mesh.resources.mesh_config import ExtensionProvider, MeshConfig
from mesh.resources.networking import DestinationRule
from mesh.resources.security import AuthorizationPolicy, PeerAuthentication
from mesh.resources.values import Resource
from mesh.spiffe import SpiffeId

HTTPBIN = Workload(namespace="foo", labels={"app": "httpbin"})
SLEEP = "cluster.local/ns/foo/sa/sleep"


def resource(kind: str, name: str, spec: Any, **metadata: Any) -> Resource:
    """Load one resource, as admission or an API server that already holds it would let it in."""
    group = "networking.istio.io/v1" if kind == "DestinationRule" else "security.istio.io/v1"
    data = {
        "apiVersion": group,
        "kind": kind,
        "metadata": {"name": name, "namespace": "foo", **metadata},
        "spec": spec,
    }
    loaded = load_objects([data], already_admitted=True)
    assert loaded.problems == ()
    return loaded.resources[0]


def authz(spec: Any, name: str = "p", **metadata: Any) -> AuthorizationPolicy:
    policy = resource("AuthorizationPolicy", name, spec, **metadata)
    assert isinstance(policy, AuthorizationPolicy)
    return policy


def peer_authn(spec: Any, name: str = "default", **metadata: Any) -> PeerAuthentication:
    policy = resource("PeerAuthentication", name, spec, **metadata)
    assert isinstance(policy, PeerAuthentication)
    return policy


def destination_rule(spec: Any, name: str = "dr", **metadata: Any) -> DestinationRule:
    rule = resource("DestinationRule", name, spec, **metadata)
    assert isinstance(rule, DestinationRule)
    return rule


def mesh(
    trust_domain: str = "cluster.local", *aliases: str, providers: tuple[str, ...] = ()
) -> MeshConfig:
    return MeshConfig(
        trust_domain=trust_domain,
        trust_domain_aliases=aliases,
        extension_providers=tuple(
            ExtensionProvider(name=name, envoy_ext_authz_grpc={}) for name in providers
        ),
    )


def authorization(
    *policies: AuthorizationPolicy, config: MeshConfig | None = None, workload: Workload = HTTPBIN
) -> Authorization:
    return authorization_for(policies, workload, config or mesh())


def connection(peer: str | None = SLEEP, **given: Any) -> Connection:
    """Build a connection; `peer` is written without `spiffe://`, addresses as text."""
    remote = given.get("remote_ip")
    return Connection(
        peer=None if peer is None else SpiffeId.parse(f"spiffe://{peer}"),
        source_ip=ip_address(given.get("source_ip", "10.1.0.1")),
        destination_ip=ip_address(given.get("destination_ip", "10.3.0.1")),
        destination_port=given.get("port", 80),
        sni=given.get("sni"),
        remote_ip=None if remote is None else ip_address(remote),
    )


def request(
    method: str = "GET",
    target: str = "/",
    host: str | None = "httpbin.foo",
    headers: tuple[tuple[str, str], ...] = (),
    claims: Mapping[str, Any] | None = None,
    split: tuple[str, ...] = (),
) -> HttpRequest:
    return HttpRequest.of(
        method, target, host, headers, claims=claims, space_delimited_claims=split
    )
