"""The benchmark of the data plane: what it computes, and that it runs. No figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.chart import write_charts
from benchmarks.report import Rounds, rows, summary, write_markdown

ROUNDS: Rounds = [
    {"remora": {"rps_1": 110.0, "p99_32": 2.0}, "envoy": {"rps_1": 100.0, "p99_32": 4.0}},
    {"remora": {"rps_1": 150.0, "p99_32": 3.0}, "envoy": {"rps_1": 300.0, "p99_32": 2.0}},
    {"remora": {"rps_1": 120.0, "p99_32": 1.0}, "envoy": {"rps_1": 100.0, "p99_32": 4.0}},
]


def test_ratios_are_of_the_same_round_and_the_median_is_of_the_ratios() -> None:
    found = json.loads(json.dumps(summary(ROUNDS, {"cores": 2})))
    assert found["machine"] == {"cores": 2}
    assert found["rounds"] == 3
    assert found["results"]["remora"]["rps_1"] == {"median": 120, "min": 110, "max": 150}
    assert found["ratio_to_envoy"]["remora"] == {"rps_1": 1.1, "p99_32": 0.5}
    assert found["ratio_to_envoy"]["envoy"] == {"rps_1": 1, "p99_32": 1}


def test_a_peer_that_lacks_a_metric_or_envoy_is_shown_without(tmp_path: Path) -> None:
    rounds: Rounds = [{"remora": {"rps_1": 110.0}, "direct": {"rps_1": 900.0, "bulk_up": 5.0}}]
    assert rows(rounds) == [
        ["requests/s, 1 connection", "110", "900"],
        ["bulk up, MB/s", "-", "5"],
    ]
    write_markdown(tmp_path / "table.md", rounds, {})
    assert (tmp_path / "table.md").read_text().splitlines()[0] == "| | remora | direct |"


def test_charts_are_svg_with_a_bar_for_every_peer(tmp_path: Path) -> None:
    write_charts(tmp_path, ROUNDS)
    for name in ("throughput.svg", "cost.svg"):
        root = ElementTree.fromstring((tmp_path / name).read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        bars = root.findall(".//{http://www.w3.org/2000/svg}rect")
        assert len(bars) == 1 + 2


@pytest.mark.e2e
@pytest.mark.timeout(180)
def test_the_benchmark_runs_and_names_what_is_not_there(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.throughput", "--peers", "remora,direct,stunnel"]
    flags = ["--rounds", "1", "--seconds", "0.05", "--idle", "3", "--parts", "requests,bulk,memory"]
    done = subprocess.run(
        [*command, *flags, "--json", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "stunnel is not installed: skipped" in done.stdout
    found = json.loads(out.read_text())["results"]
    expected = {"rps_1", "rps_32", "rps_256", "p99_32", "bulk_up", "bulk_down", "bulk_up_8"}
    assert found["direct"].keys() >= expected
    costs = {"cpu_per_1k_requests", "cpu_per_gb", "rss_idle", "rss_per_idle_connection"}
    assert found["remora"].keys() >= expected | costs | {"ready_seconds"}
