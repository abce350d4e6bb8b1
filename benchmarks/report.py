"""Medians, ranges and ratios of what was measured, in a terminal, as Markdown and as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Metrics

Rounds = list[dict[str, Metrics]]
"""For each round, for each peer, what was measured."""

BASE = "envoy"

TITLES = {
    "rps_1": "requests/s, 1 connection",
    "rps_32": "requests/s, 32 connections",
    "rps_256": "requests/s, 256 connections",
    "p50_32": "p50 at 32 connections, ms",
    "p99_1": "p99 at 1 connection, ms",
    "p99_32": "p99 at 32 connections, ms",
    "p99_256": "p99 at 256 connections, ms",
    "p999_32": "p99.9 at 32 connections, ms",
    "new_connections": "new connections/s, full handshake",
    "new_connections_resumed": "new connections/s, resumed",
    "bulk_up": "bulk up, MB/s",
    "bulk_down": "bulk down, MB/s",
    "bulk_up_8": "bulk up, 8 streams, MB/s",
    "paced_p99": "p99 at 2,000 requests/s, ms",
    "storm_p99": "the same beside a connection storm, ms",
    "bulk_p99": "the same beside bulk, ms",
    "cpu_per_1k_requests": "CPU seconds per 1,000 requests",
    "cpu_per_gb": "CPU seconds per GB",
    "rss_idle": "resident memory at start, MB",
    "rss_per_idle_connection": "per idle connection, KiB",
    "ready_seconds": "ready after, s",
}
"""What is shown, in this order; the JSON holds all."""


def peers_of(rounds: Rounds) -> list[str]:
    return sorted(rounds[0], key=lambda name: (name != "remora", name != BASE, name))


def values(rounds: Rounds, peer: str, metric: str) -> list[float]:
    return [found[peer][metric] for found in rounds if metric in found.get(peer, {})]


def ratios(rounds: Rounds, peer: str, metric: str) -> list[float]:
    """Return a metric's ratio to Envoy's of the same round, for each round that has both."""
    pairs = [
        (found[peer].get(metric), found[BASE].get(metric))
        for found in rounds
        if peer in found and BASE in found
    ]
    return [mine / base for mine, base in pairs if mine is not None and base]


def summary(rounds: Rounds, about: dict[str, object]) -> dict[str, object]:
    """Return everything in the shape that is written as JSON."""
    results: dict[str, dict[str, dict[str, float]]] = {}
    compared: dict[str, dict[str, float]] = {}
    for peer in peers_of(rounds):
        metrics = sorted({metric for found in rounds for metric in found.get(peer, {})})
        results[peer] = {
            metric: {
                "median": statistics.median(seen),
                "min": min(seen),
                "max": max(seen),
            }
            for metric in metrics
            if (seen := values(rounds, peer, metric))
        }
        compared[peer] = {
            metric: statistics.median(found)
            for metric in metrics
            if (found := ratios(rounds, peer, metric))
        }
    return {
        "machine": about,
        "rounds": len(rounds),
        "results": results,
        "ratio_to_envoy": compared,
    }


def machine(versions: dict[str, str], options: argparse.Namespace) -> dict[str, object]:
    """Describe where and how this was measured."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "versions": versions,
        "seconds": options.seconds,
        "workers": options.workers,
        "idle_connections": options.idle,
    }


def _cell(rounds: Rounds, peer: str, metric: str) -> str:
    seen = values(rounds, peer, metric)
    if not seen:
        return "-"
    text = (
        f"{statistics.median(seen):,.3g}" if max(seen) < 100 else f"{statistics.median(seen):,.0f}"
    )
    compared = ratios(rounds, peer, metric)
    return f"{text} ({statistics.median(compared):.2f})" if compared and peer != BASE else text


def rows(rounds: Rounds) -> list[list[str]]:
    peers = peers_of(rounds)
    return [
        [title, *(_cell(rounds, peer, metric) for peer in peers)]
        for metric, title in TITLES.items()
        if any(values(rounds, peer, metric) for peer in peers)
    ]


def show(rounds: Rounds, about: dict[str, object]) -> None:
    table = Table(title=f"medians of {len(rounds)} rounds (median of the ratios to Envoy)")
    for name in ("", *peers_of(rounds)):
        table.add_column(name, justify="right" if name else "left")
    for row in rows(rounds):
        table.add_row(*row)
    Console(width=160).print(table)
    Console().print(about)


def write_json(path: Path, rounds: Rounds, about: dict[str, object]) -> None:
    path.write_text(json.dumps(summary(rounds, about), indent=2) + "\n")


def write_markdown(path: Path, rounds: Rounds, about: dict[str, object]) -> None:
    peers = peers_of(rounds)
    lines = [
        "| | " + " | ".join(peers) + " |",
        "|---|" + "---:|" * len(peers),
        *("| " + " | ".join(row) + " |" for row in rows(rounds)),
    ]
    path.write_text("\n".join(lines) + "\n")
