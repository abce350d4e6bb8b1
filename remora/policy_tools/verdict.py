"""Would this connection or request be let through, is it mutual TLS, and why: step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import ip_address

from mesh.policy.decision import Decision
from mesh.policy.destination import Client
from mesh.policy.errors import PathRefused
from mesh.policy.facts import Address, Connection, HttpRequest
from mesh.policy.outbound import OutboundTls, Security, Service, name_accepted
from mesh.policy.peer_authentication import Mode
from mesh.policy.reachability import reach
from mesh.resources.checks import parse_address
from mesh.resources.validate_registry import HTTP_PROTOCOLS
from remora.policy_tools.parties import UNKNOWN_CLIENT, UNKNOWN_SERVER, Caller, Target
from remora.policy_tools.registry import endpoint_of
from remora.policy_tools.unenforced import AS_TCP
from remora.policy_tools.world import World


class Aspect(StrEnum):
    """The steps of a connection, in their order."""

    CLIENT = "client"
    SERVER = "server"
    TLS = "tls"
    NAMING = "secure naming"
    TRUST = "trust domain"
    REQUEST = "request"
    AUTHORIZATION = "authorization"


@dataclass(frozen=True, slots=True)
class Step:
    """What one step said; the first that is not good ends a connection."""

    aspect: Aspect
    good: bool
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer for one workload port.

    `mtls` is None where no connection comes about; `by` names the policy that decided, as
    `NAMESPACE/NAME`, and is empty if none did. `as_tcp` is the decision on the connection alone
    where it is another than on the request that was asked about.
    """

    target: str
    port: int
    allowed: bool
    mtls: bool | None
    mode: str
    by: str
    steps: tuple[Step, ...]
    as_tcp: Decision | None = None

    @property
    def allowed_as_tcp(self) -> bool:
        """Whether it is let through by proxies that do not see the request."""
        return self.allowed if self.as_tcp is None else self.as_tcp.allowed

    @property
    def reason(self) -> str:
        """The sentence that decided: the step that failed, or the last one."""
        failed = (step.sentence for step in self.steps if not step.good)
        return next(failed, self.steps[-1].sentence)


RequestOrError = HttpRequest | PathRefused | None


def judge(
    client: Caller,
    target: Target,
    request: RequestOrError,
    world: World,
    *,
    remote_address: str = "",
) -> Verdict:
    """Follow one connection through both proxies, up to the step that ends it."""
    tls = _client_side(client, target, world)
    steps = [Step(Aspect.CLIENT, good=True, sentence=tls.why)]
    mode = world.modes(target.member.workload).of_port(target.port)
    steps.append(_server_side(target, mode))
    steps.extend(_understanding(target, world))
    reached = reach(tls.security, mode.mode if target.member.has_proxy else None)
    steps.append(Step(Aspect.TLS, reached.success, reached.why))
    if reached.mtls:
        steps.extend(_identities(client, target, tls, world))
    connected = all(step.good for step in steps)
    decision: Decision | None = None
    as_tcp: Decision | None = None
    if target.member.has_proxy and connected:
        authorization = world.authorization(target.member.workload)
        connection = _connection(
            client, target, tls, mtls=reached.mtls, remote_address=remote_address
        )
        as_tcp = authorization.decide(connection)
        if isinstance(request, PathRefused):
            steps.append(Step(Aspect.REQUEST, good=False, sentence=f"{request.status}: {request}"))
        else:
            decision = authorization.decide(connection, request)
            told = _told(decision, target, as_http=request is not None)
            steps.append(Step(Aspect.AUTHORIZATION, decision.allowed, told))
    rule = None if decision is None else decision.rule
    allowed = all(step.good for step in steps)
    return Verdict(
        target=target.member.name,
        port=target.port,
        allowed=allowed,
        mtls=reached.mtls if connected else None,
        mode=str(mode.mode) if target.member.has_proxy else "",
        by=f"{rule.namespace}/{rule.policy}" if rule else "",
        steps=tuple(steps),
        as_tcp=as_tcp if as_tcp is not None and as_tcp.allowed != allowed else None,
    )


def _client_side(client: Caller, target: Target, world: World) -> OutboundTls:
    if not client.has_proxy:
        return OutboundTls(security=Security.PLAINTEXT, why="plaintext: the client has no proxy")
    service, number = _service(target, world)
    tls = world.outbound.tls_for(
        Client(namespace=client.namespace, labels=client.labels),
        service,
        endpoint_of(target.member, target.port),
        service_port=number,
    )
    if target.backing is not None:
        return tls
    return replace(tls, why=f"{tls.why} (as through a service: the registry has none for it)")


def _service(target: Target, world: World) -> tuple[Service, int]:
    """Return the service that is called and its port; without one, the workload alone."""
    backing = target.backing
    if backing is not None:
        service = world.registry.service(backing.host, backing.entry, backing.port)
        return service, backing.port.number
    identity = target.member.identity(world.config.trust_domain)
    return (
        Service(
            host=target.member.name,
            namespace=target.member.namespace,
            identities=(identity,) if identity else (),
            endpoints=(endpoint_of(target.member, target.port),),
        ),
        target.port,
    )


def _server_side(target: Target, mode: Mode) -> Step:
    sentence = f"port {target.port} of the server: {mode}"
    if not target.member.has_proxy:
        sentence = "the server has no proxy: nothing is enforced there"
    return Step(Aspect.SERVER, good=True, sentence=sentence)


def _understanding(target: Target, world: World) -> Iterator[Step]:
    unread = world.not_understood(target.member.workload)
    if unread and target.member.has_proxy:
        names = ", ".join(map(str, unread))
        text = f"lets nobody in while a policy that it may have is not understood: {names}"
        yield Step(Aspect.SERVER, good=False, sentence=text)


def _identities(client: Caller, target: Target, tls: OutboundTls, world: World) -> Iterator[Step]:
    presented = target.member.identity(world.config.trust_domain)
    if presented and tls.sans:
        accepted = name_accepted(tls.sans, (presented,))
        verb = "is" if accepted else "is NOT"
        names = ", ".join(tls.sans)
        yield Step(Aspect.NAMING, accepted, f"the server {presented} {verb} one of {names}")
    if client.identity is None:
        text = "the client has a proxy, but no service account to prove"
        yield Step(Aspect.TRUST, good=False, sentence=text)
    elif not world.trust_domains.accepts(str(client.identity)):
        names = ", ".join(world.trust_domains.names)
        text = f"{client.identity} is of another mesh: the server takes only {names}"
        yield Step(Aspect.TRUST, good=False, sentence=text)


def _connection(
    client: Caller, target: Target, tls: OutboundTls, *, mtls: bool, remote_address: str
) -> Connection:
    return Connection(
        peer=client.identity if mtls else None,
        source_ip=_address(client.address, UNKNOWN_CLIENT),
        destination_ip=_address(target.member.address, UNKNOWN_SERVER),
        destination_port=target.port,
        sni=tls.sni or None if mtls else None,
        remote_ip=_address(remote_address, UNKNOWN_CLIENT) if remote_address else None,
    )


def _address(text: str, instead: str) -> Address:
    """Parse an address; an entry may also hold a host name, which policy never compares."""
    return parse_address(text) or ip_address(instead)


def _told(decision: Decision, target: Target, *, as_http: bool) -> str:
    told = decision.sentence
    for shadow in decision.shadows:
        told += f"; the dry-run {shadow.action.upper()} policies would have {shadow.result} it"
    protocol = "" if target.backing is None else target.backing.port.protocol
    if not (decision.allowed or as_http) and protocol.upper() in HTTP_PROTOCOLS:
        told += f"; the port is HTTP, but {AS_TCP}: ask about a request for the answer from then on"
    return told
