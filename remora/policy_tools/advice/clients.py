"""Advice on DestinationRules: what clients are told to send against what servers take."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.policy.destination import Settings, full_host, host_matches
from mesh.policy.outbound import SECURITY_OF_MODE
from mesh.policy.reachability import reach
from mesh.resources.networking import DestinationRule, Location, ServiceEntry
from mesh.resources.security import MtlsMode
from remora.policy_tools.advice.message import Advice, Code, advice
from remora.policy_tools.registry import target_port
from remora.policy_tools.world import World


def client_advice(world: World) -> Iterator[Advice]:
    """Yield a message for each rule and service port where no connection can come about."""
    for rule in world.rules:
        if rule.spec.traffic_policy is None:
            continue
        found = list(_against_services(rule, world))
        yield from found or _against_namespace(rule, world)


def _against_services(rule: DestinationRule, world: World) -> Iterator[Advice]:
    pattern = full_host(rule, "cluster.local")
    for host, entry in world.registry.services:
        internal = entry.spec.location is Location.MESH_INTERNAL
        if internal and host_matches(pattern, host):
            yield from _against_ports(rule, host, entry, world)


def _against_ports(
    rule: DestinationRule, host: str, entry: ServiceEntry, world: World
) -> Iterator[Advice]:
    settings = Settings(rule=rule, traffic_policy=rule.spec.traffic_policy, subsets=())
    for port in entry.spec.ports:
        tls = settings.tls_for(port.number)
        if tls is None:
            continue
        for member in world.registry.members_of(entry):
            mode = world.modes(member.workload).of_port(target_port(member, port))
            reached = reach(SECURITY_OF_MODE[tls.mode], mode.mode if member.has_proxy else None)
            if not reached.success:
                taken = str(mode) if member.has_proxy else "no proxy"
                text = (
                    f"tells clients {tls.mode} for {host}:{port.number}, but {member.name} has "
                    f"{taken}: {reached.why}; remove the tls block, and the mode is chosen for "
                    "each endpoint"
                )
                yield advice(Code.CLIENT_CONFLICT, f"DestinationRule {rule.key}", text)
                break


def _against_namespace(rule: DestinationRule, world: World) -> Iterator[Advice]:
    """Judge a rule for a service that no ServiceEntry describes by its namespace's mode."""
    host = full_host(rule, "cluster.local")
    parts = host.split(".")
    tls = rule.spec.traffic_policy.tls if rule.spec.traffic_policy else None
    known = any(host_matches(host, name) for name, _ in world.registry.services)
    if tls is None or known or len(parts) < 3 or parts[2] != "svc":
        return
    mode = world.outbound.modes.namespace_mode(parts[1]) or MtlsMode.PERMISSIVE
    reached = reach(SECURITY_OF_MODE[tls.mode], mode)
    if not reached.success:
        text = (
            f"tells clients {tls.mode} for {host}, but the mode of {parts[1]} is {mode}: "
            f"{reached.why}; remove the tls block, or change the mode"
        )
        yield advice(Code.CLIENT_CONFLICT, f"DestinationRule {rule.key}", text)
