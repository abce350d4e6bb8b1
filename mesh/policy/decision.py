"""The answer of an authorization, and everything that logs and people want to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mesh.policy.rules import CompiledRule

NO_POLICY = "none"
"""Istio: the name in logs when no rule denied, but none allowed either."""


class Why(StrEnum):
    """The reason of a decision: a short word for logs, metrics and scripts."""

    NOTHING_APPLIES = "nothing_applies"
    ALLOW_RULE = "allow_rule"
    DENY_RULE = "deny_rule"
    NO_ALLOW_RULE = "no_allow_rule"
    CUSTOM_UNSUPPORTED = "custom_unsupported"
    CUSTOM_BAD_PROVIDER = "custom_bad_provider"
    CUSTOM_DENIED = "custom_denied"
    NOT_UNDERSTOOD = "policy_not_understood"


_SENTENCES = {
    Why.NOTHING_APPLIES: "allowed: no AuthorizationPolicy stands in the way",
    Why.ALLOW_RULE: "allowed by {rule}",
    Why.DENY_RULE: "denied by {rule}",
    Why.NO_ALLOW_RULE: "denied: this workload has ALLOW policies, and none of their rules matches",
    Why.CUSTOM_UNSUPPORTED: (
        "denied: {rule} asks an external authorizer, and none is connected here"
    ),
    Why.CUSTOM_BAD_PROVIDER: (
        "denied: {rule} names a provider that the mesh settings do not have, "
        "or the workload has two of them"
    ),
    Why.CUSTOM_DENIED: "denied: the external authorizer that {rule} asks said no",
    Why.NOT_UNDERSTOOD: (
        "denied: a policy for this workload is not understood by this version: {policies}"
    ),
}


@dataclass(frozen=True, slots=True)
class Shadow:
    """What the dry-run policies of one action would have said; `rule` is None if none matched."""

    action: str
    allowed: bool
    rule: CompiledRule | None

    @property
    def result(self) -> str:
        """Envoy's word for the result."""
        return "allowed" if self.allowed else "denied"

    @property
    def policy_id(self) -> str:
        """The matching rule's name, or an empty text."""
        return "" if self.rule is None else self.rule.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a connection or request may proceed, and who decided it.

    `audited` are the AUDIT rules that match; they and `shadows` never change the answer.
    """

    allowed: bool
    why: Why
    rule: CompiledRule | None = None
    plaintext: bool = False
    audited: tuple[CompiledRule, ...] = ()
    shadows: tuple[Shadow, ...] = ()
    not_understood: tuple[str, ...] = ()

    @property
    def policy_id(self) -> str:
        """The deciding rule's name as Istio logs it, or `none`."""
        if self.rule is None:
            return NO_POLICY
        broken = self.why is Why.CUSTOM_BAD_PROVIDER
        return self.rule.id + ("-deny-due-to-bad-CUSTOM-action" if broken else "")

    @property
    def detail(self) -> str:
        """Envoy's response code detail of a denial; empty for what is allowed."""
        return "" if self.allowed else f"rbac_access_denied_matched_policy[{self.policy_id}]"

    @property
    def sentence(self) -> str:
        """Say in one sentence what was decided and why."""
        rule = ""
        if self.rule is not None:
            rule = (
                f"rule {self.rule.index} of AuthorizationPolicy "
                f"{self.rule.namespace}/{self.rule.policy}"
            )
        policies = ", ".join(self.not_understood)
        sentence = _SENTENCES[self.why].format(rule=rule, policies=policies)
        if self.plaintext and self.why is Why.NO_ALLOW_RULE:
            sentence += "; the caller spoke plaintext, so it has no identity to match"
        return sentence
