"""The agent's metrics, under the names that istio-agent has for them. Pure.

Prometheus text exposition format 0.0.4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime

from agent.holdings import Holdings
from mesh.spiffe import SpiffeId

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

COUNTERS = {
    "num_outgoing_requests": "Requests made to the CA for certificates.",
    "num_failed_outgoing_requests": "Requests to the CA that brought no certificate.",
    "num_outgoing_retries": "Attempts beyond the first within one request.",
    "outgoing_latency": "Milliseconds that requests to the CA took, all together.",
    "num_file_secret_failures_total": "Times that certificate files could not be used.",
}


class AgentMetrics:
    """Counts since the agent was started."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def count(self, name: str, amount: int = 1) -> None:
        """Add to one of COUNTERS."""
        if name not in COUNTERS:
            raise KeyError(name)
        self._counts[name] += amount

    def value(self, name: str) -> int:
        """Return what one of COUNTERS has come to."""
        return self._counts[name]

    def exposition(self, holdings: Holdings, default: SpiffeId | None, now: datetime) -> str:
        """Return the text of a scrape at `now`; `default` is the identity that has that name."""
        return "".join(f"{line}\n" for line in self._lines(holdings, default, now))

    def _lines(self, holdings: Holdings, default: SpiffeId | None, now: datetime) -> Iterator[str]:
        for name, text in COUNTERS.items():
            yield f"# HELP {name} {text}"
            yield f"# TYPE {name} counter"
            yield f"{name} {self._counts[name]}"
        name = "cert_expiry_seconds"
        yield f"# HELP {name} Seconds until a certificate expires; negative afterwards."
        yield f"# TYPE {name} gauge"
        for identity, held in sorted(holdings.svids.items(), key=lambda item: item[0]):
            label = "default" if identity == default else str(identity)
            left = (held.pair.not_after - now).total_seconds()
            yield f'{name}{{resource_name="{label}"}} {left:.0f}'
