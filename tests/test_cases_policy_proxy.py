"""Runs the sample of Istio's expectations through our proxy on real sockets.

What the pure runners show of decisions, these show of connections: what the client meets, what the
app gets, and what is on the wire. The ports of the cases are not free on every machine, so the two
places where the proxy dials are led to the ports of the test's own servers.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from mesh.address import Address
from mesh.policy.destination import Client
from mesh.policy.selection import Workload
from mesh.policy.trust_domains import TrustDomains
from mesh.resources.values import Resource
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.svid import X509Svid
from mesh.tls import TlsContext, client_context
from mesh.tls_errors import TlsError
from mesh.tls_origination import UserCredential
from mesh.tls_stream import TlsStream
from mesh.verify import PeerRejected
from proxy.config import Inbound
from proxy.dial import dial
from proxy.errors import ConnectionFailed
from proxy.identity import Identity
from proxy.inbound import InboundHandler
from proxy.listener import Handler
from proxy.live_policy import LivePolicy
from proxy.route import Forward
from proxy.router import Router
from proxy.view import ViewCompiler
from tests.pki import NOW, Authority, Leaf, make_root
from tests.policy_cases import Case, read_cases, read_mesh, read_policies
from tests.proxy.control import read_all, told
from tests.proxy.network import connect, tcp_pair
from tests.proxy.rig import CONNECT, DETECT, Mesh, app_on, door, echo, outbound


@pytest.fixture(scope="module")
def root() -> Authority:
    return make_root()


class Ports:
    """Leads what the proxy dials to the test's own servers, by the port it meant."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.app = self.peer = 0

        async def to_app(_host: str, _port: int, **words: Any) -> trio.SocketStream:
            return await dial("127.0.0.1", self.app, **words)

        async def to_peer(_host: str, _port: int, **words: Any) -> trio.SocketStream:
            return await dial("127.0.0.1", self.peer, **words)

        monkeypatch.setattr("proxy.inbound.dial", to_app)
        monkeypatch.setattr("proxy.reach.dial", to_peer)


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> Ports:
    return Ports(monkeypatch)


class Recorder:
    """An app that keeps what it gets, and answers so that a client knows that it was heard."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.dialled = False

    async def serve(self, stream: trio.SocketStream) -> None:
        self.dialled = True
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                self.got += await stream.receive_some()
                await stream.send_all(b"heard")


def policy_of(case: Case, resources: tuple[Resource, ...]) -> LivePolicy:
    workload = Workload(
        namespace=case["workload"]["namespace"], labels=case["workload"].get("labels", {})
    )
    state = told(*resources, config=read_mesh(case.get("mesh")))
    return LivePolicy(ViewCompiler(workload).compile(state.received))


def member(root: Authority, identity: str, domain: str, policy: LivePolicy) -> Mesh:
    """Return a proxy of a mesh whose own trust domain is `domain`."""
    made = Mesh(root, SpiffeId.parse(identity))
    roots = root.bundle(domain)[TrustDomain(domain)]
    own = SpiffeId.parse(identity).trust_domain
    made.current = Identity(
        svid=root.issue(identity), bundles={**root.bundle(str(own)), TrustDomain(domain): roots}
    )
    made.follow(policy)
    return made


def server_of(root: Authority, case: Case, policy: LivePolicy) -> Mesh:
    """Return the proxy of the case's workload, with an identity of the case's trust domain."""
    domain, namespace = read_mesh(case.get("mesh")).trust_domain, case["workload"]["namespace"]
    return member(root, f"spiffe://{domain}/ns/{namespace}/sa/server", domain, policy)


def handler_of(mesh: Mesh, policy: LivePolicy, port: int) -> Handler:
    where = Inbound(listen=Address("127.0.0.1", 0), app=Address("127.0.0.1", port))
    return InboundHandler(
        where, mesh.tls, policy, detect_timeout=DETECT, connect_timeout=CONNECT
    ).serve


# PeerAuthentication: what becomes of each kind of connection on each port.


def declared_http(case: Case, port: int) -> bool:
    return any(
        one["port"] == port and one.get("protocol") == "HTTP"
        for one in case["workload"].get("servicePorts", ())
    )


def inbound_calls() -> Iterator[Any]:
    for case in read_cases("peer_authentication_inbound", "peerauthn-inbound"):
        for call in case["calls"]:
            # HTTP is parsed elsewhere: a declared protocol changes nothing for a TCP proxy.
            if not declared_http(case, call["port"]):
                yield pytest.param(case, call, id=f"{case['id']}-{call['name']}")


def tls_client(root: Authority, case: Case, call: Case) -> TlsContext:
    domain = read_mesh(case.get("mesh")).trust_domain
    svid = root.issue(f"spiffe://{domain}/ns/a/sa/b") if call["transport"] == "mtls" else None
    offered = call.get("alpn") or ()
    alpn = [offered] if isinstance(offered, str) else list(offered)
    return client_context(
        root.bundle(domain), svid=svid, alpn=[protocol.encode() for protocol in alpn]
    )


async def outcome(root: Authority, case: Case, call: Case, port: int, app: Recorder) -> str:
    """Be the client, and tell in the words of the cases what became of the connection."""
    async with await connect(port) as stream:
        if call["transport"] == "plaintext":
            try:
                await stream.send_all(b"hello")
                heard = await stream.receive_some() == b"heard"
            except trio.BrokenResourceError:
                heard = False
            assert bytes(app.got) == (b"hello" if heard else b"")
            return "forward-plaintext" if heard else "reject-no-match"
        tls = TlsStream(stream, tls_client(root, case, call).session(NOW))
        with contextlib.suppress(TlsError, PeerRejected, trio.BrokenResourceError):
            await tls.do_handshake()
            await tls.send_all(b"hello")
            if await tls.receive_some() == b"heard":
                assert app.got == b"hello"
                return "terminate-mtls"
        if app.dialled:
            assert app.got[:2] == b"\x16\x03"
            return "forward-opaque"
        return "reject-handshake"


@pytest.mark.parametrize(("case", "call"), list(inbound_calls()))
async def test_inbound_connections_fare_as_with_istio(
    root: Authority, ports: Ports, case: Case, call: Case
) -> None:
    policy = policy_of(case, read_policies(case["policies"]))
    mesh, app = server_of(root, case, policy), Recorder()
    async with app_on(app.serve) as ports.app:
        async with door(handler_of(mesh, policy, call["port"])) as way:
            assert await outcome(root, case, call, way.port, app) == call["expect"]["outcome"]


# Trust domains: client and server certificates.


def trust_domain_calls(name: str) -> Iterator[Any]:
    for case in read_cases("trust_domain_tls", "trust-domain-tls"):
        for call in case.get(name, ()):
            yield pytest.param(case, call, id=f"{case['id']}-{call['name']}")


def certificate_of(root: Authority, call: Case) -> X509Svid | UserCredential | None:
    authority = root if call.get("signedByMeshRoot", True) else make_root("a stranger")
    if call.get("certificate") == "dns-only":
        leaf = Leaf(sans=["client.test"])
        return UserCredential(chain=(authority.sign(leaf),), key=leaf.key)
    return authority.issue(call["peer"]) if "peer" in call else None


@pytest.mark.parametrize(("case", "call"), list(trust_domain_calls("calls")))
async def test_client_certificates_fare_as_with_istio(
    root: Authority, ports: Ports, case: Case, call: Case
) -> None:
    policy = policy_of(case, read_policies(case["policies"]))
    mesh, app = server_of(root, case, policy), Recorder()
    domain = read_mesh(case.get("mesh")).trust_domain
    credential, heard = certificate_of(root, call), b""
    async with app_on(app.serve) as ports.app:
        async with door(handler_of(mesh, policy, call["port"])) as way:
            async with await connect(way.port) as stream:
                with contextlib.suppress(TlsError, PeerRejected, trio.BrokenResourceError):
                    leg: trio.abc.Stream = stream
                    if credential is not None:
                        context = client_context(
                            root.bundle(domain), svid=credential, alpn=[b"istio"]
                        )
                        leg = tls = TlsStream(stream, context.session(NOW))
                        await tls.do_handshake()
                    await leg.send_all(b"hello")
                    heard = bytes(await leg.receive_some())
    assert (heard == b"heard") == call["expect"]["accepted"]
    assert app.dialled == call["expect"]["accepted"]


AN_ALIAS = pytest.param(
    {"mesh": {"trustDomain": "td1", "trustDomainAliases": ["td2"]}},
    {
        "destinationServiceAccount": "spiffe://td1/ns/a/sa/b",
        "presented": "spiffe://td2/ns/a/sa/b",
        "expect": {"accepted": True},
    },
    id="an-alias",
)


@pytest.mark.parametrize(("case", "call"), [AN_ALIAS, *trust_domain_calls("clientCalls")])
async def test_server_certificates_fare_as_with_istio(
    root: Authority, case: Case, call: Case
) -> None:
    config = read_mesh(case.get("mesh"))
    domains = TrustDomains.of(config)
    policy = policy_of({**case, "workload": {"namespace": "x"}}, ())
    client = member(root, f"spiffe://{config.trust_domain}/ns/x/sa/x", config.trust_domain, policy)
    server = member(root, call["presented"], config.trust_domain, policy)
    near, far = await tcp_pair()
    accepted = False

    async def accept() -> None:
        with contextlib.suppress(ConnectionFailed):
            await server.tls.accept(far, peer="the client")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        with contextlib.suppress(ConnectionFailed):
            await client.tls.connect(
                near,
                server_name="x",
                expected=domains.expand_identities([call["destinationServiceAccount"]]),
                peer="the server",
            )
            accepted = True
        nursery.cancel_scope.cancel()
    near.socket.close()
    far.socket.close()
    assert accepted == call["expect"]["accepted"]


# AuthorizationPolicy for TCP.

NOT_OURS_TO_CHOOSE = {"srcIp", "dstIp", "remoteIp"}
"""Facts of a connection on loopback that a test cannot set."""


def tcp_checks() -> Iterator[Any]:
    for suite in read_cases("authz_tcp", "authz", entry="suites"):
        for check in suite["checks"]:
            conn = check.get("conn", {})
            if check["protocol"] == "tcp" and NOT_OURS_TO_CHOOSE.isdisjoint(conn):
                yield pytest.param(suite, check, id=f"{suite['id']}-{check['name']}")


@pytest.mark.parametrize(("suite", "check"), list(tcp_checks()))
async def test_tcp_connections_are_authorized_as_with_istio(
    root: Authority, ports: Ports, suite: Case, check: Case
) -> None:
    policy = policy_of(suite, read_policies(suite["policies"]))
    mesh, app, heard = server_of(root, suite, policy), Recorder(), b""
    conn = check.get("conn", {})
    domain = read_mesh(suite.get("mesh")).trust_domain
    async with app_on(app.serve) as ports.app:
        async with door(handler_of(mesh, policy, conn.get("dstPort", 80))) as way:
            async with await connect(way.port) as stream:
                with contextlib.suppress(trio.BrokenResourceError):
                    leg: trio.abc.Stream = stream
                    if "peer" in conn:
                        svid = root.issue(conn["peer"])
                        context = client_context(root.bundle(domain), svid=svid, alpn=[b"istio"])
                        leg = tls = TlsStream(
                            stream, context.session(NOW, server_name=conn.get("sni"))
                        )
                        await tls.do_handshake()
                    await leg.send_all(b"hello")
                    heard = bytes(await leg.receive_some())
            line = await way.line()
    allowed = check["expect"]["decision"] == "allow"
    assert (heard == b"heard") == allowed
    assert app.dialled == allowed
    if not allowed and "matchedPolicy" in check["expect"]:
        named = check["expect"]["matchedPolicy"]
        assert line["response_code_details"] == f"rbac_access_denied_matched_policy[{named}]"


# The way out: by the registry.


def registry_of(case: Case) -> list[Case]:
    """Write the destination of a case as the entries that a registry would have."""
    destination, endpoint = case["destination"], case["endpoint"]
    passthrough = destination.get("resolution", "").lower() in {"none", "passthrough", "headless"}
    behind = case.get("endpoints") or [endpoint]
    metadata = {"name": "case", "namespace": endpoint["namespace"]}
    entry = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": metadata,
        "spec": {
            "hosts": [destination["host"]],
            "location": "MESH_EXTERNAL" if destination.get("meshExternal") else "MESH_INTERNAL",
            "resolution": "NONE" if passthrough else "STATIC",
            "ports": [
                {
                    "number": endpoint["servicePort"],
                    "name": "tcp",
                    "protocol": "TCP",
                    **({} if passthrough else {"targetPort": endpoint.get("targetPort", 0)}),
                }
            ],
            "workloadSelector": {"labels": {"of-the-case": "yes"}},
        },
    }
    return [entry, *(workload_of(number, one) for number, one in enumerate(behind))]


def workload_of(number: int, endpoint: Case) -> Case:
    mode = endpoint.get("tlsModeLabel", "istio") if endpoint.get("sidecar", True) else "disabled"
    labels = {**endpoint.get("labels", {}), "of-the-case": "yes"}
    labels["security.istio.io/tlsMode"] = mode
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": f"case-{number}", "namespace": endpoint["namespace"]},
        "spec": {
            "address": f"10.0.0.{number + 1}",
            "labels": labels,
            "serviceAccount": endpoint.get("serviceAccount", ""),
        },
    }


def outbound_cases() -> list[Case]:
    cases = read_cases("outbound_mtls", "outbound-mtls")
    return [case for case in cases if "serviceMode" not in case["expect"]]


@pytest.mark.parametrize("case", outbound_cases(), ids=lambda case: str(case["id"]))
def test_ways_out_of_a_registry_are_secured_as_with_istio(case: Case) -> None:
    state = told(
        *read_policies(case["policies"]),
        *read_all(registry_of(case)),
        config=read_mesh(case.get("mesh")),
    )
    router = Router(state.received, Client(namespace="client-namespace"))
    destination = Address(case["destination"]["host"], case["endpoint"]["servicePort"])
    found = router.route(destination, case["destination"].get("subset", ""))
    assert isinstance(found, Forward), found
    tls = found.candidates[0].tls
    expected = case["expect"]
    assert str(tls.security) == expected["tls"], tls.why
    if "sans" in expected:
        assert set(tls.sans) == set(expected["sans"])
    if "sni" in expected:
        assert tls.sni == expected["sni"]


# Both ends: who reaches whom.


def reachability_calls() -> Iterator[Any]:
    for case in read_cases("reachability", "reachability"):
        for call in case["calls"]:
            yield pytest.param(
                case, call, id=f"{case['id']}-{call['fromSidecar']}-{call['toSidecar']}"
            )


@asynccontextmanager
async def server_side(
    root: Authority, case: Case, call: Case, labels: Case, ports: Ports
) -> AsyncIterator[int]:
    """Run the server's app, behind our proxy if the call is to a sidecar."""
    async with app_on(echo) as ports.app:
        if not call["toSidecar"]:
            yield ports.app
            return
        whole = {**case, "workload": {"namespace": "ns1", "labels": labels}}
        policy = policy_of(whole, read_policies(case["policies"]))
        mesh = server_of(root, whole, policy)
        async with door(handler_of(mesh, policy, 8080)) as way:
            yield way.port


@pytest.mark.parametrize(("case", "call"), list(reachability_calls()))
async def test_servers_are_reached_as_with_istio(
    root: Authority, ports: Ports, case: Case, call: Case
) -> None:
    labels = {"app": "b"}
    if case["id"].startswith("migration"):
        labels = {"version": "vistio" if call["toSidecar"] else "vlegacy"}
    endpoint = {
        "namespace": "ns1",
        "labels": labels,
        "servicePort": 80,
        "targetPort": 8080,
        "sidecar": call["toSidecar"],
        "serviceAccount": "server",
    }
    destination = {"host": "b.ns1.svc.cluster.local"}
    entries = read_all(registry_of({"destination": destination, "endpoint": endpoint}))
    async with server_side(root, case, call, labels, ports) as ports.peer:
        if call["fromSidecar"]:
            state = told(*read_policies(case["policies"]), *entries)
            client = Mesh(root, SpiffeId.parse("spiffe://cluster.local/ns/client/sa/client"))
            view = ViewCompiler(Workload(namespace="client-namespace")).compile(state.received)
            handler = outbound(client, 80, host=destination["host"], policy=LivePolicy(view))
            async with door(handler) as way:
                heard = await says(way.port)
                line = await way.line()
            mutual = line.get("transport") == "mtls"
        else:
            heard, mutual = await says(ports.peer), False
    assert (heard == b"hello") == call["expect"]["success"]
    if call["expect"]["success"]:
        assert mutual == call["expect"]["mtls"]


async def says(port: int) -> bytes:
    async with await connect(port) as stream:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(b"hello")
            return bytes(await stream.receive_some())
    return b""
