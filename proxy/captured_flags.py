"""What an operator may set about the captured ports, checked before anything is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network

from mesh.address import Address
from mesh.errors import ConfigError
from mesh.spiffe import SpiffeId
from proxy.capture.options import InterceptionMode, Network
from proxy.captured import Captured, OutboundPolicy
from proxy.config import parse_identity
from proxy.mode import MtlsMode


def parse_captured(
    interception: str | None,
    *,
    mode: MtlsMode | None,
    port_modes: Mapping[int, MtlsMode],
    destinations: Sequence[str] = (),
    outbound_policy: str = OutboundPolicy.ALLOW_ANY,
    server_first_ports: Sequence[int] = (),
    proxy_protocol_ports: Sequence[int] = (),
    balancers: Sequence[str] = (),
) -> Captured | None:
    """Put the flags of captured traffic together; None without --capture. Raises ConfigError."""
    if interception is None:
        if destinations or server_first_ports or proxy_protocol_ports or balancers:
            raise ConfigError(
                "--destination, --server-first-port, --app-proxy-protocol and "
                "--trust-proxy-protocol are for captured traffic: give --capture too"
            )
        return None
    known = [InterceptionMode.REDIRECT, InterceptionMode.TPROXY]
    if interception not in known:
        raise ConfigError(f"--capture {interception!r}: write {' or '.join(known)}")
    if outbound_policy not in list(OutboundPolicy):
        raise ConfigError(
            f"--outbound-policy {outbound_policy!r}: write {' or '.join(OutboundPolicy)}"
        )
    return Captured(
        interception=InterceptionMode(interception),
        mode=mode,
        port_modes=port_modes,
        destinations=dict(map(_destination, destinations)),
        outbound_policy=OutboundPolicy(outbound_policy),
        server_first_ports=frozenset(server_first_ports),
        proxy_protocol_ports=frozenset(proxy_protocol_ports),
        balancers=tuple(map(_balancer, balancers)),
    )


def _destination(flag: str) -> tuple[Address, frozenset[SpiffeId]]:
    address, at, who = flag.partition("@")
    if not at or not who:
        raise ConfigError(
            f"--destination {flag!r}: write IP:PORT@SPIFFE_ID[,SPIFFE_ID], such as "
            "10.0.0.2:8080@spiffe://cluster.local/ns/foo/sa/httpbin"
        )
    target = Address.parse(address)
    try:
        host = str(ip_address(target.host))
    except ValueError as error:
        raise ConfigError(
            f"--destination {flag!r}: captured traffic goes to IP addresses, "
            f"and {target.host} is none"
        ) from error
    named = f"--destination {flag!r}"
    identities = frozenset(parse_identity(text, named) for text in who.split(","))
    return Address(host, target.port), identities


def _balancer(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ConfigError(f"--trust-proxy-protocol {text!r} is no range: {error}") from error
