"""Advice on PeerAuthentications: what is ignored, what is left over, what surprises."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.policy.selection import selects
from mesh.resources.security import MtlsMode, PeerAuthentication
from mesh.resources.values import WorkloadSelector
from remora.policy_tools.advice.message import Advice, Code, advice
from remora.policy_tools.world import World


def peer_advice(world: World) -> Iterator[Advice]:
    """Yield everything on PeerAuthentications."""
    yield from _permissive(world)
    yield from _ignored(world)
    yield from _overlapping(world)
    yield from _unnoticed(world)


def name_of(policy: PeerAuthentication) -> str:
    """Name a policy as messages do."""
    return f"PeerAuthentication {policy.key}"


def selects_all(selector: WorkloadSelector | None) -> bool:
    """Tell whether a selector has no labels, which counts as none at all."""
    return selector is None or not selector.match_labels


def _permissive(world: World) -> Iterator[Advice]:
    root = world.config.root_namespace
    if world.outbound.modes.namespace_mode(root) is None:
        text = (
            f"no PeerAuthentication says a mode for the whole mesh, so it is PERMISSIVE: when all "
            f"callers have proxies, set STRICT in {root}"
        )
        yield advice(Code.PERMISSIVE, f"mesh {root}", text)
    for policy in world.peers:
        if policy.spec.mtls.mode is MtlsMode.PERMISSIVE:
            text = "takes plaintext too: set STRICT when all callers have proxies"
            yield advice(Code.PERMISSIVE, name_of(policy), text)
        for port, setting in policy.spec.port_level_mtls.items():
            if setting.mode is MtlsMode.PERMISSIVE:
                text = f"port {port} takes plaintext too: set STRICT when all callers have proxies"
                yield advice(Code.PERMISSIVE, name_of(policy), text)


def _ignored(world: World) -> Iterator[Advice]:
    root = world.config.root_namespace
    oldest: dict[str, PeerAuthentication] = {}
    for policy in world.peers:
        namespace = policy.metadata.namespace
        if not selects_all(policy.spec.selector):
            if namespace == root:
                text = (
                    f"is ignored everywhere: selectors do not count in the root namespace {root}; "
                    "move it to the namespace of its workloads"
                )
                yield advice(Code.ROOT_SELECTOR, name_of(policy), text)
        elif namespace in oldest:
            text = (
                f"is ignored: {oldest[namespace].key} is older and speaks for the whole of "
                f"{namespace}; delete one of the two"
            )
            yield advice(Code.SHADOWED, name_of(policy), text)
        else:
            oldest[namespace] = policy


def _overlapping(world: World) -> Iterator[Advice]:
    """Report what a workload does not get, because an older policy selects it: once a pair."""
    by_namespace: dict[str, list[PeerAuthentication]] = {}
    for policy in _selecting(world):
        by_namespace.setdefault(policy.metadata.namespace, []).append(policy)
    told: set[tuple[str, str]] = set()
    for member in world.registry.members.values():
        matching = [
            policy
            for policy in by_namespace.get(member.namespace, ())
            if selects(policy.spec.selector, member.labels)
        ]
        for policy in matching[1:]:
            chosen = matching[0].key
            if (chosen, policy.key) not in told:
                told.add((chosen, policy.key))
                text = (
                    f"is ignored for {member.name}: {chosen} is older and selects it too, and "
                    "nothing of the two is merged; make the selectors disjoint"
                )
                yield advice(Code.OVERLAPPING, name_of(policy), text)


def _selecting(world: World) -> Iterator[PeerAuthentication]:
    """Yield the policies for selected workloads, oldest first."""
    for policy in world.peers:
        in_root = policy.metadata.namespace == world.config.root_namespace
        if not in_root and not selects_all(policy.spec.selector):
            yield policy


def _unnoticed(world: World) -> Iterator[Advice]:
    for policy in _selecting(world):
        namespace = policy.metadata.namespace
        modes = {policy.spec.mtls.mode, *(one.mode for one in policy.spec.port_level_mtls.values())}
        disabled = world.outbound.modes.namespace_mode(namespace) is MtlsMode.DISABLE
        if disabled and MtlsMode.STRICT in modes:
            text = (
                f"is STRICT, but clients go by the mode of {namespace}, which is DISABLE, and will "
                "send plaintext: lift the namespace's mode, or add a DestinationRule with "
                "ISTIO_MUTUAL"
            )
            yield advice(Code.UNNOTICED_STRICT, name_of(policy), text)
