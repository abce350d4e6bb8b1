"""Captured traffic between pods on two nodes: apps without a setting, in a real kernel."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.capture.options import OWN_PORTS
from tests.namespaced.pods import APP, PORT, SIDECAR, City, Pod, Program, city
from tests.namespaces import Namespace, needs_namespaces

pytestmark = [needs_namespaces, pytest.mark.e2e, pytest.mark.timeout(180)]

CONNECTIONS = 2000


@dataclass(frozen=True)
class World:
    city: City
    client: Pod
    """In the mesh, on the first node."""
    near: Pod
    """In the mesh, on the same node, STRICT."""
    far: Pod
    """In the mesh, on the other node, STRICT."""
    plain: Pod
    """Not in the mesh, on the first node."""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with city() as made:
        pods = {name: made.pod(name, node) for name, node in PLACES.items()}
        servers = [pods["near"], pods["far"]]
        known = [
            f"--destination={host}:{PORT}@{pod.identity}"
            for pod in servers
            for host in (pod.ip, f"[{pod.ip6}]")
        ]
        with ThreadPoolExecutor() as pool:
            joining = [pool.submit(pods["client"].join_mesh, *known, "--mtls-mode=STRICT")]
            joining += [pool.submit(pod.join_mesh, "--mtls-mode=STRICT") for pod in servers]
        for one in joining:
            one.result()
        yield World(made, **pods)


PLACES = {"client": 0, "near": 0, "far": 1, "plain": 0}


@pytest.mark.parametrize("server", ["near", "far"])
@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_an_app_that_knows_nothing_speaks_mutual_tls_on_its_node_and_across(
    world: World, server: str, family: str
) -> None:
    pod: Pod = getattr(world, server)
    host, source = getattr(pod, family), {"ip": "127.0.0.6", "ip6": "::6"}[family]
    assert world.client.proxy is not None
    assert pod.proxy is not None
    here, there = world.client.lines(), pod.lines()
    assert world.client.dial(host, "who") == source
    mutual = ("transport=mtls", world.client.identity, pod.identity, "connection closed")
    world.client.proxy.wait_for(*mutual, "direction=outbound", since=here)
    pod.proxy.wait_for(*mutual, "direction=inbound", f":{PORT}", since=there)


def test_plaintext_from_outside_is_reset_and_never_reaches_a_strict_app(world: World) -> None:
    for host in (world.far.ip, world.far.ip6, world.near.ip):
        assert world.plain.dial(host, "who") == "reset"


def test_what_the_mesh_does_not_know_is_passed_through(world: World) -> None:
    assert world.client.dial(world.plain.ip, "who") == world.client.ip
    assert world.client.dial(world.plain.ip6, "who") == world.client.ip6


# The loopback matrix, row by row.


def test_the_app_reaches_its_own_loopback_directly(world: World) -> None:
    before = world.near.lines()
    assert world.near.dial("127.0.0.1", "who") == "127.0.0.1"
    assert world.near.dial("::1", "who") == "::1"
    assert world.near.lines() == before


def test_the_app_reaches_its_own_address_directly_without_mutual_tls(world: World) -> None:
    before = world.near.lines()
    assert world.near.dial(world.near.ip, "who") == world.near.ip
    assert world.near.dial(world.near.ip6, "who") == world.near.ip6
    assert world.near.lines() == before


def test_the_proxys_call_to_its_own_pod_enters_by_the_inbound_side(world: World) -> None:
    # As the outbound side would after choosing this very pod, but in plaintext: STRICT resets it,
    # so it was judged.
    assert world.near.proxy is not None
    for host in (world.near.ip, world.near.ip6):
        before = world.near.lines()
        assert world.near.dial(host, "who", who=SIDECAR) == "reset"
        world.near.proxy.wait_for("plaintext_on_strict", f":{PORT}", since=before)


@pytest.mark.parametrize(("family", "source"), [("ip", "127.0.0.6"), ("ip6", "::6")])
def test_the_proxys_delivery_to_the_app_is_not_captured(
    world: World, family: str, source: str
) -> None:
    before = world.near.lines()
    host = getattr(world.near, family)
    assert world.near.dial(host, "who", who=SIDECAR, source=source) == source
    assert world.near.lines() == before


def test_the_proxy_reaches_the_app_on_localhost_directly(world: World) -> None:
    before = world.near.lines()
    assert world.near.dial("127.0.0.1", "who", who=SIDECAR) == "127.0.0.1"
    assert world.near.dial("::1", "who", who=SIDECAR) == "::1"
    assert world.near.lines() == before


def test_a_call_to_oneself_by_way_of_the_outbound_side_is_mutual_tls(world: World) -> None:
    # A way out that leads to this very pod, as a service's address may.
    pod, usual = world.near, world.near.proxy_arguments
    assert pod.proxy is not None
    way = f"--outbound={pod.ip}:9000={pod.ip}:{PORT}@{pod.identity}"
    pod.proxy.end()
    pod.proxy_arguments = (*usual, way)
    proxy = pod.start_proxy()
    try:
        assert pod.dial(pod.ip, "who", port=9000) == "127.0.0.6"
        mutual = ("transport=mtls", f"own_id={pod.identity}", f"peer_id={pod.identity}")
        proxy.wait_for("direction=outbound", *mutual)
        proxy.wait_for("direction=inbound", *mutual)
    finally:
        proxy.end()
        pod.proxy_arguments = usual
        pod.start_proxy()


# Loops.


@pytest.mark.parametrize("port", sorted(OWN_PORTS))
def test_no_port_of_the_proxy_can_be_made_to_loop_or_hang(world: World, port: int) -> None:
    attempts = [
        (pod, host) for pod in (world.plain, world.client) for host in (world.far.ip, world.far.ip6)
    ]
    attempts += [(world.far, host) for host in (world.far.ip, world.far.ip6, "127.0.0.1", "::1")]
    for pod, host in attempts:
        assert pod.dial(host, "who", port=port) in {"refused", "reset"}, f"{pod.name} to {host}"
    assert open_connections(world.far) == 0


def open_connections(pod: Pod) -> int:
    """Connections that the sidecar has open."""
    assert pod.proxy is not None
    found = pod.space.run("ss", "-tnpH", "state", "established").stdout
    return found.count(f"pid={pod.proxy.pid},")


# What is on the wire.


@contextmanager
def tap(space: Namespace, device: str, directory: Path) -> Iterator[Path]:
    """Record what passes on a device while the block runs."""
    path = directory / f"{device}.pcap"
    flags = ("-i", device, "-U", "--immediate-mode", "-s", "0", "-Z", "root", "-w", str(path))
    recorder = Program(space.command("tcpdump", *flags))
    recorder.wait_for("listening on")
    try:
        yield path
    finally:
        recorder.end(signal.SIGINT)


def test_the_wire_between_the_nodes_carries_tls_only(world: World) -> None:
    secret, known = "the-secret-of-the-client", "what-plain-says-to-a-plain-app"
    other = world.city.pod("other", 1)
    with tap(world.city.nodes[0], "v99a", world.city.directory) as path:
        assert world.client.dial(world.far.ip, "say", secret) == "whole"
        assert world.client.dial(world.far.ip6, "say", secret) == "whole"
        assert world.plain.dial(other.ip, "say", known) == "whole"
    wire = path.read_bytes()
    assert known.encode() in wire  # or the tap would prove nothing
    assert secret.encode() not in wire
    assert b"\x17\x03\x03" in wire


# Trouble.


def test_large_transfers_survive_a_cable_with_small_packets(world: World) -> None:
    for host in (world.far.ip, world.far.ip6):
        assert world.client.dial(host, "sink", str(30 * 1024 * 1024)) == "whole"


def test_thousands_of_connections_come_through_and_none_is_left(world: World) -> None:
    assert world.client.dial(world.far.ip, "many", str(CONNECTIONS)) == f"127.0.0.6:{CONNECTIONS}"
    for pod in (world.client, world.far):
        assert pod.proxy is not None
        assert open_connections(pod) == 0


def hold(world: World) -> Program:
    """Open a captured connection, on which every line is echoed."""
    script = str(Path(__file__).parent / "dial.py")
    command = world.client.space.command(
        *APP, sys.executable, "-S", script, world.far.ip, str(PORT), "hold"
    )
    held = world.city.program(command)
    held.write("before\n")
    held.wait_for("before")
    return held


def test_rules_can_be_replaced_under_traffic(world: World) -> None:
    held = hold(world)
    world.client.space.remora("capture", "apply", "--exclude-ports", "25")
    held.write("in between\n")
    held.wait_for("in between")
    world.client.space.remora("capture", "apply")
    held.write("after\n")
    held.wait_for("after")
    held.end()


@pytest.mark.parametrize("backend", ["nft", "iptables"])
def test_rules_that_go_under_traffic_let_no_byte_of_it_out(world: World, backend: str) -> None:
    pod = world.client
    pod.space.remora("capture", "apply", "--backend", backend)
    held = hold(world)
    with tap(pod.space, f"v{pod.subnet}a", world.city.directory) as wire:
        pod.space.remora("capture", "clean")
        held.write("without rules\n")
        held.wait_for("reset")
        # A new connection is captured no more, and the STRICT server lets no plaintext in.
        assert pod.dial(world.far.ip, "say", "captured no more") == "reset"
    assert b"captured no more" in wire.read_bytes()
    assert b"without rules" not in wire.read_bytes()
    held.end()
    pod.space.remora("capture", "apply")
    assert pod.dial(world.far.ip, "who") == "127.0.0.6"


def test_a_killed_proxy_means_refused_never_plaintext(world: World) -> None:
    for pod in (world.client, world.far):
        assert pod.proxy is not None
        pod.proxy.end(signal.SIGKILL)
        caller = world.client if pod is world.client else world.plain
        for host in (world.far.ip, world.far.ip6):
            assert caller.dial(host, "who") == "refused"
        pod.start_proxy()
    assert world.client.dial(world.far.ip, "who") == "127.0.0.6"


def test_with_tproxy_the_app_sees_the_client_itself(world: World) -> None:
    pod = world.city.pod("tproxy", 1)
    pod.join_mesh("--mtls-mode=PERMISSIVE", tproxy=True)
    assert pod.proxy is not None
    for host, client, plain in (
        (pod.ip, world.client.ip, world.plain.ip),
        (pod.ip6, world.client.ip6, world.plain.ip6),
    ):
        assert world.client.dial(host, "who") == client
        assert world.plain.dial(host, "who") == plain
        assert world.plain.dial(host, "sink", str(3 * 1024 * 1024)) == "whole"
        assert world.plain.dial(host, "who", port=15006) in {"refused", "reset"}
        assert pod.dial(host, "who") == host
    assert world.plain.dial(pod.ip, "many", "200") == f"{world.plain.ip}:200"
    assert open_connections(pod) == 0


def test_the_tools_of_these_tests_are_there() -> None:
    assert shutil.which("tcpdump")
    assert shutil.which("ss")
