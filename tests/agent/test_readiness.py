from __future__ import annotations

from datetime import timedelta

import pytest

from agent.answer import Issued
from agent.metrics import AgentMetrics
from agent.readiness import Wanted, missing
from agent.store import SecretStore
from mesh.bundle import TrustBundle
from mesh.spiffe import SpiffeId, TrustDomain
from tests.pki import NOW, make_root

DOMAIN = TrustDomain("cluster.local")
WEB = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/web")
SLEEP = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/sleep")


def full() -> SecretStore:
    store, root = SecretStore(), make_root()
    svid = root.issue(str(WEB), not_after=NOW + timedelta(hours=1))
    bundle = TrustBundle.of(DOMAIN, [root.certificate])
    store.put(Issued(svid=svid, bundle=bundle, created=NOW))
    return store


def faults(store: SecretStore, *wanted: Wanted, hours: float = 0) -> list[str]:
    return list(missing(store.holdings, wanted, DOMAIN, NOW + timedelta(hours=hours)))


def test_ready() -> None:
    assert faults(full(), Wanted(identity=WEB)) == []
    assert faults(SecretStore()) == [], "a node without entries lacks nothing"


def test_a_failed_renewal_of_a_good_certificate_is_no_fault() -> None:
    assert faults(full(), Wanted(identity=WEB, failure="CA down")) == []


def test_what_is_missing_is_told_with_the_reason() -> None:
    assert faults(SecretStore(), Wanted(identity=None, failure="no token")) == [
        "the identity is not known yet: no token",
        "no roots of trust domain cluster.local",
    ]
    assert faults(full(), Wanted(identity=WEB), Wanted(identity=SLEEP)) == [
        f"no certificate for {SLEEP}: no answer yet"
    ]
    assert faults(full(), Wanted(identity=WEB, failure="CA down"), hours=1) == [
        f"the certificate for {WEB} has expired: CA down"
    ]


def test_metrics() -> None:
    metrics = AgentMetrics()
    metrics.count("num_outgoing_requests")
    metrics.count("outgoing_latency", 250)
    text = metrics.exposition(full().holdings, WEB, NOW + timedelta(minutes=90))
    lines = text.splitlines()
    assert "num_outgoing_requests 1" in lines
    assert "outgoing_latency 250" in lines
    assert "num_failed_outgoing_requests 0" in lines
    assert 'cert_expiry_seconds{resource_name="default"} -1800' in lines
    other = metrics.exposition(full().holdings, None, NOW)
    assert f'cert_expiry_seconds{{resource_name="{WEB}"}} 3600' in other
    with pytest.raises(KeyError):
        metrics.count("no_such_metric")
