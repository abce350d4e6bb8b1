"""What a large mesh's policy costs: loading it, asking it, and changing one thing in it.

Run `python -m benchmarks.policy`; it takes about half a minute and one core. Figures are CPU time,
the best of several rounds, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path

from mesh.policy.authorization import Authorization
from mesh.policy.destination import Client, DestinationRules
from mesh.policy.facts import Connection, HttpRequest
from mesh.policy.outbound import Endpoint, OutboundPolicies, Service
from mesh.policy.peer_authentication import PeerAuthentications
from mesh.policy.rules import compile_policy
from mesh.policy.selection import Attachments, Workload
from mesh.policy.trust_domains import TrustDomains
from mesh.resources.loader import load_resources
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.networking import DestinationRule, WorkloadEntry
from mesh.resources.security import AuthorizationPolicy, PeerAuthentication
from mesh.resources.values import Resource
from mesh.spiffe import SpiffeId

NAMESPACES = 100
SELECTING = 100
"""AuthorizationPolicies that select one workload: the target is for a decision among so many."""

CONFIG = MeshConfig()
ROOT = CONFIG.root_namespace
ROUNDS = 5


def main() -> None:
    """Measure everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="workloads, and policies")
    count: int = parser.parse_args().count
    text = "---\n".join([*policies(count), *workloads(count)])
    print(f"{count} workloads, {count} policies, {len(text) / 1e6:.1f} MB of YAML")
    before = resident()
    start = time.process_time()
    resources = load_resources(text).resources
    loading = time.process_time() - start
    assert len(resources) == 2 * count
    del text
    gc.collect()
    row("load and validate", loading, "s", f"{loading / len(resources) * 1e6:.0f} us a resource")
    row("memory of the resources", (resident() - before) / 1e6, "MB")
    measure_policies(resources)
    measure_modes(resources)
    measure_decisions()


def policies(count: int) -> list[str]:
    """Write policies: eight of ten say who may call, the others how, or how clients connect."""
    writers = [authorization] * 8 + [peer_authentication, destination_rule]
    return [writers[index % len(writers)](index) for index in range(count)]


def workloads(count: int) -> list[str]:
    """Write the workloads, a hundred to a namespace, ten to an app."""
    return [workload(index) for index in range(count)]


def place(index: int) -> tuple[str, str]:
    """Return the namespace and the app of a resource."""
    return f"ns-{index % NAMESPACES}", f"app-{index // NAMESPACES % 10}"


def authorization(index: int) -> str:
    """Write an AuthorizationPolicy with two sources, two ports and HTTP fields."""
    namespace, app = place(index)
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: authorization-{index}
  namespace: {namespace}
spec:
  selector:
    matchLabels:
      app: {app}
  action: {"DENY" if index % 4 == 0 else "ALLOW"}
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/ns-{index % 7}/sa/sa-{index}", "cluster.local/ns/a/sa/b"]
    - source:
        namespaces: ["team-{index % 50}"]
    to:
    - operation:
        ports: ["8080", "8443"]
        methods: ["GET", "POST"]
        paths: ["/api/v{index % 5}/*"]
"""


def peer_authentication(index: int) -> str:
    """Write a PeerAuthentication for an app, with a port of its own."""
    namespace, app = place(index)
    return f"""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: peers-{index}
  namespace: {namespace}
spec:
  selector:
    matchLabels:
      app: {app}
  mtls:
    mode: STRICT
  portLevelMtls:
    9090:
      mode: PERMISSIVE
"""


def destination_rule(index: int) -> str:
    """Write a DestinationRule for one service."""
    namespace, _ = place(index)
    return f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: rule-{index}
  namespace: {namespace}
spec:
  host: service-{index}.{namespace}.svc.cluster.local
  trafficPolicy:
    tls:
      mode: ISTIO_MUTUAL
"""


def workload(index: int) -> str:
    """Write a WorkloadEntry."""
    namespace, app = place(index)
    return f"""
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: workload-{index}
  namespace: {namespace}
spec:
  address: 10.{index >> 16}.{index >> 8 & 255}.{index & 255}
  serviceAccount: {app}
  labels:
    app: {app}
    version: v{index % 3}
"""


def measure_policies(resources: Sequence[Resource]) -> None:
    """Measure what each policy, each workload and each change costs."""
    found = [one for one in resources if isinstance(one, AuthorizationPolicy)]
    domains = TrustDomains.of(CONFIG)
    before = resident()
    start = time.process_time()
    compiled = {one.key: compile_policy(one, domains) for one in found}
    spent = time.process_time() - start
    row(f"compile {len(found)} of them", spent, "s", f"{spent / len(found) * 1e6:.0f} us each")
    row("memory of the compiled", (resident() - before) / 1e6, "MB")

    attachments = Attachments(found, root_namespace=ROOT)
    members = [
        Workload(namespace=one.metadata.namespace, labels=one.spec.labels)
        for one in resources
        if isinstance(one, WorkloadEntry)
    ]

    def build(member: Workload) -> Authorization:
        return Authorization([compiled[one.key] for one in attachments.for_workload(member)])

    start = time.process_time()
    for member in members:
        build(member)
    spent = time.process_time() - start
    row(
        f"build what decides for {len(members)} workloads",
        spent,
        "s",
        f"{spent / len(members) * 1e6:.0f} us each",
    )

    changed = found[0]

    def change() -> None:
        attachments.put(changed)
        compiled[changed.key] = compile_policy(changed, domains)
        build(members[0])

    row("one changed policy, at a workload it selects", best(change, 200) * 1e6, "us")


def measure_modes(resources: Sequence[Resource]) -> None:
    """Measure mutual TLS: the server's mode, and the client's choice."""
    modes = PeerAuthentications(
        [one for one in resources if isinstance(one, PeerAuthentication)], root_namespace=ROOT
    )
    rules = [one for one in resources if isinstance(one, DestinationRule)]
    outbound = OutboundPolicies(
        config=CONFIG, rules=DestinationRules(rules, root_namespace=ROOT), modes=modes
    )
    member = Workload(namespace="ns-8", labels={"app": "app-0"})
    row("mode of a workload's ports", best(lambda: modes.effective(member), 2000) * 1e6, "us")
    client = Client(namespace="ns-1")
    endpoint = Endpoint("ns-8", 8080, {"app": "app-0"}, takes_mtls=True)
    service = Service(host="web.ns-8.svc.cluster.local", namespace="ns-8", endpoints=(endpoint,))

    def choose() -> object:
        return outbound.tls_for(client, service, endpoint, service_port=80)

    row("how a client connects to an endpoint", best(choose, 2000) * 1e6, "us")


def measure_decisions() -> None:
    """Measure decisions where a hundred policies select the workload."""
    texts = [authorization(index * NAMESPACES * 10) for index in range(SELECTING)]
    names = compiled_from(texts)
    wildcards = compiled_from([text.replace('"team-', '"*-team-') for text in texts])
    stranger = connection("cluster.local/ns/nobody/sa/nobody")
    named = connection("cluster.local/ns/team-0/sa/x")
    plain = connection(None)
    request = HttpRequest.of("GET", "/api/v0/x", "web", [("user-agent", "bench")])
    cases: dict[str, Callable[[], object]] = {
        "connection that no rule names": lambda: names.decide(stranger),
        "connection that rules name": lambda: names.decide(named),
        "plaintext connection": lambda: names.decide(plain),
        "request that no rule names": lambda: names.decide(stranger, request),
        "request that rules name": lambda: names.decide(named, request),
        "connection, all rules with wildcards": lambda: wildcards.decide(stranger),
        "request, all rules with wildcards": lambda: wildcards.decide(stranger, request),
    }
    for name, decide in cases.items():
        row(f"decide: {name}", best(decide, 5000) * 1e6, "us", f"{SELECTING} policies")


def compiled_from(texts: Sequence[str]) -> Authorization:
    """Compile the AuthorizationPolicies of one workload."""
    domains = TrustDomains.of(CONFIG)
    resources = load_resources("---\n".join(texts)).resources
    found = [one for one in resources if isinstance(one, AuthorizationPolicy)]
    return Authorization([compile_policy(one, domains) for one in found])


def connection(peer: str | None) -> Connection:
    """Build a connection to a port that rules name."""
    return Connection(
        peer=None if peer is None else SpiffeId.parse(f"spiffe://{peer}"),
        source_ip=ip_address("10.1.0.1"),
        destination_ip=ip_address("10.2.0.1"),
        destination_port=8080,
    )


def best(work: Callable[[], object], repeats: int) -> float:
    """Return the CPU seconds of one call: the best mean of several rounds."""
    means: list[float] = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(repeats):
            work()
        means.append((time.process_time() - start) / repeats)
    return min(means)


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def row(what: str, value: float, unit: str, note: str = "") -> None:
    """Print one line of the table."""
    print(f"{what:<52} {value:>9.2f} {unit:<3} {note}".rstrip())


if __name__ == "__main__":
    main()
