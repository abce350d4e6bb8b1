"""A description as text for people and as data for scripts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from remora.policy_tools.description import Description, PolicyLine, PortMode


def as_data(description: Description) -> dict[str, Any]:
    """Return a description as plain data."""
    return asdict(description)


def as_lines(description: Description) -> Iterator[str]:
    """Yield the lines for people."""
    labels = ", ".join(f"{key}={value}" for key, value in description.labels.items())
    yield f"{description.workload}  {labels}".rstrip()
    yield f"  identity   {description.identity or 'not known: no service account is given'}"
    yield "  mutual TLS"
    for mode in description.modes:
        others = "all ports" if len(description.modes) == 1 else "other ports"
        port = others if mode.port is None else f"port {mode.port}"
        yield f"    {port:<12} {mode.mode:<11} {_decided(mode)}"
    yield "  services" if description.services else "  services   none"
    for service in description.services:
        arrow = f"{service.host}:{service.port} -> {service.target_port} ({service.protocol})"
        yield f"    {arrow}  clients: {service.clients} ({service.why})"
    yield "  AuthorizationPolicy" if description.authorization else "  AuthorizationPolicy   none"
    for policy in description.authorization:
        yield f"    {policy.action:<7} {policy.name:<40} {_rules(policy)}"
    if description.tokens:
        yield "  RequestAuthentication"
    for token in description.tokens:
        yield f"    {token.name:<40} {', '.join(token.issuers) or 'no issuer'}"
    for remark in description.remarks:
        yield f"  * {remark}"


def _decided(mode: PortMode) -> str:
    return f"PeerAuthentication {mode.decided_by}" if mode.decided_by else "by default"


def _rules(policy: PolicyLine) -> str:
    count = "1 rule" if policy.rules == 1 else f"{policy.rules} rules"
    return f"{count}, dry run: only counted" if policy.dry_run else count
