from __future__ import annotations

import re
from datetime import timedelta

import pytest

from ca.errors import Fault
from ca.metrics import CaMetrics
from tests.ca.workshop import make_authority
from tests.pki import NOW

LINE = re.compile(r'[a-z_]+(\{error="[A-Z_]+"\})? -?[0-9]+')


def scrape(metrics: CaMetrics, after: timedelta = timedelta(0)) -> dict[str, int]:
    root = make_authority(life=timedelta(days=1)).roots.authorities
    text = metrics.exposition(root, root, NOW + after)
    found: dict[str, int] = {}
    for line in text.splitlines():
        if line.startswith("# "):
            assert re.fullmatch(r"# (HELP [a-z_]+ .+|TYPE [a-z_]+ (counter|gauge))", line), line
            continue
        assert LINE.fullmatch(line), line
        name, value = line.rsplit(" ", 1)
        assert name not in found
        found[name] = int(value)
    return found


def test_istios_names_are_all_there_from_the_start() -> None:
    assert set(scrape(CaMetrics())) == {
        "citadel_server_csr_count",
        "citadel_server_authentication_failure_count",
        "citadel_server_csr_parsing_err_count",
        "citadel_server_id_extraction_err_count",
        "citadel_server_success_cert_issuance_count",
        "citadel_server_root_cert_expiry_timestamp",
        "citadel_server_root_cert_expiry_seconds",
        "citadel_server_cert_chain_expiry_timestamp",
        "citadel_server_cert_chain_expiry_seconds",
        "remora_ca_rate_limited_count",
        *(f'citadel_server_csr_sign_err_count{{error="{fault}"}}' for fault in Fault),
    }


def test_counters_count() -> None:
    metrics = CaMetrics()
    for _ in range(3):
        metrics.count("citadel_server_csr_count")
    metrics.count_fault(Fault.TTL)
    found = scrape(metrics)
    assert found["citadel_server_csr_count"] == 3
    assert found['citadel_server_csr_sign_err_count{error="TTL_ERROR"}'] == 1
    assert found['citadel_server_csr_sign_err_count{error="CSR_ERROR"}'] == 0
    with pytest.raises(KeyError):
        metrics.count("citadel_server_typo_count")


def test_seconds_to_expiry_are_computed_at_the_scrape_and_go_below_zero() -> None:
    ends = int((NOW + timedelta(days=1)).timestamp())
    for after, left in [(0, 86400), (86400, 0), (90000, -3600)]:
        found = scrape(CaMetrics(), timedelta(seconds=after))
        assert found["citadel_server_root_cert_expiry_seconds"] == left
        assert found["citadel_server_cert_chain_expiry_timestamp"] == ends
