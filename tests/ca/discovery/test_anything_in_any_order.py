"""Whatever the order of subscribing, changing, acknowledging, leaving and coming back: in the end
a client has exactly what concerns it, in the newest version."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, precondition, rule

from ca.discovery.client import Client
from ca.discovery.fleet import Fleet
from ca.discovery.held import SERVED, SERVICE_ENTRY
from ca.store.catalog import Ident, InForce, ident_of
from ca.store.store import Batch
from mesh.discovery.node import ProxyNode
from mesh.discovery.types import EVERYTHING
from mesh.protos.discovery_pb2 import DeltaDiscoveryRequest, Node
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.problem import Refused
from mesh.resources.values import Resource
from tests.ca.discovery import builders
from tests.ca.discovery.builders import change
from tests.pki import NOW

LABELS = st.sampled_from([None, {"app": "web"}, {"app": "db"}, {"zone": "a"}])
SOME_LABELS = st.sampled_from([{"app": "web"}, {"app": "db"}, {"app": "db", "zone": "a"}])
NAMESPACES = st.sampled_from(["app", "data", "istio-system"])
NAMES = st.builds("{}/{}".format, NAMESPACES, st.sampled_from(["x", "y"]))
HOSTS = st.sampled_from(["db.example", "web.example", "*.example"])
EXPORTS = st.sampled_from([(), (".",), ("*",), ("app",)])

RESOURCES: st.SearchStrategy[Resource] = st.one_of(
    st.builds(builders.authz, NAMES, LABELS, st.sampled_from(["ALLOW", "DENY"])),
    st.builds(builders.peer_authn, NAMES, LABELS, st.sampled_from(["STRICT", "DISABLE"])),
    st.builds(builders.request_authn, NAMES, LABELS),
    st.builds(builders.service, NAMES, HOSTS, selects=SOME_LABELS, export=EXPORTS),
    st.builds(
        builders.service,
        NAMES,
        HOSTS,
        endpoints=st.just([{"address": "10.0.0.1", "labels": {"zone": "a"}}]),
        export=EXPORTS,
    ),
    st.builds(builders.workload, NAMES, st.sampled_from(["10.0.0.1", "10.0.0.2"]), SOME_LABELS),
    st.builds(builders.rule, NAMES, st.sampled_from(["db.example", "*.example"])),
)


def sometimes_refused(one: Resource, luck: int) -> InForce:
    return one if luck else Refused(type(one).__name__, *one.key.split("/"))


VALUES: st.SearchStrategy[InForce] = st.builds(sometimes_refused, RESOURCES, st.integers(0, 7))
SERVICES = st.sampled_from([("*",), ("db.example",), ("web.example", "db.example")])


class Proxy:
    """A client that does what it is told, over as many streams as it takes."""

    def __init__(self, node: ProxyNode, services: tuple[str, ...]) -> None:
        self.node = node
        self.services = services
        self.held: dict[str, dict[str, str]] = {url: {} for url in SERVED}
        self.pending: list[tuple[str, str]] = []
        self.client: Client | None = None

    def names(self, url: str) -> tuple[str, ...]:
        return self.services if url == SERVICE_ENTRY else (EVERYTHING,)

    def subscribe(self, client: Client) -> None:
        self.client, self.pending = client, []
        for url in SERVED:
            request = DeltaDiscoveryRequest(
                type_url=url,
                resource_names_subscribe=self.names(url),
                initial_resource_versions=self.held[url],
            )
            client.take(request, NOW)


class Discovery(RuleBasedStateMachine):
    proxies = Bundle("proxies")

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet(MeshConfig(), lambda: NOW)
        self.resources: dict[Ident, InForce] = {}
        self.all: list[Proxy] = []
        self.streams: dict[int, object] = {}
        self.nonce = 0

    @initialize()
    def some_are_there(self) -> None:
        for services in (("*",), ("db.example",)):
            for namespace in ("app", "data"):
                self.a_proxy_comes(namespace, {"app": "db", "zone": "a"}, services, ())
        self.settle()

    @rule(
        target=proxies,
        namespace=NAMESPACES,
        labels=SOME_LABELS,
        services=SERVICES,
        addresses=st.sampled_from([(), ("10.0.0.1",)]),
    )
    def another_comes(
        self,
        namespace: str,
        labels: dict[str, str],
        services: tuple[str, ...],
        addresses: tuple[str, ...],
    ) -> Proxy:
        return self.a_proxy_comes(namespace, labels, services, addresses)

    def a_proxy_comes(
        self,
        namespace: str,
        labels: dict[str, str],
        services: tuple[str, ...],
        addresses: tuple[str, ...],
    ) -> Proxy:
        node = ProxyNode(
            name=f"p{len(self.all)}",
            namespace=namespace,
            service_account="web",
            labels=labels,
            addresses=addresses,
        )
        proxy = Proxy(node, services)
        self.all.append(proxy)
        self.connect(proxy)
        return proxy

    def connect(self, proxy: Proxy) -> None:
        client = Client(proxy.node, Node(), own="", peer="test", since=NOW)
        stream = self.fleet.connected(client)
        stream.__enter__()
        self.streams[id(proxy)] = stream
        proxy.subscribe(client)

    @rule(proxy=proxies)
    def it_loses_its_stream(self, proxy: Proxy) -> None:
        if proxy.client is not None:
            self.streams.pop(id(proxy)).__exit__(None, None, None)  # type: ignore[attr-defined]
            proxy.client = None

    @rule(proxy=proxies)
    def it_comes_back(self, proxy: Proxy) -> None:
        if proxy.client is None:
            self.connect(proxy)

    @rule(proxy=proxies)
    def it_is_sent_something(self, proxy: Proxy) -> None:
        self.push(proxy)

    @rule(proxy=proxies, why=st.sampled_from(["", "", "", "no"]))
    def it_answers(self, proxy: Proxy, why: str) -> None:
        self.answer(proxy, why)

    @rule(proxy=proxies, services=SERVICES)
    def it_calls_others(self, proxy: Proxy, services: tuple[str, ...]) -> None:
        old, proxy.services = proxy.services, services
        if proxy.client is not None:
            request = DeltaDiscoveryRequest(
                type_url=SERVICE_ENTRY,
                resource_names_subscribe=services,
                resource_names_unsubscribe=set(old) - set(services),
            )
            proxy.client.take(request, NOW)

    @rule(values=st.lists(VALUES, min_size=1, max_size=4))
    def resources_change(self, values: list[InForce]) -> None:
        chosen = {self.ident(value): value for value in values}
        changes = [
            change(self.resources.get(ident), value)
            for ident, value in chosen.items()
            if self.resources.get(ident) != value
        ]
        self.resources |= chosen
        self.fleet.publish(Batch(changes=tuple(changes)), MeshConfig())

    @precondition(lambda self: self.resources)
    @rule(data=st.data())
    def one_is_removed(self, data: st.DataObject) -> None:
        ident = data.draw(st.sampled_from(sorted(self.resources)))
        gone = self.resources.pop(ident)
        self.fleet.publish(Batch(changes=(change(gone, None),)), MeshConfig())

    @rule(root=st.sampled_from(["istio-system", "data"]), really=st.integers(0, 4))
    def the_root_moves(self, root: str, really: int) -> None:
        if really:  # rarely, because it makes everybody look at everything
            return
        self.fleet.publish(Batch(settings=True), MeshConfig(root_namespace=root))

    @rule()
    def things_settle(self) -> None:
        self.settle()

    def teardown(self) -> None:
        self.settle()

    def settle(self) -> None:
        """Let every client take what is due until nothing is, and look at what it has."""
        for proxy in self.all:
            if proxy.client is None:
                continue
            self.answer(proxy, "")
            while self.push(proxy):
                self.answer(proxy, "")
            world, viewer = self.fleet.world, proxy.client.viewer
            for url in SERVED:
                everything = {
                    name: held.version
                    for name, held in world.all_of(url).items()
                    if world.concerns(viewer, held)
                }
                assert set(world.everything_for(viewer, url)) == set(everything), url
                assert proxy.held[url] == everything, url

    def push(self, proxy: Proxy) -> bool:
        if proxy.client is None or (due := proxy.client.next(self.fleet.world)) is None:
            return False
        subscription, sending = due
        self.nonce += 1
        subscription.sending(sending, version="v", nonce=str(self.nonce), now=NOW)
        held = proxy.held[subscription.url]
        for name in sending.removed:
            held.pop(name, None)
        held |= {one.name: one.version for one in sending.resources}
        proxy.pending.append((subscription.url, str(self.nonce)))
        return True

    def answer(self, proxy: Proxy, why: str) -> None:
        while proxy.client is not None and proxy.pending:
            url, nonce = proxy.pending.pop(0)
            request = DeltaDiscoveryRequest(type_url=url, response_nonce=nonce)
            if why:
                request.error_detail.message = why
            proxy.client.take(request, NOW)

    @staticmethod
    def ident(value: InForce) -> Ident:
        if isinstance(value, Refused):
            return value.kind, f"{value.namespace}/{value.name}"
        return ident_of(value)


TestDiscovery = Discovery.TestCase
TestDiscovery.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
