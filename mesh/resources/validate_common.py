"""Checks that several kinds share: selectors, targets, exports, the dry-run annotation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from mesh.resources.checks import MAX_LABEL, MAX_NAME, dns_label
from mesh.resources.problem import Finding
from mesh.resources.tree import Path
from mesh.resources.values import Labels, TargetRef, WorkloadSelector

DRY_RUN = "istio.io/dry-run"
"""The annotation that makes a policy be evaluated and counted, but not enforced."""

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_GROUP = re.compile(r"(?:[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*)?")
_KIND = re.compile(r"[a-zA-Z](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?")
_TARGETS = frozenset(
    {
        ("core", "Service"),
        ("networking.istio.io", "ServiceEntry"),
        ("gateway.networking.k8s.io", "Gateway"),
        ("gateway.networking.k8s.io", "GatewayClass"),
    }
)


def dry_run_flag(value: str) -> bool | None:
    """Read a Go boolean; None if it is none."""
    if value in _TRUE:
        return True
    return False if value in _FALSE else None


def each(
    path: Path, values: Iterable[str], check: Callable[[str], str | None]
) -> Iterator[Finding]:
    """Apply a check to every value of a list."""
    for index, value in enumerate(values):
        if wrong := check(value):
            yield Finding((*path, index), wrong)


def not_empty(value: str) -> str | None:
    """Check that a text is not empty."""
    return None if value else "must not be empty"


def selector_findings(selector: WorkloadSelector | None) -> Iterator[Finding]:
    """Check a `selector`; one without labels selects everything, which is worth a warning."""
    if selector is not None:
        yield from label_match_findings(selector.match_labels, ("spec", "selector", "matchLabels"))


def label_match_findings(labels: Labels, path: Path) -> Iterator[Finding]:
    """Check the labels of any selector."""
    if not labels:
        yield Finding(path, "a selector without labels selects every workload", warning=True)
    for key, value in labels.items():
        if not key:
            yield Finding((*path, key), "a label needs a key")
        if "*" in key or "*" in value:
            yield Finding((*path, key), "wildcards are not supported in a selector")
        if len(value) > MAX_LABEL:
            yield Finding((*path, key), f"a label's value has at most {MAX_LABEL} characters")


def target_findings(
    selector: WorkloadSelector | None,
    target_ref: TargetRef | None,
    target_refs: tuple[TargetRef, ...],
) -> Iterator[Finding]:
    """Check that a policy is attached in one way, and its targets one by one."""
    if (selector is not None) + (target_ref is not None) + bool(target_refs) > 1:
        yield Finding(("spec",), "only one of selector, targetRef and targetRefs can be set")
    if target_ref is not None:
        yield from _target(target_ref, ("spec", "targetRef"))
    for index, target in enumerate(target_refs):
        yield from _target(target, ("spec", "targetRefs", index))


def _target(target: TargetRef, path: Path) -> Iterator[Finding]:
    if target.namespace:
        yield Finding((*path, "namespace"), "a target must be in the policy's own namespace")
    if len(target.name) > MAX_NAME:
        yield Finding((*path, "name"), f"a name has at most {MAX_NAME} characters")
    well_formed = _GROUP.fullmatch(target.group) and _KIND.fullmatch(target.kind)
    if not well_formed or (target.group or "core", target.kind) not in _TARGETS:
        yield Finding(
            path,
            f"{target.group}/{target.kind} cannot be a target: only Service, ServiceEntry, "
            "Gateway and GatewayClass can",
        )


def export_findings(
    namespace: str, exports: tuple[str, ...], *, nobody: bool, own_only: bool
) -> Iterator[Finding]:
    """Check `exportTo`: namespaces, `.` for the own one, `*` for all, and `~` for nobody."""
    path = ("spec", "exportTo")
    seen: set[str] = set()
    for index, export in enumerate(exports):
        target = namespace if export == "." else export
        known = target == "*" or (target == "~" and nobody)
        if target in seen:
            yield Finding((*path, index), f"{export!r} is given twice")
        elif not known and dns_label(target):
            yield Finding((*path, index), f"{export!r} is not a namespace, '.' or '*'")
        seen.add(target)
    if len(exports) > 1 and seen & {"*", "~"}:
        yield Finding(path, "'*' and '~' must stand alone")
    if own_only and seen - {namespace}:
        yield Finding(path, "a rule for selected workloads reaches only its own namespace")
