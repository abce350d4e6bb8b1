"""Istio's analysis and ours, of everything that was read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mesh.policy.analysis import Kind, Message, analyze
from mesh.policy.inventory import OTHER_KINDS, Inventory, Pod
from mesh.policy.selection import attaches, selects
from mesh.resources.problem import Problem
from mesh.resources.security import (
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
)
from mesh.resources.values import Resource
from remora.policy_tools.advice.clients import client_advice
from remora.policy_tools.advice.message import Advice, Code, advice, of_istio
from remora.policy_tools.advice.peers import peer_advice, selects_all
from remora.policy_tools.advice.rules import Members, rule_advice
from remora.policy_tools.registry import Member
from remora.policy_tools.unenforced import unenforced
from remora.policy_tools.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All messages, and what could not be looked at, as sentences."""

    advice: tuple[Advice, ...]
    unchecked: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What is analysed: valid resources, what was wrong in others, and the cluster's objects."""

    resources: tuple[Resource, ...]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    skipped: tuple[Problem, ...]
    cluster: Inventory


def analyze_all(material: Material) -> Findings:
    """Return every message about what was read; the worst first."""
    world = World(material.resources, material.cluster.config)
    inventory = _inventory(material, world)
    workloads = _workloads(world, inventory.pods)
    found = [of_istio(one) for one in analyze(inventory) if _can_be_known(one, inventory)]
    found.extend(_unknown_kinds(material.skipped))
    found.extend(_not_enforced(world))
    found.extend(peer_advice(world))
    found.extend(client_advice(world))
    found.extend(rule_advice(world, _selected(world, workloads)))
    if workloads:
        found.extend(_selecting_nothing(world, workloads))
    order = {"Error": 0, "Warning": 1, "Info": 2}
    found.sort(key=lambda one: (order[one.level], one.resource, one.code, one.text))
    return Findings(advice=tuple(found), unchecked=tuple(_unchecked(inventory)))


def _inventory(material: Material, world: World) -> Inventory:
    members = world.registry.members.values()
    pods = (Pod(one.namespace, one.name, one.labels, one.has_proxy) for one in members)
    return replace(
        material.cluster,
        resources=material.resources,
        problems=material.problems,
        warnings=material.warnings,
        pods=(*material.cluster.pods, *pods),
    )


def _workloads(world: World, pods: Sequence[Pod]) -> list[Member]:
    """Return all known workloads that have a proxy: WorkloadEntries, and a cluster's pods."""
    members = {one.name: one for one in world.registry.members.values() if one.has_proxy}
    for pod in pods:
        name = f"{pod.namespace}/{pod.name}"
        if pod.in_mesh and pod.name not in members:
            members[name] = Member(name=name, namespace=pod.namespace, labels=pod.labels)
    return list(members.values())


def _selected(world: World, workloads: Sequence[Member]) -> Members:
    found: dict[str, list[Member]] = {}
    for member in workloads:
        for policy in world.policies_for(member.workload):
            found.setdefault(policy.key, []).append(member)
    return found


def _can_be_known(message: Message, inventory: Inventory) -> bool:
    """Tell whether a message rests on anything: files alone may know no workload at all."""
    match message.kind:
        case Kind.NO_WORKLOADS:
            return bool(inventory.pods)
        case Kind.NOT_FOUND:
            return bool(inventory.namespaces)
        case _:
            return True


def _unchecked(inventory: Inventory) -> Iterator[str]:
    kinds = {type(one) for one in inventory.resources}
    policies = kinds & {AuthorizationPolicy, PeerAuthentication, RequestAuthentication}
    if policies and not inventory.pods:
        yield "no workloads are known (WorkloadEntry, Pod), so selectors were not checked"
    if AuthorizationPolicy in kinds and not inventory.namespaces:
        yield "no Namespace is known, so the names of namespaces were not checked"


def _unknown_kinds(skipped: Sequence[Problem]) -> Iterator[Advice]:
    for problem in skipped:
        if problem.resource.partition(" ")[0] not in OTHER_KINDS:
            yield advice(Code.UNKNOWN_KIND, problem.resource, problem.message)


def _not_enforced(world: World) -> Iterator[Advice]:
    for resource in (*world.authorizations, *world.requests):
        if text := unenforced(resource):
            place = f"{type(resource).__name__} {resource.key}"
            yield advice(Code.NOT_ENFORCED, place, text)


def _selecting_nothing(world: World, workloads: Sequence[Member]) -> Iterator[Advice]:
    """Report selectors of the kinds whose selectors Istio's own analysis leaves alone."""
    root = world.config.root_namespace
    for peer in world.peers:
        namespace = peer.metadata.namespace
        if selects_all(peer.spec.selector) or namespace == root:
            continue
        if not any(
            one.namespace == namespace and selects(peer.spec.selector, one.labels)
            for one in workloads
        ):
            yield _selects_nothing(f"PeerAuthentication {peer.key}")
    for check in world.requests:
        spec, namespace = check.spec, check.metadata.namespace
        if selects_all(spec.selector) or spec.target_ref is not None or spec.target_refs:
            continue
        reach = [one for one in workloads if namespace in {one.namespace, root}]
        if not any(attaches(check, one.workload) for one in reach):
            yield _selects_nothing(f"RequestAuthentication {check.key}")


def _selects_nothing(resource: str) -> Advice:
    text = "its selector is on no known workload: correct the labels, or delete it"
    return advice(Code.UNSELECTED, resource, text)
