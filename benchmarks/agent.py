"""What an agent weighs: resident memory by identities and by open streams, through its real API.

Run `python -m benchmarks.agent`; it takes about half a minute. The agent is a process of its own; a
CA runs in this one, and the callers are this process's connections.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import trio

from benchmarks.process import running
from ca.config import CaConfig
from ca.material import load_token_key
from ca.server import Running, serve
from ca.tokens import create_token
from mesh.address import Address
from mesh.api import FETCH_X509_SVID, WORKLOAD_HEADER
from mesh.clock import system_now
from mesh.grpc import ClientCall, open_channel
from mesh.protos.workload_pb2 import X509SVIDRequest, X509SVIDResponse
from mesh.spiffe import ServiceAccount, TrustDomain
from mesh.unix_socket import open_unix_stream

DOMAIN = TrustDomain("cluster.local")
NODE = ServiceAccount("kube-system", "node")
ROUNDS = ((1, 1), (10, 10), (100, 10), (100, 200))
"""Identities, and open Workload API connections."""

Call = ClientCall[X509SVIDRequest, X509SVIDResponse]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One round: MB of resident memory, milliseconds."""

    identities: int
    streams: int
    started: float
    resident: float
    own: float
    all_issued: float
    first_answer: float


def resident(pid: int, kind: str = "VmRSS") -> float:
    """Return a process's resident memory in MB: all of it, or a kind (proc_pid_status(5))."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(fields[kind].split()[0]) / 1024


def registration(identities: int) -> str:
    """Make entries of which the first is this process's; each of the others is another user's."""
    lines = ["entries:"]
    for number in range(identities):
        uid = os.geteuid() if number == 0 else 100_000 + number
        lines.append(f"- spiffeId: spiffe://{DOMAIN}/ns/bench/sa/workload-{number}")
        lines.append(f"  selectors: ['unix:uid:{uid}']")
    return "\n".join(lines)


async def said(log: Path, words: str, times: int) -> None:
    """Wait until a log has said something so many times."""
    while log.read_text().count(words) < times:  # noqa: ASYNC110 - a file has no events
        await trio.sleep(0.01)


async def open_stream(stack: AsyncExitStack, socket: Path) -> Call:
    """Subscribe on a connection of its own."""
    channel = await stack.enter_async_context(open_channel(lambda: open_unix_stream(socket)))
    call = await stack.enter_async_context(
        channel.stream(FETCH_X509_SVID, metadata=[(WORKLOAD_HEADER, "true")])
    )
    await call.send(X509SVIDRequest())
    await call.done_sending()
    return call


async def measure(folder: Path, ca: Address, identities: int, streams: int) -> Measured:
    """Start an agent, let it get everything, open streams, and weigh it."""
    folder.mkdir(mode=0o700)
    file, log, socket = folder / "registration.yaml", folder / "log", folder / "run" / "agent.sock"
    file.write_text(registration(identities))
    token = create_token(
        load_token_key(folder.parent / "ca"),
        NODE,
        audience="istio-ca",
        ttl=timedelta(hours=1),
        now=system_now(),
    )
    (folder / "token").write_text(token)
    command: list[str | Path] = [
        *(Path(sys.executable).parent / "remora", "agent", "run"),
        *("--ca-address", str(ca), "--ca-root-cert", folder.parent / "ca" / "root-cert.pem"),
        *("--token-file", folder / "token", "--socket", socket, "--registration", file),
    ]
    with running(command, log) as process:
        start = time.monotonic()
        await said(log, "agent ready", 1)
        started = resident(process.pid)
        await said(log, "certificate obtained", identities)
        issued = time.monotonic()
        async with AsyncExitStack() as stack:
            first = 0.0
            for number in range(streams):
                asked = time.monotonic()
                await anext(await open_stream(stack, socket))
                first = first if number else time.monotonic() - asked
            await trio.sleep(1)
            weight = resident(process.pid)
            own = resident(process.pid, "RssAnon")
    return Measured(
        identities=identities,
        streams=streams,
        started=started,
        resident=weight,
        own=own,
        all_issued=(issued - start) * 1000,
        first_answer=first * 1000,
    )


async def main() -> None:
    """Run every round and print a table."""
    with tempfile.TemporaryDirectory(prefix="remora-") as name:
        folder = Path(name)
        config = CaConfig(
            state_dir=folder / "ca",
            listen=Address("127.0.0.1", 0),
            trust_domain=DOMAIN,
            trusted_nodes=(NODE,),
        )
        async with trio.open_nursery() as nursery:
            ca: Running = await nursery.start(partial(serve, config))
            print("identities  streams  started  resident  of its own  all issued  answer")
            for number, (identities, streams) in enumerate(ROUNDS):
                one = await measure(folder / f"r{number}", ca.addresses[0], identities, streams)
                memory = f"{one.started:4.1f} MB  {one.resident:5.1f} MB  {one.own:7.1f} MB"
                times = f"{one.all_issued:7.0f} ms  {one.first_answer:3.0f} ms"
                print(f"{one.identities:10}  {one.streams:7}  {memory}  {times}")
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
