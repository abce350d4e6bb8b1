"""Remora's data plane against other proxies, in interleaved rounds on this machine.

    python -m benchmarks.throughput --peers remora,envoy --rounds 7 --json out.json

Every round starts every peer afresh, one after the other, in an order that rotates, so what else
the machine does hits all of them alike. A round's figures are compared with Envoy's of the same
round; medians over the rounds are what counts.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Bench, Metrics, bulk, churn, latency, memory, requests
from benchmarks.mesh import Mesh, mesh
from benchmarks.peers import PEERS, Peer, Setting, chain
from benchmarks.process import python, running
from benchmarks.report import Rounds, machine, show, write_json, write_markdown

PARTS = ("requests", "churn", "bulk", "latency", "memory")


class Run:
    """One run of the benchmark: what is measured, and on what."""

    def __init__(self, options: argparse.Namespace, material: Mesh, folder: Path) -> None:
        self._options = options
        self._mesh = material
        self._folder = folder
        self._number = 0

    def round(self, peers: Sequence[Peer]) -> dict[str, Metrics]:
        """Measure every peer once."""
        return {peer.name: self._peer(peer) for peer in peers}

    def _peer(self, peer: Peer) -> Metrics:
        found: Metrics = {}
        parts: list[str] = self._options.parts
        with self._bench(peer, resume=False) as bench:
            found["ready_seconds"] = bench.chain.ready_seconds
            if bench.chain.pids:
                found["rss_idle"] = bench.resident() / len(bench.chain.pids) / 1e6
            if "memory" in parts and bench.chain.pids:
                found |= memory(bench, self._options.idle)
            if "requests" in parts:
                found |= requests(bench)
            if "churn" in parts:
                found |= churn(bench)
            if "bulk" in parts:
                found |= bulk(bench)
            if "latency" in parts:
                found |= latency(bench)
        if "churn" in parts and peer.can_resume:
            found |= self._resumed(peer)
        return found

    def _resumed(self, peer: Peer) -> Metrics:
        with self._bench(peer, resume=True) as bench:
            resumed = churn(bench)
        if not resumed:
            print(f"{peer.name}: no connection with resumption got an answer", flush=True)
            return {}
        return {"new_connections_resumed": resumed["new_connections"]}

    @contextlib.contextmanager
    def _bench(self, peer: Peer, *, resume: bool):  # noqa: ANN202
        self._number += 1
        log = self._folder / f"load-{self._number}.log"
        with running(python("benchmarks.generator", "serve"), log, pipe=True) as server:
            assert server.stdout is not None
            setting = Setting(
                mesh=self._mesh,
                folder=self._folder / f"{peer.name}-{self._number}",
                server_port=int(server.stdout.readline()),
                workers=self._options.workers,
                resume=resume,
            )
            with chain(peer, setting) as started:
                yield Bench(chain=started, log=log, seconds=self._options.seconds)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", default="remora,envoy,nginx,haproxy,stunnel,direct")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each load")
    parser.add_argument("--idle", type=int, default=1000, help="connections for memory")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure")
    parser.add_argument("--json", type=Path, help="write all results here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--charts", type=Path, help="write SVG charts into this folder")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    return options


def installed(names: Sequence[str]) -> list[Peer]:
    """Return the peers that are there, naming those that are not."""
    found: list[Peer] = []
    for name in names:
        if name not in PEERS:
            raise SystemExit(f"no peer is called {name!r}; there are {', '.join(PEERS)}")
        if PEERS[name].version() is None:
            print(f"{name} is not installed: skipped")
        else:
            found.append(PEERS[name])
    return found


def main() -> None:
    options = arguments()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    peers = installed(options.peers.split(","))
    rounds: Rounds = []
    with tempfile.TemporaryDirectory(prefix="remora-bench-") as name, mesh(Path(name)) as material:
        run = Run(options, material, Path(name))
        for number in range(options.rounds):
            started = time.monotonic()
            turned = number % len(peers)
            rounds.append(run.round(peers[turned:] + peers[:turned]))
            print(
                f"round {number + 1} of {options.rounds}: {time.monotonic() - started:.0f} s",
                flush=True,
            )
    about = machine({peer.name: peer.version() or "" for peer in peers}, options)
    show(rounds, about)
    if options.json:
        write_json(options.json, rounds, about)
    if options.markdown:
        write_markdown(options.markdown, rounds, about)
    if options.charts:
        from benchmarks.chart import write_charts

        write_charts(options.charts, rounds)


if __name__ == "__main__":
    main()
