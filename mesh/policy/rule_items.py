"""The things that rules can look at, by their names in the resources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mesh.policy import matchers
from mesh.policy.matchers import Context, Maker
from mesh.resources.security import Texts


@dataclass(frozen=True, slots=True)
class Item:
    """How one kind of item is compared.

    `http_only` items mean nothing on TCP, `bad` values cannot be compared, and `anchors` are the
    identities that values name in full; None if some value has a wildcard.
    """

    maker: Maker
    http_only: bool = False
    bad: Callable[[str], bool] | None = None
    anchors: Callable[[Texts, Context], frozenset[str] | None] | None = None


def principal_anchors(values: Texts, context: Context) -> frozenset[str] | None:
    """Return the identities that principals name in full, None if one has a wildcard."""
    migrated = context.trust_domains.migrate_principals(values)
    if any(value.startswith("*") or value.endswith("*") for value in migrated):
        return None
    return frozenset(f"p:{value}" for value in migrated)


def namespace_anchors(values: Texts, _context: Context) -> frozenset[str] | None:
    """Return the namespaces that are named in full, None if one has a wildcard or a slash."""
    if any("*" in value or "/" in value for value in values):
        return None
    return frozenset(f"n:{value}" for value in values)


def account_anchors(values: Texts, context: Context) -> frozenset[str]:
    """Return the service accounts, each with its namespace."""
    return frozenset(
        f"a:{value}" if "/" in value else f"a:{context.namespace}/{value}" for value in values
    )


_SOURCE_IP = Item(matchers.source_ip, bad=matchers.bad_network)
_REMOTE_IP = Item(matchers.remote_ip, bad=matchers.bad_network)
_PORTS = Item(matchers.ports, bad=matchers.bad_port)
_PRINCIPALS = Item(matchers.principals, anchors=principal_anchors)
_NAMESPACES = Item(matchers.namespaces, anchors=namespace_anchors)
_ACCOUNTS = Item(matchers.service_accounts, anchors=account_anchors)
_TRUST_DOMAINS = Item(matchers.trust_domains)
_REQUEST_PRINCIPALS = Item(matchers.request_principals, http_only=True)

# Cheap and telling comparisons first: most rules fail at their first item.
SOURCE_ITEMS: Mapping[str, Item] = {
    "principals": _PRINCIPALS,
    "namespaces": _NAMESPACES,
    "service_accounts": _ACCOUNTS,
    "trust_domains": _TRUST_DOMAINS,
    "ip_blocks": _SOURCE_IP,
    "remote_ip_blocks": _REMOTE_IP,
    "request_principals": _REQUEST_PRINCIPALS,
}
OPERATION_ITEMS: Mapping[str, Item] = {
    "ports": _PORTS,
    "methods": Item(matchers.methods, http_only=True),
    "hosts": Item(matchers.hosts, http_only=True),
    "paths": Item(matchers.paths, http_only=True),
}
_CONDITION: Mapping[str, Item] = {
    "source.ip": _SOURCE_IP,
    "remote.ip": _REMOTE_IP,
    "source.namespace": _NAMESPACES,
    "source.principal": _PRINCIPALS,
    "source.serviceAccount": _ACCOUNTS,
    "source.trustDomain": _TRUST_DOMAINS,
    "request.auth.principal": _REQUEST_PRINCIPALS,
    "request.auth.audiences": Item(matchers.audiences, http_only=True),
    "request.auth.presenter": Item(matchers.presenter, http_only=True),
    "destination.ip": Item(matchers.destination_ip, bad=matchers.bad_network),
    "destination.port": _PORTS,
    "connection.sni": Item(matchers.sni),
}
_HEADERS = "request.headers"
_INLINE_HEADERS = "request.experimental.inline.headers"
_CLAIMS = "request.auth.claims"
_METADATA = "experimental.envoy.filters."

_UNKNOWN = Item(matchers.metadata, bad=lambda _value: True)
"""An item whose key means nothing: every value of it is bad."""


def condition_item(key: str) -> Item:
    """Return how the values of a condition's key are compared."""
    if key in _CONDITION:
        return _CONDITION[key]
    if key.startswith(_HEADERS) and (name := _bracketed(key, _HEADERS)):
        lower = name.lower()
        return Item(lambda values, _: matchers.header_test(lower, values), http_only=True)
    if key.startswith(_INLINE_HEADERS) and (name := _bracketed(key, _INLINE_HEADERS)):
        lower = name.lower()
        return Item(lambda values, _: matchers.inline_header_test(lower, values), http_only=True)
    if key.startswith(_CLAIMS) and _bracketed(key, _CLAIMS):
        path = claim_path(key.removeprefix(_CLAIMS))
        return Item(lambda values, _: matchers.claim_test(path, values), http_only=True)
    return Item(matchers.metadata) if key.startswith(_METADATA) else _UNKNOWN


def _bracketed(key: str, prefix: str) -> str:
    rest = key.removeprefix(prefix)
    return rest[1:-1] if rest.startswith("[") and rest.endswith("]") else ""


def claim_path(brackets: str) -> tuple[str, ...]:
    """Split `[a][b]` into its names; Istio takes malformed nesting as one literal name."""
    inner = brackets[1:-1]
    names = inner.split("][")
    if any("[" in name or "]" in name for name in names):
        return (inner,)
    return tuple(names)
