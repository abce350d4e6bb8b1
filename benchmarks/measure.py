"""What is measured of a running chain, each metric by one function of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.generator import Result
from benchmarks.peers import Chain
from benchmarks.process import cpu_seconds, python, resident_bytes, running

Metrics = dict[str, float]

STORM = 8
"""Connections that the churn has under way at once."""


SETTLE_LOOK, SETTLE_TIMEOUT = 0.2, 10.0
"""Seconds between two looks at whether the proxies are at rest, and for all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A chain under load, and how long each load lasts."""

    chain: Chain
    log: Path
    seconds: float

    def load(self, kind: str, connections: int = 1, *, beside: bool = False) -> Result:
        """Run a load to its end, once the proxies are at rest; or `beside` another one."""
        if not beside:
            self.settle()
        with self.background(kind, connections) as process:
            return self._result(process)

    def _result(self, process: subprocess.Popen[str]) -> Result:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the load failed:\n{self.log.read_text()[-3000:]}")
        result: Result = json.loads(line)
        return result

    @contextlib.contextmanager
    def background(
        self, kind: str, connections: int, seconds: float | None = None
    ) -> Iterator[subprocess.Popen[str]]:
        flags = ("--port", str(self.chain.port), "--connections", str(connections))
        flags += ("--seconds", str(seconds or self.seconds))
        with running(python("benchmarks.generator", kind, *flags), self.log, pipe=True) as process:
            yield process

    def cpu(self) -> float:
        return cpu_seconds(self.chain.pids)

    def resident(self) -> int:
        return resident_bytes(self.chain.pids)

    def settle(self) -> None:
        """Wait until the proxies have done with what an earlier load left them to do."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        before = self.cpu()
        while time.monotonic() < deadline:
            time.sleep(SETTLE_LOOK)
            now = self.cpu()
            if now - before <= SETTLE_LOOK / 10:
                return
            before = now

    @contextlib.contextmanager
    def idle(self, connections: int) -> Iterator[None]:
        with self.background("idle", connections) as process:
            self._result(process)
            yield


def requests(bench: Bench) -> Metrics:
    found: Metrics = {}
    for count in (1, 32, 256):
        before = bench.cpu()
        result = bench.load("requests", count)
        found[f"rps_{count}"] = result["rate"]
        found |= {f"{name}_{count}": result[name] * 1000 for name in ("p50", "p99", "p999")}
        if count == 32:
            found["cpu_per_1k_requests"] = (bench.cpu() - before) / result["count"] * 1000
    return found


def bulk(bench: Bench) -> Metrics:
    before = bench.cpu()
    up, down = bench.load("up"), bench.load("down")
    # The generator counts after a fifth of the time; the processes work all through.
    moved = (up["count"] + down["count"]) * 1.2
    spent = bench.cpu() - before
    return {
        "bulk_up": up["rate"] / 1e6,
        "bulk_down": down["rate"] / 1e6,
        "bulk_up_8": bench.load("up", 8)["rate"] / 1e6,
        "cpu_per_gb": spent / moved * 1e9,
    }


def churn(bench: Bench) -> Metrics:
    """New connections a second; nothing if none of them got an answer."""
    result = bench.load("churn", STORM)
    return {"new_connections": result["rate"]} if result["count"] else {}


def latency(bench: Bench) -> Metrics:
    """Paced requests alone, beside a storm of new connections, and beside bulk."""
    found: Metrics = {"paced_p99": bench.load("paced", 32)["p99"] * 1000}
    for name, kind, count in (("storm_p99", "churn", STORM), ("bulk_p99", "up", 1)):
        bench.settle()
        with bench.background(kind, count, bench.seconds + 60):
            found[name] = bench.load("paced", 32, beside=True)["p99"] * 1000
    return found


def memory(bench: Bench, connections: int) -> Metrics:
    """Resident memory of both proxies together, per connection through both."""
    empty = bench.resident()
    with bench.idle(connections):
        held = bench.resident()
    return {"rss_per_idle_connection": (held - empty) / connections / 2 / 1024}
