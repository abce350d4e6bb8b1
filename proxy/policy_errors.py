"""Why policy refused a connection, or closed one that was open."""

from __future__ import annotations

from collections.abc import Mapping

from mesh.policy.decision import Decision, Why
from mesh.policy.trust_domains import TrustDomains
from mesh.spiffe import SpiffeId
from proxy.errors import ConnectionFailed, WrongTrustDomain


class AccessDenied(ConnectionFailed):
    """AuthorizationPolicy refused a connection.

    `decision` has the policy and the rule; their names are in the log line.
    """

    reason = "rbac_access_denied"

    def __init__(self, peer: str, decision: Decision) -> None:
        super().__init__(f"peer {peer} was {decision.sentence}")
        self.decision = decision

    @property
    def facts(self) -> Mapping[str, str | int]:
        """Name what decided: Envoy's detail, and the rule in parts for those who search."""
        named: dict[str, str | int] = {"response_code_details": self.decision.detail}
        if rule := self.decision.rule:
            named |= {"policy": f"{rule.namespace}/{rule.policy}", "rule": rule.index}
        return named


class AuthorizerMissing(AccessDenied):
    """A CUSTOM rule matches, and there is no external authorizer to ask."""

    reason = "custom_unsupported"


class PolicyNotUnderstood(ConnectionFailed):
    """A policy is in force that this version cannot read, and it may be the one that denies."""

    reason = "policy_not_understood"

    def __init__(self, peer: str, policies: tuple[str, ...]) -> None:
        super().__init__(
            f"peer {peer} was denied, as everybody is, while this proxy does not understand "
            f"{', '.join(policies)}: correct it, or upgrade this proxy"
        )


class PolicyChanged(ConnectionFailed):
    """An open connection is no longer allowed by the policies that came meanwhile."""

    reason = "policy_changed"

    def __init__(self, cause: ConnectionFailed) -> None:
        super().__init__(f"closed by a change of policy: {cause}")
        self.cause = cause

    @property
    def facts(self) -> Mapping[str, str | int]:
        """Name the policy that did it."""
        return {**self.cause.facts, "cause": self.cause.reason}


def access_denied(peer: str, decision: Decision) -> ConnectionFailed:
    """Turn a denial into the error that says so."""
    if decision.why in {Why.CUSTOM_UNSUPPORTED, Why.CUSTOM_BAD_PROVIDER}:
        return AuthorizerMissing(peer, decision)
    return AccessDenied(peer, decision)


def outside_the_mesh(identity: SpiffeId, domains: TrustDomains) -> WrongTrustDomain:
    """Say that a peer is of a trust domain that the mesh settings do not name."""
    return WrongTrustDomain(
        f"{identity} is of trust domain {identity.trust_domain}, and this mesh admits only "
        f"{' or '.join(domains.names)}: move the client, or add it to trustDomainAliases"
    )
