"""The proxy's composition root: builds everything from the config and runs it until cancelled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import trio

from mesh.address import Address
from mesh.clock import Now, system_now
from mesh.errors import ConfigError
from mesh.http_endpoint import Page, serve_pages
from mesh.log import get_logger
from mesh.policy.selection import Workload
from proxy.balancer import Balancer
from proxy.capture.options import InterceptionMode
from proxy.captured_ports import CapturedInbound, CapturedOutbound, wildcard_hosts
from proxy.config import Discovery, Inbound, Outbound, ProxyConfig
from proxy.deliver import Arrival, Delivery
from proxy.discovery import follow_policy
from proxy.discovery_state import DiscoveryState
from proxy.handshake import MeshTls
from proxy.identity import IdentityStore
from proxy.inbound import InboundHandler
from proxy.listener import Handler, accept_forever, connection_limit, open_listeners
from proxy.live_policy import LivePolicy
from proxy.metrics import CONTENT_TYPE
from proxy.mode import MtlsMode
from proxy.node import called_hosts, node_for
from proxy.origination import OriginatedTls
from proxy.outbound import OutboundHandler
from proxy.reach import Outward
from proxy.received import Received
from proxy.sds import follow_identity, node_id
from proxy.sds_state import SecretsState
from proxy.socket_options import set_transparent
from proxy.view import Registered, ViewCompiler, fixed_view

log = get_logger("proxy")

DRAIN_SECONDS = 5.0
"""How long open connections may go on after the order to stop (Istio's drain duration)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Where a started proxy listens, in the order of the config; port 0 has become a real port."""

    inbound: tuple[Address, ...]
    outbound: tuple[Address, ...]
    captured: tuple[Address, ...] = ()
    metrics: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Port:
    listen: Address
    handler: Handler
    needs_identity: bool
    transparent: bool = False


async def serve(
    config: ProxyConfig,
    *,
    now: Now = system_now,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the proxy until cancelled; then open connections get DRAIN_SECONDS to finish.

    Ports that do mutual TLS are opened once the agent has delivered a certificate, and where the
    control plane decides, all ports once its policies are there: before that a connection could
    only be refused, and a closed port tells health checks the truth. Raises ConfigError if a port
    cannot be opened.
    """
    identities, policy, stop = IdentityStore(), LivePolicy(), trio.Event()
    secrets = SecretsState(node_id(), config.trust_domain_aliases, config.federated_trust_domains)
    tls = MeshTls(
        lambda: identities.current,
        now,
        trust_domain_aliases=config.trust_domain_aliases,
        mesh_config=lambda: policy.view.mesh_config if policy.is_there else None,
    )
    identities.on_publish(tls.open.judge)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow_identity, config.agent_socket, secrets, identities, now)
        try:
            connections = await nursery.start(_hold_connections, stop)
            async with trio.open_nursery() as acceptors:
                doors = _Doors(acceptors, connections, shared=config.shared_ports)
                if config.discovery is not None:
                    await _await_policy(config, config.discovery, identities, policy, nursery)
                ports = _ports(config, tls, policy, now)
                running = await _open_all(config, ports, identities, doors)
                running = replace(running, metrics=await _serve_metrics(config, policy, acceptors))
                log.info("proxy ready", **_facts(running))
                task_status.started(running)
        finally:
            stop.set()


async def _serve_metrics(
    config: ProxyConfig, policy: LivePolicy, nursery: trio.Nursery
) -> Address | None:
    if config.metrics_listen is None:
        return None

    def metrics() -> Page:
        text = policy.decisions.exposition(open_connections=policy.count)
        return Page(body=text.encode(), content_type=CONTENT_TYPE)

    listeners = await _listen(config.metrics_listen)
    await nursery.start(serve_pages, {"/metrics": metrics}, listeners)
    host, port, *_ = listeners[0].socket.getsockname()
    return Address(host, port)


async def _await_policy(
    config: ProxyConfig,
    discovery: Discovery,
    identities: IdentityStore,
    policy: LivePolicy,
    nursery: trio.Nursery,
) -> None:
    """Begin to follow the control plane, as whom the certificate says, and wait for its policies.

    Raises ConfigError for an identity that is no workload's.
    """
    if identities.current is None:
        log.info("waiting for a certificate from the agent", socket=str(config.agent_socket))
    identity = await identities.ready()
    node = node_for(discovery, identity.svid.id)
    registered = Registered(group=node.group, addresses=node.addresses) if node.group else None
    compiler = ViewCompiler(Workload(namespace=node.namespace, labels=node.labels), registered)

    def publish(received: Received) -> None:
        policy.publish(compiler.compile(received))

    nursery.start_soon(
        follow_policy,
        config.agent_socket,
        DiscoveryState(node, called_hosts(config)),
        publish,
        discovery.state_dir,
    )
    await policy.ready()


class _Doors:
    """Opens ports and starts their accept loops, all under one limit of connections."""

    def __init__(
        self, acceptors: trio.Nursery, connections: trio.Nursery, *, shared: bool = False
    ) -> None:
        self._shared = shared
        self._acceptors = acceptors
        self._connections = connections
        self._slots = trio.Semaphore(connection_limit())

    async def open(self, port: _Port) -> Address:
        """Listen and accept from now on; return the first address that is bound."""
        listeners = await _listen(port.listen, shared=self._shared)
        for listener in listeners:
            if port.transparent:
                _take_over(listener)
            self._acceptors.start_soon(self._accept, listener, port.handler)
        host, bound, *_ = listeners[0].socket.getsockname()
        return Address(host, bound)

    async def _accept(self, listener: trio.SocketListener, handler: Handler) -> None:
        await accept_forever(listener, handler, connections=self._connections, slots=self._slots)


async def _listen(where: Address, *, shared: bool = False) -> list[trio.SocketListener]:
    try:
        return await open_listeners(where, shared=shared)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {where}: {error.strerror or error}; "
            "choose another address, or stop what uses it"
        ) from error


async def _open_all(
    config: ProxyConfig, ports: list[_Port], identities: IdentityStore, doors: _Doors
) -> Running:
    bound = {port: await doors.open(port) for port in ports if not port.needs_identity}
    secured = [port for port in ports if port.needs_identity]
    if secured and identities.current is None:
        log.info("waiting for a certificate from the agent", socket=str(config.agent_socket))
        await identities.ready()
    bound |= {port: await doors.open(port) for port in secured}
    addresses = [bound[port] for port in ports]
    first, last = len(config.inbound), len(config.inbound) + len(config.outbound)
    return Running(
        inbound=tuple(addresses[:first]),
        outbound=tuple(addresses[first:last]),
        captured=tuple(addresses[last:]),
    )


def _ports(config: ProxyConfig, tls: MeshTls, policy: LivePolicy, now: Now) -> list[_Port]:
    outward = Outward(
        tls,
        OriginatedTls(now),
        Balancer(Random().random, trio.current_time),  # noqa: S311 - nothing secret is chosen
        policy,
        connect_timeout=config.connect_timeout,
    )
    inbound = [
        _Port(
            listen=port.listen,
            handler=InboundHandler(
                port,
                tls,
                _policy_of(port, policy),
                detect_timeout=config.detect_timeout,
                connect_timeout=config.connect_timeout,
            ).serve,
            needs_identity=port.mode is not MtlsMode.DISABLE,
        )
        for port in config.inbound
    ]
    outbound = [
        _Port(
            listen=port.listen,
            handler=OutboundHandler(port, outward).serve,
            needs_identity=port.identities is None or bool(port.identities),
        )
        for port in config.outbound
    ]
    return [*inbound, *outbound, *_captured_ports(config, tls, policy, outward)]


def _policy_of(port: Inbound, policy: LivePolicy) -> LivePolicy:
    return policy if port.mode is None else LivePolicy(fixed_view(port.mode))


def _captured_ports(
    config: ProxyConfig, tls: MeshTls, policy: LivePolicy, outward: Outward
) -> list[_Port]:
    """Listen on every address of either family: redirected connections arrive at any of them."""
    captured = config.captured
    if captured is None:
        return []
    transparent = captured.interception is InterceptionMode.TPROXY
    delivery = Delivery(transparent=transparent, proxy_protocol_ports=captured.proxy_protocol_ports)

    def serve_inbound(port: Inbound, arrival: Arrival, patience: float) -> Handler:
        return InboundHandler(
            port,
            tls,
            _policy_of(port, policy),
            detect_timeout=patience,
            connect_timeout=config.connect_timeout,
            arrival=arrival,
            server_first=port.app.port in captured.server_first_ports,
        ).serve

    def serve_outbound(port: Outbound) -> Handler:
        return OutboundHandler(port, outward).serve

    ports: list[_Port] = []
    for host in wildcard_hosts():
        inbound = Address(host, captured.inbound_port)
        outbound = Address(host, captured.outbound_port)
        way_in = CapturedInbound(
            captured,
            inbound,
            serve_inbound,
            detect_timeout=config.detect_timeout,
            delivery=delivery,
        )
        way_out = CapturedOutbound(captured, outbound, serve_outbound)
        ports += [
            _Port(
                listen=inbound, handler=way_in.serve, needs_identity=True, transparent=transparent
            ),
            _Port(listen=outbound, handler=way_out.serve, needs_identity=True),
        ]
    return ports


def _take_over(listener: trio.SocketListener) -> None:
    try:
        set_transparent(listener.socket)
    except PermissionError as error:
        raise ConfigError(
            "--capture TPROXY needs the capability CAP_NET_ADMIN: give it, or use REDIRECT"
        ) from error


async def _hold_connections(
    stop: trio.Event, task_status: trio.TaskStatus[trio.Nursery] = trio.TASK_STATUS_IGNORED
) -> None:
    """Be the home of all connections: out of reach of cancellation until `stop`, then for long."""
    await trio.lowlevel.checkpoint_if_cancelled()  # or `start` would wait for us for ever
    with trio.CancelScope(shield=True) as scope:
        async with trio.open_nursery() as connections:
            task_status.started(connections)
            await stop.wait()
            if still_open := len(connections.child_tasks):
                log.info("waiting for open connections", count=still_open, seconds=DRAIN_SECONDS)
            scope.deadline = trio.current_time() + DRAIN_SECONDS
    if scope.cancelled_caught:
        log.warning("connections that did not end in time were reset")


def _facts(running: Running) -> dict[str, list[str]]:
    return {
        "inbound": [str(address) for address in running.inbound],
        "outbound": [str(address) for address in running.outbound],
        **({"captured": [str(one) for one in running.captured]} if running.captured else {}),
    }
