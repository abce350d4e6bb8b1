"""Streams in memory, real gRPC, and a clock that jumps."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio
import trio.abc
import trio.testing
from trio.testing import MockClock

from ca.authenticate import Caller
from ca.discovery.fleet import Fleet
from ca.discovery.held import (
    AUTHORIZATION_POLICY,
    SERVED,
    SERVICE_ENTRY,
    WORKLOAD_ENTRY,
    WORKLOAD_GROUP,
)
from ca.discovery.registrar import Registrar
from ca.discovery.service import DiscoveryService
from ca.store.memory import Memory
from ca.store.store import Batch, ResourceStore
from mesh.api import DELTA_AGGREGATED_RESOURCES
from mesh.clock import trio_now
from mesh.discovery.codec import decode_resource
from mesh.discovery.errors import NotUnderstood
from mesh.discovery.node import ProxyNode, encode_node
from mesh.discovery.types import MESH_CONFIG_URL
from mesh.grpc import (
    ClientCall,
    GrpcError,
    GrpcServer,
    Limits,
    Peer,
    ServerCall,
    Service,
    Status,
    accept_plain,
    open_channel,
)
from mesh.protos.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node
from mesh.resources.loader import Loaded, load_resources
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.networking import WorkloadEntry
from mesh.resources.values import Resource
from mesh.spiffe import SpiffeId
from tests.ca.discovery.builders import authz, resource, service
from tests.pki import NOW

Call = ClientCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]
WEB_1 = ProxyNode(
    name="web-1",
    namespace="app",
    service_account="web",
    labels={"app": "web"},
    addresses=("10.0.0.1",),
    ports={"http": 8080},
)
CALLER = Caller(identity=SpiffeId.parse("spiffe://cluster.local/ns/app/sa/web"), authenticator="t")
QUIET = Limits(keepalive_interval=None, idle_timeout=None)


class Mesh:
    """A control plane without a directory: resources are put into it."""

    def __init__(self, nursery: trio.Nursery, memory: Path) -> None:
        self.now = trio_now(NOW)
        self.store = ResourceStore(memory, Memory(memory / "memory"), "cluster.local", self.now)
        self.fleet = Fleet(MeshConfig(), self.now)
        self.store.on_change = lambda batch: self.fleet.publish(batch, self.store.config)
        self.registrar = Registrar(self.store, self.fleet.world, self.now)
        self._nursery = nursery
        self._service = Service()
        DiscoveryService(self.fleet, self.registrar, self.identify, self.now).register(
            self._service
        )

    async def identify(self, _call: ServerCall) -> Caller:
        return CALLER

    def put(self, file: str, *resources: Resource) -> None:
        """Change a file of the directory, as it were."""
        loaded: Mapping[str, Loaded | None] = {file: Loaded(resources=resources)}
        self.store.on_change(Batch(changes=self.store.catalog.update(loaded)))

    async def connect(self) -> trio.abc.Stream:
        client, server = trio.testing.memory_stream_pair()
        serve = GrpcServer(self._service, accept_plain, QUIET).serve_stream
        self._nursery.start_soon(serve, server, Peer(address="memory"))
        return client

    @asynccontextmanager
    async def proxy(self) -> AsyncGenerator[Call]:
        async with (
            open_channel(self.connect, limits=QUIET) as channel,
            channel.stream(DELTA_AGGREGATED_RESOURCES) as call,
        ):
            yield call


@pytest.fixture
async def mesh(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Mesh]:
    monkeypatch.setattr("trio.to_thread.run_sync", run_here)
    async with trio.open_nursery() as nursery:
        made = Mesh(nursery, tmp_path)
        await nursery.start(made.registrar.run)
        yield made
        nursery.cancel_scope.cancel()


async def run_here(function: Callable[..., Any], *arguments: Any) -> Any:
    """Stand in for a thread, which a clock that jumps would not wait for."""
    await trio.lowlevel.checkpoint()
    return function(*arguments)


async def say(call: Call, url: str, node: ProxyNode | Node | None = None, **fields: Any) -> None:
    error = fields.pop("error", None)
    request = DeltaDiscoveryRequest(type_url=url, **fields)
    if node is not None:
        request.node.CopyFrom(encode_node(node) if isinstance(node, ProxyNode) else node)
    if error is not None:
        request.error_detail.message = error
    await call.send(request)


async def hear(call: Call) -> DeltaDiscoveryResponse:
    with trio.fail_after(60):
        async for response in call:
            return response
    raise AssertionError("the stream ended")


async def subscribed(call: Call, url: str, node: ProxyNode = WEB_1) -> DeltaDiscoveryResponse:
    """Subscribe to everything of one type, and acknowledge what comes."""
    await say(call, url, node, resource_names_subscribe=["*"])
    response = await hear(call)
    await say(call, url, response_nonce=response.nonce)
    return response


async def nothing_comes(call: Call) -> None:
    with trio.move_on_after(30) as scope:
        await hear(call)
    assert scope.cancelled_caught


def names(response: DeltaDiscoveryResponse) -> list[str]:
    return [one.name for one in response.resources]


async def refused(mesh: Mesh, *requests: DeltaDiscoveryRequest) -> GrpcError:
    with pytest.raises(GrpcError) as caught:
        await send_all(mesh, requests)
    await trio.testing.wait_all_tasks_blocked()
    assert not mesh.fleet.clients
    return caught.value


async def send_all(mesh: Mesh, requests: Sequence[DeltaDiscoveryRequest]) -> None:
    async with mesh.proxy() as call:
        for request in requests:
            await call.send(request)
        async for _ in call:
            pass


async def test_every_type_is_answered_and_changes_follow(
    autojump_clock: MockClock, mesh: Mesh
) -> None:
    mesh.put("a.yaml", authz("app/p"), authz("other/q"))
    async with mesh.proxy() as call:
        for url in SERVED:
            response = await subscribed(call, url)
            expected = {MESH_CONFIG_URL: ["mesh"], AUTHORIZATION_POLICY: ["app/p"]}
            assert (response.type_url, names(response)) == (url, expected.get(url, []))
        mesh.put("a.yaml", authz("app/p", action="DENY"), authz("other/q", action="DENY"))
        response = await hear(call)
        [policy] = response.resources
        decoded = decode_resource(response.type_url, policy)
        assert decoded == authz("app/p", action="DENY")
        await say(call, AUTHORIZATION_POLICY, response_nonce=response.nonce)
        mesh.put("a.yaml")
        assert list((await hear(call)).removed_resources) == ["app/p"]
        mesh.put("b.yaml", authz("other/r"))
        await nothing_comes(call)
    assert not mesh.fleet.clients


async def test_a_file_of_which_nothing_can_be_read_is_announced_to_everybody(
    autojump_clock: MockClock, mesh: Mesh
) -> None:
    async with mesh.proxy() as call:
        await subscribed(call, AUTHORIZATION_POLICY)
        loaded: Mapping[str, Loaded | None] = {"a.yaml": load_resources("a: [")}
        mesh.store.on_change(Batch(changes=mesh.store.catalog.update(loaded)))
        response = await hear(call)
        [announced] = response.resources
        assert announced.name == "*/unreadable-a.yaml"
        with pytest.raises(NotUnderstood, match="holds it but could not read it"):
            decode_resource(response.type_url, announced)
        await say(call, AUTHORIZATION_POLICY, response_nonce=response.nonce)
    async with mesh.proxy() as later:
        other = await subscribed(later, AUTHORIZATION_POLICY)
        assert names(other) == ["*/unreadable-a.yaml"]


async def test_versions_grow_and_can_be_read(autojump_clock: MockClock, mesh: Mesh) -> None:
    async with mesh.proxy() as call:
        first = await subscribed(call, AUTHORIZATION_POLICY)
        mesh.put("a.yaml", authz("app/p"))
        second = await hear(call)
    moment = f"{NOW:%Y-%m-%dT%H:%M:%SZ}"
    assert first.system_version_info == f"{moment}/1"
    assert second.system_version_info == f"{moment}/2"


async def test_a_proxy_that_never_answers_holds_up_nobody_and_keeps_no_queue(
    autojump_clock: MockClock, mesh: Mesh
) -> None:
    async with mesh.proxy() as stuck, mesh.proxy() as quick:
        await say(stuck, AUTHORIZATION_POLICY, WEB_1, resource_names_subscribe=["*"])
        first = await hear(stuck)
        await subscribed(quick, AUTHORIZATION_POLICY)
        for number in range(20):
            mesh.put("a.yaml", authz(f"app/p{number}"))
            response = await hear(quick)
            assert names(response) == [f"app/p{number}"]
            await say(quick, AUTHORIZATION_POLICY, response_nonce=response.nonce)
        await nothing_comes(stuck)
        await say(stuck, AUTHORIZATION_POLICY, response_nonce="wrong")
        await nothing_comes(stuck)
        await say(stuck, AUTHORIZATION_POLICY, response_nonce=first.nonce)
        assert names(await hear(stuck)) == ["app/p19"]


async def test_services_come_after_and_go_before_what_belongs_to_them(
    autojump_clock: MockClock, mesh: Mesh
) -> None:
    entry = service("app/s", "db.example", selects={"app": "db"})
    behind = resource("WorkloadEntry", "app/w", {"address": "10.9.9.9", "labels": {"app": "db"}})
    async with mesh.proxy() as call:
        for url in SERVED:
            await subscribed(call, url)
        mesh.put("a.yaml", entry, behind, authz("app/p"))
        seen = []
        for _ in range(3):
            response = await hear(call)
            seen.append(response.type_url)
            await say(call, response.type_url, response_nonce=response.nonce)
        assert seen == [AUTHORIZATION_POLICY, WORKLOAD_ENTRY, SERVICE_ENTRY]
        mesh.put("a.yaml")
        gone = []
        for _ in range(3):
            response = await hear(call)
            gone.append(response.type_url)
            await say(call, response.type_url, response_nonce=response.nonce)
        assert gone == [AUTHORIZATION_POLICY, SERVICE_ENTRY, WORKLOAD_ENTRY]


async def test_a_refusal_is_logged_with_its_words(autojump_clock: MockClock, mesh: Mesh) -> None:
    mesh.put("a.yaml", authz("app/p"))
    async with mesh.proxy() as call:
        await say(call, AUTHORIZATION_POLICY, WEB_1, resource_names_subscribe=["*"])
        response = await hear(call)
        with structlog.testing.capture_logs() as logs:
            await say(
                call, AUTHORIZATION_POLICY, response_nonce=response.nonce, error="no such field"
            )
            await nothing_comes(call)
    [line] = [line for line in logs if line.get("reason") == "nack"]
    assert (line["kind"], line["detail"]) == ("AuthorizationPolicy", "no such field")


def first(node: Node | None = None, url: str = AUTHORIZATION_POLICY) -> DeltaDiscoveryRequest:
    return DeltaDiscoveryRequest(node=node, type_url=url, resource_names_subscribe=["*"])


def node(**changes: Any) -> Node:
    facts = {"name": "web-1", "namespace": "app", "service_account": "web", **changes}
    return encode_node(ProxyNode(**facts))


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        pytest.param(first(), Status.INVALID_ARGUMENT, "must carry the node", id="no-node"),
        pytest.param(first(Node(id="x")), Status.INVALID_ARGUMENT, "NAME and NAMES", id="garbage"),
        pytest.param(
            first(node(namespace="other")),
            Status.PERMISSION_DENIED,
            "the caller is spiffe://cluster.local/ns/app/sa/web",
            id="foreign-namespace",
        ),
        pytest.param(
            first(node(service_account="root")), Status.PERMISSION_DENIED, "'root'", id="account"
        ),
        pytest.param(
            first(node(service_account="")), Status.PERMISSION_DENIED, "''", id="no-account"
        ),
        pytest.param(
            first(node(namespace="app/ns")), Status.PERMISSION_DENIED, "app/ns", id="slash"
        ),
        pytest.param(
            first(node(), "type.googleapis.com/envoy.config.cluster.v3.Cluster"),
            Status.INVALID_ARGUMENT,
            "is not served here, only core/v1alpha1/MeshConfig",
            id="unknown-type",
        ),
        pytest.param(
            DeltaDiscoveryRequest(
                node=node(),
                type_url=AUTHORIZATION_POLICY,
                resource_names_subscribe=[f"app/{number}" for number in range(10_001)],
            ),
            Status.INVALID_ARGUMENT,
            "10001 names",
            id="huge",
        ),
        pytest.param(
            first(node(group="none")),
            Status.FAILED_PRECONDITION,
            "there is no WorkloadGroup app/none",
            id="no-group",
        ),
    ],
)
async def test_streams_that_make_no_sense_are_refused_in_a_sentence(
    autojump_clock: MockClock, mesh: Mesh, request_: DeltaDiscoveryRequest, code: Status, words: str
) -> None:
    error = await refused(mesh, request_)
    assert error.code is code
    assert words in error.message


async def test_a_later_request_for_an_unknown_type_ends_the_stream(
    autojump_clock: MockClock, mesh: Mesh
) -> None:
    error = await refused(mesh, first(node()), DeltaDiscoveryRequest(type_url="x"))
    assert error.code is Status.INVALID_ARGUMENT


async def test_a_stream_that_says_nothing_is_ended(autojump_clock: MockClock, mesh: Mesh) -> None:
    error = await refused(mesh)
    assert error.code is Status.DEADLINE_EXCEEDED


async def test_groups_are_answered_with_nothing(autojump_clock: MockClock, mesh: Mesh) -> None:
    mesh.put("g.yaml", GROUP)
    async with mesh.proxy() as call:
        assert names(await subscribed(call, WORKLOAD_GROUP)) == []


async def test_more_than_the_most_proxies_are_not_taken(
    autojump_clock: MockClock, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ca.discovery.fleet.MAX_PROXIES", 1)
    async with mesh.proxy() as call:
        await subscribed(call, AUTHORIZATION_POLICY)
        with pytest.raises(GrpcError) as caught:
            async with mesh.proxy() as other:
                await subscribed(other, AUTHORIZATION_POLICY)
    assert caught.value.code is Status.RESOURCE_EXHAUSTED


GROUP = resource(
    "WorkloadGroup",
    "app/webs",
    {
        "metadata": {"labels": {"team": "a", "app": "group"}, "annotations": {"note": "x"}},
        "template": {
            "serviceAccount": "web",
            "labels": {"version": "1", "team": "b"},
            "ports": {"grpc": 9090},
        },
    },
)
GROUPED = ProxyNode(
    name="web-1",
    namespace="app",
    service_account="web",
    labels={"app": "web"},
    addresses=("10.0.0.1",),
    ports={"http": 8080},
    group="webs",
)
ENTRY = ("WorkloadEntry", "app/webs-10.0.0.1")


def registered(mesh: Mesh) -> WorkloadEntry | None:
    entry = mesh.store.catalog.in_force.get(ENTRY)
    assert entry is None or isinstance(entry, WorkloadEntry)
    return entry


async def test_a_proxy_registers_and_is_told_of_itself(
    autojump_clock: MockClock, mesh: Mesh
) -> None:
    mesh.put("g.yaml", GROUP)
    async with mesh.proxy() as call:
        assert names(await subscribed(call, WORKLOAD_ENTRY, GROUPED)) == ["app/webs-10.0.0.1"]
        entry = registered(mesh)
        assert entry is not None
        assert entry.spec.labels == {
            "version": "1", "team": "a", "app": "web", "security.istio.io/tlsMode": "istio"
        }  # fmt: skip
        assert entry.spec.ports == {"grpc": 9090, "http": 8080}
        assert entry.spec.service_account == "web"
        assert entry.metadata.annotations["istio.io/autoRegistrationGroup"] == "webs"


async def test_an_entry_outlives_its_proxy_by_the_grace_period(
    autojump_clock: MockClock, mesh: Mesh
) -> None:
    mesh.put("g.yaml", GROUP)
    async with mesh.proxy() as call:
        await subscribed(call, WORKLOAD_ENTRY, GROUPED)
    await trio.testing.wait_all_tasks_blocked()
    left = trio.current_time()
    await trio.sleep(9)
    assert registered(mesh) is not None
    await until(lambda: registered(mesh) is None)
    assert 9.9 < trio.current_time() - left < 11


async def test_a_proxy_that_comes_back_keeps_its_entry_as_it_was(
    autojump_clock: MockClock, mesh: Mesh
) -> None:
    mesh.put("g.yaml", GROUP)
    async with mesh.proxy() as call:
        await subscribed(call, WORKLOAD_ENTRY, GROUPED)
        before = registered(mesh)
    await trio.sleep(5)
    async with mesh.proxy() as call:
        await subscribed(call, WORKLOAD_ENTRY, GROUPED)
        await trio.sleep(60)
        assert registered(mesh) is before
        async with mesh.proxy() as newer:
            await subscribed(newer, WORKLOAD_ENTRY, GROUPED)
            await trio.sleep(1)
        await trio.sleep(5)
    assert registered(mesh) is before


async def test_an_entry_stays_for_the_first_proxy_when_a_second_of_its_address_goes(
    autojump_clock: MockClock, mesh: Mesh
) -> None:
    mesh.put("g.yaml", GROUP)
    async with mesh.proxy() as call:
        await subscribed(call, WORKLOAD_ENTRY, GROUPED)
        async with mesh.proxy() as second:
            await subscribed(second, WORKLOAD_ENTRY, GROUPED)
        await trio.sleep(60)
        assert registered(mesh) is not None
    await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(9)
    assert registered(mesh) is not None
    await until(lambda: registered(mesh) is None)


async def test_an_entry_of_an_earlier_run_waits_for_its_proxy(
    autojump_clock: MockClock, mesh: Mesh, tmp_path: Path
) -> None:
    mesh.put("g.yaml", GROUP)
    async with mesh.proxy() as call:
        await subscribed(call, WORKLOAD_ENTRY, GROUPED)
    files, _ = Memory(tmp_path / "memory").read()
    async with trio.open_nursery() as nursery:
        again = Mesh(nursery, tmp_path)
        for file, kept in files.items():
            again.store.catalog.remember(file, kept)
        await nursery.start(again.registrar.run)
        assert registered(again) == registered(mesh)
        await trio.sleep(9)
        assert registered(again) is not None
        await until(lambda: registered(again) is None)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"addresses": ()}, "must say its address", id="no-address"),
        pytest.param({"addresses": ("10.0.0.1 x",)}, "spec.address", id="bad-address"),
        pytest.param({"ports": {"not a name": 80}}, "spec.ports", id="bad-port"),
        pytest.param({"labels": {"not a label!": "x"}}, "spec.labels", id="bad-label"),
    ],
)
async def test_what_cannot_be_registered_is_refused(
    autojump_clock: MockClock, mesh: Mesh, changes: dict[str, Any], words: str
) -> None:
    mesh.put("g.yaml", GROUP)
    error = await refused(
        mesh, first(node(group="webs", **{"addresses": ("10.0.0.1",), **changes}))
    )
    assert error.code is Status.INVALID_ARGUMENT
    assert words in error.message
    assert registered(mesh) is None


async def test_a_group_of_another_account_is_not_for_this_workload(
    autojump_clock: MockClock, mesh: Mesh
) -> None:
    mesh.put("g.yaml", resource("WorkloadGroup", "app/webs", {"template": {"serviceAccount": "x"}}))
    error = await refused(mesh, first(node(group="webs", addresses=("10.0.0.1",))))
    assert "is for the service account 'x'" in error.message


async def until(done: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not done():  # noqa: ASYNC110 - time jumps
            await trio.sleep(0.1)
