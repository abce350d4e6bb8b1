"""What Istio's admission would say to a resource: errors and warnings, each at its field."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.resources.networking import DestinationRule, ServiceEntry, WorkloadEntry, WorkloadGroup
from mesh.resources.problem import Finding
from mesh.resources.security import (
    Action,
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
)
from mesh.resources.validate_authorization import authorization_findings
from mesh.resources.validate_common import DRY_RUN, dry_run_flag, selector_findings
from mesh.resources.validate_destination import destination_rule_findings
from mesh.resources.validate_registry import (
    service_entry_findings,
    workload_entry_findings,
    workload_group_findings,
)
from mesh.resources.validate_request import request_authentication_findings
from mesh.resources.values import Resource


def findings_in(resource: Resource) -> Iterator[Finding]:
    """Yield everything wrong or doubtful in a resource that has been read."""
    yield from _dry_run_findings(resource)
    match resource:
        case AuthorizationPolicy():
            yield from authorization_findings(resource.spec)
        case PeerAuthentication():
            yield from _peer_authentication_findings(resource)
        case RequestAuthentication():
            yield from request_authentication_findings(resource.spec)
        case DestinationRule():
            yield from destination_rule_findings(resource)
        case ServiceEntry():
            yield from service_entry_findings(resource)
        case WorkloadEntry():
            yield from workload_entry_findings(resource.spec)
        case WorkloadGroup():
            yield from workload_group_findings(resource.spec)
        case _:
            raise TypeError(f"no validation for {type(resource).__name__}")


def _dry_run_findings(resource: Resource) -> Iterator[Finding]:
    value = resource.metadata.annotations.get(DRY_RUN)
    if value is None:
        return
    path = ("metadata", "annotations", DRY_RUN)
    if not isinstance(resource, AuthorizationPolicy):
        yield Finding(path, "only an AuthorizationPolicy can be tried dry")
    elif resource.spec.action not in {Action.ALLOW, Action.DENY}:
        yield Finding(path, f"a policy with the action {resource.spec.action} cannot be tried dry")
    if dry_run_flag(value) is None:
        yield Finding(path, f"{value!r} is not a boolean: write 'true' or 'false'")


def _peer_authentication_findings(resource: PeerAuthentication) -> Iterator[Finding]:
    spec = resource.spec
    yield from selector_findings(spec.selector)
    if spec.port_level_mtls and not (spec.selector and spec.selector.match_labels):
        yield Finding(
            ("spec", "portLevelMtls"),
            "modes of single ports need a selector with labels: they belong to workloads",
        )
    for port in spec.port_level_mtls:
        if not 1 <= port <= 65535:
            yield Finding(
                ("spec", "portLevelMtls", str(port)),
                f"{port} is not a port: write a number from 1 to 65535",
            )
