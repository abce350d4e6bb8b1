"""Where Remora's time goes, for whoever wants to make it faster.

    python -m benchmarks.profile --load requests --connections 32

runs a chain of two proxies under one kind of load and shows, for each of the two, the shares of
kernel, OpenSSL and interpreter (with `perf`, if it is installed and allowed) and the functions that
take most time (with cProfile, which makes Python's own part look about twice as large as it is).
"""

from __future__ import annotations

import argparse
import contextlib
import pstats
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import Bench
from benchmarks.mesh import Mesh, mesh
from benchmarks.peers import PEERS, Peer, Ports, Setting, chain
from benchmarks.process import python, running

LOADS = ("requests", "churn", "up", "down", "paced")
FUNCTIONS = 25


def under_profiler(peer: Peer, folder: Path) -> Peer:
    """Return a peer whose two proxies write what cProfile found when they end."""
    made = peer.commands
    assert made is not None

    def commands(setting: Setting, ports: Ports) -> tuple[list[str | Path], list[str | Path]]:
        first, second = made(setting, ports)
        return wrapped(first, folder / "a.prof"), wrapped(second, folder / "b.prof")

    return replace(peer, commands=commands)


def wrapped(command: Sequence[str | Path], output: Path) -> list[str | Path]:
    return [sys.executable, "-m", "cProfile", "-o", output, "-m", "remora", *command[1:]]


def load(peer: Peer, material: Mesh, folder: Path, options: argparse.Namespace) -> None:
    """Run the load once; with perf watching if the proxies run as they are."""
    log = folder / f"{peer.name}.log"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            running(python("benchmarks.generator", "serve"), log, pipe=True)
        )
        assert server.stdout is not None
        setting = Setting(
            mesh=material,
            folder=folder / peer.name,
            server_port=int(server.stdout.readline()),
            workers=1,
            resume=False,
        )
        started = stack.enter_context(chain(peer, setting))
        for name, pid in zip("ab", started.pids, strict=True):
            if peer.name == "remora" and shutil.which("perf"):
                command = ["perf", "record", "-q", "-o", folder / f"{name}.perf", "-p", str(pid)]
                stack.enter_context(running(command, log))
        bench = Bench(chain=started, log=log, seconds=options.seconds)
        print(bench.load(options.load, options.connections))


def show_perf(folder: Path) -> None:
    for name in "ab":
        recorded = folder / f"{name}.perf"
        if not recorded.exists():
            print("perf is not there, or not allowed: no shares of kernel and libraries")
            return
        print(f"\nproxy {name.upper()}, where the processor was:")
        report = ["perf", "report", "-i", str(recorded), "--stdio", "-q", "--sort", "dso"]
        done = subprocess.run(report, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if "%" in line]
        print("\n".join(lines[:6]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--load", choices=LOADS, default="requests")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="remora-profile-") as name, mesh(Path(name)) as made:
        folder = Path(name)
        load(PEERS["remora"], made, folder, options)
        show_perf(folder)
        profiled = replace(under_profiler(PEERS["remora"], folder), name="profiled")
        load(profiled, made, folder, options)
        for proxy in "ab":
            print(f"\nproxy {proxy.upper()}, functions by their own time (cProfile):")
            stats = pstats.Stats(str(folder / f"{proxy}.prof"))
            stats.strip_dirs().sort_stats("tottime").print_stats(FUNCTIONS)


if __name__ == "__main__":
    main()
