"""How long a changed policy takes to reach every proxy.

One process is the control plane: resources in a directory, followed as always, and the discovery
service on a unix socket. Another is all the proxies: each has a connection and a stream of its
own, real gRPC, and acknowledges what it gets. The time runs from the rename that puts the changed
file in place to the moment the last proxy has the policy. Both processes share the machine.

    python -m benchmarks.discovery [--proxies 1000] [--policies 10000] [--rounds 10]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

import trio

from ca.authenticate import Caller
from ca.config import CaConfig
from ca.control_plane import ControlPlane
from ca.server import LIMITS
from mesh.address import Address
from mesh.api import DELTA_AGGREGATED_RESOURCES
from mesh.clock import system_now
from mesh.discovery.node import ProxyNode, encode_node
from mesh.discovery.types import EVERYTHING, MESH_CONFIG_URL, URL_OF
from mesh.grpc import ClientCall, Limits, ServerCall, Service, open_channel, serve_grpc
from mesh.log import LogLevel, configure_logging
from mesh.protos.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from mesh.resources.networking import DestinationRule, ServiceEntry, WorkloadEntry
from mesh.resources.security import (
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
)
from mesh.spiffe import ServiceAccount, TrustDomain, service_account_id
from mesh.unix_socket import open_unix_stream, unix_listener

ACCOUNT = ServiceAccount("app", "web")
CALLER = Caller(
    identity=service_account_id(TrustDomain("cluster.local"), ACCOUNT), authenticator="benchmark"
)
POLICY_URL = URL_OF[AuthorizationPolicy]
URLS = (
    MESH_CONFIG_URL,
    *(
        URL_OF[kind]
        for kind in (
            PeerAuthentication,
            AuthorizationPolicy,
            RequestAuthentication,
            WorkloadEntry,
            DestinationRule,
            ServiceEntry,
        )
    ),
)
POLICY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  selector: {{matchLabels: {{{label}}}}}
  action: DENY
  rules: [{{from: [{{source: {{namespaces: ["{source}"]}}}}]}}]
"""

Call = ClientCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]


async def anybody(_call: ServerCall) -> Caller:
    """Believe whoever calls: what is measured comes after that."""
    await trio.lowlevel.checkpoint()
    return CALLER


def policy(name: str, label: str, source: str, namespace: str = "app") -> str:
    return POLICY.format(name=name, namespace=namespace, label=label, source=source)


def write_resources(directory: Path, policies: int) -> None:
    """Write one policy for every proxy, and many others that concern none of them."""
    directory.mkdir()
    put(directory, "before")
    per_file = 100
    for start in range(0, policies, per_file):
        texts = (
            policy(f"other-{n}", f"app: other-{n}", "before", f"ns-{n % 50}")
            for n in range(start, min(start + per_file, policies))
        )
        (directory / f"others-{start}.yaml").write_text("---\n".join(texts))


def put(directory: Path, source: str) -> float:
    """Change the policy of all proxies; return when."""
    temporary = directory / ".new"
    temporary.write_text(policy("everyone", "app: web", source))
    started = time.monotonic()
    temporary.rename(directory / "everyone.yaml")
    return started


def serve(state: Path) -> None:
    """Be the control plane until killed."""
    configure_logging(level=LogLevel.WARNING)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    async def main() -> None:
        config = CaConfig(
            state_dir=state,
            listen=Address(host="127.0.0.1", port=0),
            trust_domain=TrustDomain("cluster.local"),
            resources=state / "resources",
        )
        control = ControlPlane(config, anybody, system_now)
        service = Service()
        control.register(service)
        async with unix_listener(state / "xds.sock") as listener, trio.open_nursery() as nursery:
            started = time.monotonic()
            await nursery.start(control.run)
            loaded = time.monotonic() - started
            await nursery.start(partial(serve_grpc, service, [listener], limits=LIMITS))
            print(f"{loaded:.2f}", flush=True)

    trio.run(main)


class Crowd:
    """All proxies, and who of them has the newest policy."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.started = 0
        self.received = 0
        self.news = trio.lowlevel.ParkingLot()

    async def proxy(self, number: int) -> None:
        labels = {"app": "web", "instance": str(number)}
        node = ProxyNode(
            name=f"web-{number}", namespace="app", service_account="web", labels=labels
        )
        limits = Limits(keepalive_interval=None)
        async with (
            open_channel(lambda: open_unix_stream(self._path), limits=limits) as channel,
            channel.stream(DELTA_AGGREGATED_RESOURCES) as call,
        ):
            for url in URLS:
                request = DeltaDiscoveryRequest(type_url=url, resource_names_subscribe=[EVERYTHING])
                if url == MESH_CONFIG_URL:
                    request.node.CopyFrom(encode_node(node))
                await call.send(request)
            await self._follow(call)

    async def _follow(self, call: Call) -> None:
        answered: set[str] = set()
        async for response in call:
            await call.send(
                DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
            )
            if len(answered) < len(URLS):
                answered.add(response.type_url)
                self.started += len(answered) == len(URLS)
            else:
                self.received += response.type_url == POLICY_URL and len(response.resources) == 1
            self.news.unpark_all()

    async def wait(self, count: str, number: int) -> None:
        while getattr(self, count) < number:
            await self.news.park()


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(state: Path, proxies: int, rounds: int, server: int) -> list[float]:
    crowd = Crowd(state / "xds.sock")
    times: list[float] = []
    async with trio.open_nursery() as nursery:
        started = time.monotonic()
        for number in range(proxies):
            nursery.start_soon(crowd.proxy, number)
            if number % 50 == 49:
                await crowd.wait("started", number - 48)
        await crowd.wait("started", proxies)
        print(f"all connected and complete after   {time.monotonic() - started:8.2f} s")
        used = cpu_seconds(server), time.process_time()
        for turn in range(rounds):
            crowd.received = 0
            await trio.sleep(0.3)
            at = put(state / "resources", f"round-{turn}")
            with trio.fail_after(30):
                await crowd.wait("received", proxies)
            times.append(time.monotonic() - at)
        spent = cpu_seconds(server) - used[0], time.process_time() - used[1]
        print(f"processor time of the control plane  {spent[0] / rounds * 1000:6.0f} ms a change")
        print(f"processor time of all proxies        {spent[1] / rounds * 1000:6.0f} ms a change")
        nursery.cancel_scope.cancel()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--proxies", type=int, default=1000)
    parser.add_argument("--policies", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory)
        write_resources(state / "resources", given.policies)
        command = [sys.executable, "-m", "benchmarks.discovery", "--serve", str(state)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                loaded = server.stdout.readline().strip()
                print(f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs")  # noqa: TID251
                print(f"{given.policies} policies loaded in          {loaded:>8} s")
                times = trio.run(measure, state, given.proxies, given.rounds, server.pid)
                memory = Path(f"/proc/{server.pid}/status").read_text()
                peak = next(line.split()[1] for line in memory.splitlines() if "VmHWM" in line)
            finally:
                server.kill()
    print(f"a changed policy at {given.proxies} proxies: median {median(times) * 1000:8.0f} ms")
    print(f"                                  worst  {max(times) * 1000:8.0f} ms")
    print(f"control plane, peak memory         {int(peak) / 1024:8.0f} MiB")


if __name__ == "__main__":
    main()
