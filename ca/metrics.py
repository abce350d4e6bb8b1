"""The CA's metrics, under the names that istiod has for them, as Prometheus reads them.

Pure: counters, and their text (Prometheus text exposition format 0.0.4). No client library: those
end every counter's name in `_total`, which Istio's dashboards do not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

from cryptography import x509

from ca.errors import Fault

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_COUNTERS = {
    "citadel_server_csr_count": "Signing requests received.",
    "citadel_server_authentication_failure_count": "Requests whose caller proved no identity.",
    "citadel_server_csr_parsing_err_count": "Requests whose CSR could not be used.",
    "citadel_server_id_extraction_err_count": "Callers whose identity this CA does not sign for.",
    "citadel_server_success_cert_issuance_count": "Certificates issued.",
    "remora_ca_rate_limited_count": "Requests refused because they came too often.",
}


class CaMetrics:
    """Counts since the CA was started."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._faults: Counter[Fault] = Counter()

    def count(self, name: str) -> None:
        """Add one to one of the counters above."""
        if name not in _COUNTERS:
            raise KeyError(name)
        self._counts[name] += 1

    def count_fault(self, fault: Fault) -> None:
        """Add one to the certificates not issued to a known caller, by Istio's word for why."""
        self._faults[fault] += 1

    def exposition(
        self, roots: Sequence[x509.Certificate], chain: Sequence[x509.Certificate], now: datetime
    ) -> str:
        """Return the text of a scrape at `now`."""
        return "".join(f"{line}\n" for line in self._lines(roots, chain, now))

    def _lines(
        self, roots: Sequence[x509.Certificate], chain: Sequence[x509.Certificate], now: datetime
    ) -> Iterator[str]:
        for name, text in _COUNTERS.items():
            yield from _head(name, "counter", text)
            yield f"{name} {self._counts[name]}"
        name = "citadel_server_csr_sign_err_count"
        yield from _head(name, "counter", "Certificates not issued to a known caller.")
        for fault in Fault:
            yield f'{name}{{error="{fault}"}} {self._faults[fault]}'
        yield from _expiry("root_cert", "the root that ends first", roots, now)
        yield from _expiry("cert_chain", "the CA certificate that ends first", chain, now)


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _expiry(
    what: str, text: str, certificates: Sequence[x509.Certificate], now: datetime
) -> Iterator[str]:
    ends = min(certificate.not_valid_after_utc for certificate in certificates)
    name = f"citadel_server_{what}_expiry_timestamp"
    yield from _head(name, "gauge", f"When {text} does so, in seconds since 1970.")
    yield f"{name} {ends.timestamp():.0f}"
    name = f"citadel_server_{what}_expiry_seconds"
    yield from _head(name, "gauge", f"Seconds until {text} does so; negative afterwards.")
    yield f"{name} {(ends - now).total_seconds():.0f}"
