"""Whether an inbound connection may be, by what is known of it so far.

The same question is asked at each step of a connection's beginning, with what the step found out,
and again of every open connection when policies change. So a connection can never be in a state
that the policies in force would not let it reach.

HTTP is no exception: a connection is judged as TCP here, and whoever parses requests on a port
asks `View.authorization` for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from mesh.policy.decision import Decision
from mesh.policy.facts import Connection as Facts
from mesh.spiffe import SpiffeId
from proxy.errors import ConnectionFailed, PlaintextOnStrict
from proxy.mode import MtlsMode
from proxy.policy_errors import PolicyNotUnderstood, access_denied, outside_the_mesh
from proxy.report import Transport
from proxy.view import View


@dataclass(slots=True, kw_only=True)
class Known:
    """What is known of an inbound connection; each step adds what it found out.

    `port` and `destination_ip` are those of the workload, `remote_ip` is the client's own address
    where a trusted load balancer told it. `transport` is None until the first
    bytes were seen. `identified` says that there is nothing more to learn of who the peer is: for
    mutual TLS that the handshake is complete.
    """

    peer: str
    port: int
    source_ip: IPv4Address | IPv6Address
    destination_ip: IPv4Address | IPv6Address
    remote_ip: IPv4Address | IPv6Address | None = None
    transport: Transport | None = None
    sni: str | None = None
    peer_id: SpiffeId | None = None
    identified: bool = False


def refusal(view: View, known: Known) -> ConnectionFailed | None:
    """Return why a connection may not go on, None if it may."""
    if view.unread:
        return PolicyNotUnderstood(known.peer, view.unread)
    mode = view.modes.of_port(known.port)
    if mode.mode is MtlsMode.STRICT and known.transport in _NOT_MUTUAL:
        return PlaintextOnStrict(known.peer, known.port, mode.decided_by)
    if not known.identified:
        return None
    decision = decide(view, known)
    if not decision.allowed:
        return access_denied(known.peer, decision)
    return _stranger(view, known.peer_id, decision)


def _stranger(view: View, identity: SpiffeId | None, decision: Decision) -> ConnectionFailed | None:
    """Refuse a member of another trust domain, unless it was a policy naming that which let it in.

    Only a federated one's come so far: others fail in the handshake.
    """
    domains = view.trust_domains
    if domains is None or identity is None or domains.accepts(str(identity)):
        return None
    if view.authorization.names(decision.rule, identity.trust_domain.name):
        return None
    return outside_the_mesh(identity, domains)


_NOT_MUTUAL = (Transport.PLAINTEXT, Transport.PASSTHROUGH)


def decide(view: View, known: Known) -> Decision:
    """Return what AuthorizationPolicy says of a connection, taken as TCP."""
    return view.authorization.decide(
        Facts(
            peer=known.peer_id,
            source_ip=known.source_ip,
            destination_ip=known.destination_ip,
            destination_port=known.port,
            sni=known.sni,
            remote_ip=known.remote_ip,
        )
    )
