"""How this proxy introduces itself to the control plane, and what it asks for."""

from __future__ import annotations

from importlib.metadata import version
from ipaddress import ip_address

from mesh.discovery.node import ProxyNode
from mesh.errors import ConfigError
from mesh.spiffe import SpiffeId
from proxy.config import Discovery, ProxyConfig


def node_for(discovery: Discovery, identity: SpiffeId) -> ProxyNode:
    """Return the node of a proxy: namespace and service account are those of its certificate.

    Raises ConfigError for an identity that has none.
    """
    account = identity.service_account
    if account is None:
        raise ConfigError(
            f"the identity {identity} is not of the form spiffe://TD/ns/NAMESPACE/sa/NAME, by "
            "which the control plane finds policies: give --mtls-mode to do without it"
        )
    return ProxyNode(
        name=discovery.name,
        namespace=account.namespace,
        service_account=account.name,
        labels=discovery.labels,
        addresses=discovery.addresses,
        group=discovery.group,
        version=version("remora"),
    )


def called_hosts(config: ProxyConfig) -> list[str] | None:
    """Return the hosts whose services this proxy must know; None for all that it may see.

    An IP address may be of any service, and captured traffic may be for any.
    """
    if config.captured is not None:
        return None
    hosts = [port.destination.host for port in config.outbound if port.identities is None]
    return None if any(_is_address(host) for host in hosts) else hosts


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
