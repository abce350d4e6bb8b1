"""How many certificates one CA process signs, through its real API, and how it takes a stampede.

Run `python -m benchmarks.ca_signing`; it takes about a minute. A real CA process is asked by client
processes on the same machine, which need more processor time than the CA. So what counts is the
CA's own CPU time for each certificate; from it follows what one core can do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ca.material import load_token_key
from ca.tokens import create_token
from mesh.address import Address
from mesh.api import CREATE_CERTIFICATE
from mesh.bundle import TrustBundle
from mesh.clock import system_now
from mesh.grpc import Channel, GrpcError, open_channel
from mesh.protos.istio_ca_pb2 import IstioCertificateRequest
from mesh.spiffe import ServiceAccount, SpiffeId, TrustDomain
from mesh.svid import X509Svid, parse_certificates_pem
from mesh.tls import client_context
from mesh.tls_errors import TlsError
from mesh.tls_stream import TlsStream

DOMAIN = TrustDomain("cluster.local")
TICKS = os.sysconf("SC_CLK_TCK")
ACCOUNTS = 200
"""Service accounts that the load is spread over."""

CROWD = 400
"""Agents of one client process that are connecting at the same moment."""


@dataclass
class Ca:
    """A CA process at work."""

    process: subprocess.Popen[str]
    address: Address
    state: Path

    def cpu(self) -> float:
        """Seconds of processor time it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def resident(self) -> float:
        """Megabytes it occupies."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


@contextmanager
def running_ca(state: Path, port: int = 0) -> Iterator[Ca]:
    """Start a CA as an operator does, but without limits on the rate."""
    command = [
        *(sys.executable, "-m", "remora", "ca", "serve", "--state-dir", str(state)),
        *("--listen", f"127.0.0.1:{port}", "--log-format", "json", "--log-level", "warning"),
        *("--rate-limit", "0", "--identity-rate-limit", "0"),
    ]
    if port == 0:
        port = free_port()
        command[command.index("127.0.0.1:0")] = f"127.0.0.1:{port}"
    with subprocess.Popen(command, text=True) as process:
        try:
            wait_until_open(port)
            yield Ca(process, Address(host="127.0.0.1", port=port), state)
        finally:
            process.send_signal(signal.SIGTERM)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_open(port: int) -> None:
    import socket

    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


@dataclass
class Asker:
    """What client tasks share: whom to ask, and with what."""

    address: Address
    roots: TrustBundle
    tokens: list[str]
    csr: str
    svids: list[X509Svid]

    @classmethod
    def of(cls, address: Address, state: Path, by_certificate: bool) -> Asker:
        roots = TrustBundle.from_pem(DOMAIN, (state / "root-cert.pem").read_bytes())
        key = load_token_key(state)
        tokens = [
            create_token(
                key,
                ServiceAccount("bench", f"app-{number}"),
                audience="istio-ca",
                ttl=timedelta(hours=1),
                now=system_now(),
            )
            for number in range(ACCOUNTS)
        ]
        asker = cls(address, roots, tokens, new_csr(), [])
        if by_certificate:
            trio.run(asker.join)
        return asker

    async def join(self) -> None:
        """Get a certificate, to renew with."""
        key = ec.generate_private_key(ec.SECP256R1())
        async with open_channel(partial(self.connect, None), authority="localhost") as channel:
            answer = await self.ask(channel, 0, new_csr(key))
        chain = parse_certificates_pem(answer[0].encode())
        identity = SpiffeId(DOMAIN, "/ns/bench/sa/app-0")
        self.svids.append(X509Svid(id=identity, chain=chain, key=key))
        self.tokens = []

    async def connect(self, svid: X509Svid | None) -> TlsStream:
        socket = await trio.open_tcp_stream(self.address.host, self.address.port)
        context = client_context({DOMAIN: self.roots}, svid=svid, alpn=[b"h2"])
        stream = TlsStream(socket, context.session(system_now(), server_name="localhost"))
        await stream.do_handshake()
        return stream

    async def ask(self, channel: Channel, number: int, csr: str | None = None) -> list[str]:
        request = IstioCertificateRequest(csr=csr or self.csr, validity_duration=3600)
        metadata = []
        if self.tokens:
            metadata = [("authorization", f"Bearer {self.tokens[number % len(self.tokens)]}")]
        answer = await channel.unary(CREATE_CERTIFICATE, request, metadata=metadata, timeout=30)
        assert len(answer.cert_chain) == 2
        return list(answer.cert_chain)


def new_csr(key: ec.EllipticCurvePrivateKey | None = None) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def steady_load(
    address: Address, state: Path, by_certificate: bool, connections: int, seconds: float
) -> list[float]:
    """Ask over `connections` kept open, one request at a time on each; return the latencies."""
    asker = Asker.of(address, state, by_certificate)
    latencies: list[float] = []

    async def connection(number: int) -> None:
        svid = asker.svids[0] if asker.svids else None
        async with open_channel(partial(asker.connect, svid), authority="localhost") as channel:
            await asker.ask(channel, number)
            while True:
                start = time.perf_counter()
                await asker.ask(channel, number)
                latencies.append(time.perf_counter() - start)

    async def all_connections() -> None:
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for number in range(connections):
                    nursery.start_soon(connection, number)

    trio.run(all_connections)
    return latencies


def stampede(address: Address, state: Path, agents: int) -> list[float]:
    """Let `agents` connect and ask once, retrying as ours do; return when each was served."""
    asker = Asker.of(address, state, by_certificate=False)
    random = Random(os.getpid())
    served: list[float] = []
    crowd = trio.CapacityLimiter(CROWD)
    start = time.perf_counter()

    async def agent(number: int) -> None:
        pause = 0.5
        while True:
            try:
                async with (
                    crowd,
                    open_channel(partial(asker.connect, None), authority="localhost") as channel,
                ):
                    await asker.ask(channel, number)
            except (OSError, GrpcError, TlsError, trio.BrokenResourceError, trio.TooSlowError):
                await trio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, 60)
            else:
                served.append(time.perf_counter() - start)
                return

    async def all_agents() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(agents):
                nursery.start_soon(agent, number)

    trio.run(all_agents)
    return served


def measure_steady(state: Path, by_certificate: bool, connections: int, seconds: float) -> None:
    with running_ca(state) as ca, multiprocessing.Pool(2) as pool:
        steady_load(ca.address, state, by_certificate, 2, 0.5)
        before, start = ca.cpu(), time.perf_counter()
        parts = pool.starmap(
            steady_load, [(ca.address, state, by_certificate, connections // 2, seconds)] * 2
        )
        passed, used = time.perf_counter() - start, ca.cpu() - before
        latencies = sorted(value for part in parts for value in part)
        count = len(latencies)
        how = "by certificate" if by_certificate else "by token"
        print(
            f"{how:<15} {connections:>4} connections "
            f"{count / seconds:7.0f}/s  CA {used / count * 1e6:5.0f} us each "
            f"= {count / used:5.0f}/s a core ({used / passed:.0%} of one core)  "
            f"p50 {statistics.median(latencies) * 1e3:6.1f} ms  "
            f"p99 {latencies[int(count * 0.99)] * 1e3:6.1f} ms  {ca.resident():.0f} MB"
        )


def measure_stampede(state: Path, agents: int) -> None:
    """Restart the CA and let all agents come at once, the first of them before it is up."""
    port = free_port()
    with multiprocessing.Pool(2) as pool:
        waiting = pool.starmap_async(
            stampede, [(Address(host="127.0.0.1", port=port), state, agents // 2)] * 2
        )
        time.sleep(1)
        with running_ca(state, port) as ca:
            start = time.perf_counter()
            parts = waiting.get(600)
            passed = time.perf_counter() - start
            served = sum(len(part) for part in parts)
            print(
                f"{served} of {agents} agents served {passed:.1f} s after the start of the CA, "
                f"which used {ca.cpu():.1f} s of processor time; it has {ca.resident():.0f} MB"
            )


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8, help="of each steady load")
    parser.add_argument("--agents", type=int, default=10_000, help="of the stampede")
    options = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory) / "state"
        with running_ca(state) as ca:
            print(f"an idle CA has {ca.resident():.0f} MB")
        for by_certificate in (False, True):
            for connections in (8, 100):
                measure_steady(state, by_certificate, connections, options.seconds)
        measure_stampede(state, options.agents)


if __name__ == "__main__":
    main()
