"""What a proxy has decided, counted, as Prometheus reads it (text exposition format 0.0.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from mesh.policy.decision import Decision

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

DECISIONS = "remora_authorization_decisions_total"
CLOSED = "remora_connections_closed_by_policy_total"
OPEN = "remora_connections_open"


class Decisions:
    """Counts of decisions on inbound connections, by the policy and the rule that made them."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str, str]] = Counter()
        self._closed = 0

    def count(self, decision: Decision) -> None:
        """Count a decision on a connection that has just come."""
        rule = decision.rule
        policy = "" if rule is None else f"{rule.namespace}/{rule.policy}"
        index = "" if rule is None else str(rule.index)
        word = "allowed" if decision.allowed else "denied"
        self._counts[word, policy, index, decision.why.value] += 1

    def count_closed(self) -> None:
        """Count a connection that a change of policy closed."""
        self._closed += 1

    def exposition(self, *, open_connections: int) -> str:
        """Return the text of a scrape."""
        return "".join(f"{line}\n" for line in self._lines(open_connections))

    def _lines(self, open_connections: int) -> Iterator[str]:
        yield f"# HELP {DECISIONS} Inbound connections judged, and what decided."
        yield f"# TYPE {DECISIONS} counter"
        for (word, policy, index, why), count in sorted(self._counts.items()):
            labels = f'decision="{word}",policy="{_escaped(policy)}",rule="{index}",reason="{why}"'
            yield f"{DECISIONS}{{{labels}}} {count}"
        yield f"# HELP {CLOSED} Open connections that a change of policy closed."
        yield f"# TYPE {CLOSED} counter"
        yield f"{CLOSED} {self._closed}"
        yield f"# HELP {OPEN} Inbound connections that are open now."
        yield f"# TYPE {OPEN} gauge"
        yield f"{OPEN} {open_connections}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
