"""The captured ports on loopback, with a fake of what the kernel says of the destination."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network

import pytest
import trio
import trio.testing

from mesh.address import Address
from mesh.spiffe import SpiffeId
from proxy.captured import Captured, OutboundPolicy
from proxy.captured_ports import CapturedInbound, CapturedOutbound
from proxy.config import Inbound, Outbound
from proxy.deliver import Arrival, Delivery
from proxy.inbound import InboundHandler
from proxy.listener import Handler
from proxy.live_policy import LivePolicy
from proxy.mode import MtlsMode
from proxy.original import canonical, original_destination
from proxy.outbound import OutboundHandler
from proxy.proxy_protocol import ProxyHeader, encode_header, parse_header
from proxy.view import fixed_view
from tests.pki import Authority, make_root
from tests.proxy.network import (
    CLIENT_ID,
    SERVER_ID,
    connect,
    port_of,
    receive_all,
    receive_until_broken,
    tcp_listener,
    tcp_pair,
)
from tests.proxy.rig import (
    CONNECT,
    DETECT,
    Mesh,
    app_on,
    client,
    dial_tls,
    door,
    outward,
    round_trip,
    tls_server,
)

LISTEN = Address("127.0.0.1", 15006)


@pytest.fixture(scope="module")
def root() -> Authority:
    return make_root()


@pytest.fixture
def mesh(root: Authority) -> Mesh:
    return Mesh(root, SERVER_ID)


def going_to(host: str, port: int) -> Callable[[trio.SocketStream], Address]:
    """What the kernel would say."""
    return lambda _: Address(host, port)


def inbound(mesh: Mesh, captured: Captured, port: int, *, host: str = "127.0.0.1") -> Handler:
    def serve(way: Inbound, arrival: Arrival, patience: float) -> Handler:
        assert way.mode is not None
        return InboundHandler(
            way,
            mesh.tls,
            LivePolicy(fixed_view(way.mode)),
            detect_timeout=patience,
            connect_timeout=CONNECT,
            arrival=arrival,
        ).serve

    return CapturedInbound(
        captured,
        LISTEN,
        serve,
        detect_timeout=DETECT,
        delivery=Delivery(proxy_protocol_ports=captured.proxy_protocol_ports),
        original=going_to(host, port),
    ).serve


def outbound(mesh: Mesh, captured: Captured, destination: Address) -> Handler:
    def serve(way: Outbound) -> Handler:
        return OutboundHandler(way, outward(mesh)).serve

    return CapturedOutbound(
        captured, LISTEN, serve, original=going_to(destination.host, destination.port)
    ).serve


async def say_who_calls(stream: trio.SocketStream) -> None:
    """An app that answers with the address of its peer."""
    async with stream:
        host, *_ = stream.socket.getpeername()
        await stream.send_all(host.encode())
        await stream.send_eof()
        await receive_all(stream)


async def test_the_app_is_reached_at_the_original_destination_from_127_0_0_6(
    mesh: Mesh, root: Authority
) -> None:
    async with app_on(say_who_calls) as app:
        async with door(inbound(mesh, Captured(mode=MtlsMode.STRICT), app)) as made:
            async with await dial_tls(made.port, client(root)) as stream:
                assert await round_trip(stream, b"") == b"127.0.0.6"
            await made.ended.wait()
    (line,) = made.lines
    assert line["target"] == f"127.0.0.1:{app}"
    assert line["peer_id"] == str(CLIENT_ID)


async def test_plaintext_to_a_strict_port_is_reset_and_to_another_passed(mesh: Mesh) -> None:
    async with app_on() as app:
        captured = Captured(mode=MtlsMode.STRICT)
        async with door(inbound(mesh, captured, app)) as made, await connect(made.port) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            assert await receive_until_broken(stream) == b""
            await made.ended.wait()
        assert made.lines[0]["reason"] == "plaintext_on_strict"
        permissive = Captured(mode=MtlsMode.STRICT, port_modes={app: MtlsMode.PERMISSIVE})
        async with door(inbound(mesh, permissive, app)) as made, await connect(made.port) as stream:
            assert await round_trip(stream, b"hello") == b"hello"


@pytest.mark.parametrize("port", [15001, 15006, 15008, 15020, 15021, 15090])
async def test_inbound_connections_to_the_proxys_own_ports_are_reset(mesh: Mesh, port: int) -> None:
    async with door(inbound(mesh, Captured(), port, host="10.0.0.1")) as made:
        async with await connect(made.port) as stream:
            assert await receive_until_broken(stream) == b""
        await made.ended.wait()
    (line,) = made.lines
    assert (line["reason"], line["target"]) == ("self_call", f"10.0.0.1:{port}")


async def test_the_captured_port_dialed_directly_is_a_loop_by_what_the_kernel_really_says(
    mesh: Mesh,
) -> None:
    def never(*_: object) -> Handler:
        raise AssertionError("a loop was served")

    async with await tcp_listener() as listener:
        own = port_of(listener)
        captured = Captured(inbound_port=own, outbound_port=own + 1)
        way_in = CapturedInbound(
            captured, LISTEN, never, detect_timeout=DETECT, delivery=Delivery()
        )
        way_out = CapturedOutbound(Captured(outbound_port=own), LISTEN, never)
        for handler in (way_in.serve, way_out.serve):
            async with await connect(own) as near:
                await handler(await listener.accept())
                assert await receive_until_broken(near) == b""


async def test_a_server_that_speaks_first_is_heard_soon(mesh: Mesh) -> None:
    async with app_on(say_who_calls) as app:
        captured = Captured(server_first_ports=frozenset({app}))
        async with door(inbound(mesh, captured, app)) as made, await connect(made.port) as stream:
            began = trio.current_time()
            assert await stream.receive_some() == b"127.0.0.6"
            assert trio.current_time() - began < 1.0
            await stream.send_eof()
            await made.ended.wait()


async def test_the_app_is_told_the_real_client_where_it_wants_a_header(
    mesh: Mesh, root: Authority
) -> None:
    async with app_on() as app:
        captured = Captured(proxy_protocol_ports=frozenset({app}))
        async with door(inbound(mesh, captured, app)) as made:
            async with await dial_tls(made.port, client(root)) as stream:
                answer = await round_trip(stream, b"hello")
            await made.ended.wait()
    header = parse_header(answer)
    assert isinstance(header, ProxyHeader)
    assert str(header.source) == made.lines[0]["source"]
    assert header.destination == Address("127.0.0.1", app)
    assert str(CLIENT_ID).encode() in answer[: header.length]
    assert answer[header.length :] == b"hello"


async def test_a_listed_balancers_header_tells_the_client_and_is_taken_off(mesh: Mesh) -> None:
    client_address = Address("198.51.100.9", 1234)
    async with app_on() as app:
        captured = Captured(balancers=(ip_network("127.0.0.0/8"),))
        async with door(inbound(mesh, captured, app)) as made, await connect(made.port) as stream:
            header = encode_header(client_address, Address("203.0.113.1", 443), None)
            await stream.send_all(header[:20])
            await trio.testing.wait_all_tasks_blocked()
            await stream.send_all(header[20:] + b"hel")
            assert await round_trip(stream, b"lo") == b"hello"
            await made.ended.wait()
    (line,) = made.lines
    assert line["source"] == str(client_address)


async def test_a_listed_balancer_without_a_header_is_reset(mesh: Mesh) -> None:
    captured = Captured(balancers=(ip_network("127.0.0.0/8"),))
    async with door(inbound(mesh, captured, 8080)) as made, await connect(made.port) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        assert await receive_until_broken(stream) == b""
        await made.ended.wait()
    assert made.lines[0]["reason"] == "proxy_header_missing"


async def test_a_header_from_anybody_else_is_not_believed(mesh: Mesh) -> None:
    async with app_on() as app:
        captured = Captured(balancers=(ip_network("192.0.2.0/24"),))
        header = encode_header(Address("198.51.100.9", 1), Address("203.0.113.1", 443), None)
        async with door(inbound(mesh, captured, app)) as made, await connect(made.port) as stream:
            assert await round_trip(stream, header) == header
            await made.ended.wait()
    assert made.lines[0]["source"].startswith("127.0.0.1:")


async def test_an_app_that_is_not_there_is_said_with_the_likely_cause(mesh: Mesh) -> None:
    async with await tcp_listener() as listener:
        closed = port_of(listener)
    async with door(inbound(mesh, Captured(), closed)) as made, await connect(made.port) as stream:
        await stream.send_all(b"hello, nobody")
        assert await receive_until_broken(stream) == b""
        await made.ended.wait()
    assert made.lines[0]["reason"] == "connect_failed"
    assert "not only on localhost" in made.lines[0]["detail"]


async def test_a_known_destination_is_reached_by_mutual_tls(root: Authority) -> None:
    mesh = Mesh(root, CLIENT_ID)
    async with app_on(tls_server(root)) as peer:
        destination = Address("127.0.0.1", peer)
        captured = Captured(destinations={destination: frozenset({SERVER_ID})})
        handler = outbound(mesh, captured, destination)
        async with door(handler) as made, await connect(made.port) as stream:
            assert await round_trip(stream, b"hello") == b"hello"
            await made.ended.wait()
    assert (made.lines[0]["transport"], made.lines[0]["peer_id"]) == ("mtls", str(SERVER_ID))


async def test_a_known_destination_that_proves_to_be_another_gets_nothing(root: Authority) -> None:
    async with app_on(tls_server(root)) as peer:
        destination = Address("127.0.0.1", peer)
        other = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/other")
        captured = Captured(destinations={destination: frozenset({other})})
        handler = outbound(Mesh(root, CLIENT_ID), captured, destination)
        async with door(handler) as made, await connect(made.port) as stream:
            assert await receive_until_broken(stream) == b""
            await made.ended.wait()
    assert made.lines[0]["reason"] == "wrong_identity"


async def test_unknown_destinations_pass_or_are_refused_by_policy(mesh: Mesh) -> None:
    async with app_on() as peer:
        destination = Address("127.0.0.1", peer)
        handler = outbound(mesh, Captured(), destination)
        async with door(handler) as made, await connect(made.port) as stream:
            assert await round_trip(stream, b"hello") == b"hello"
        closed = Captured(outbound_policy=OutboundPolicy.REGISTRY_ONLY)
        handler = outbound(mesh, closed, destination)
        async with door(handler) as made, await connect(made.port) as stream:
            assert await receive_until_broken(stream) == b""
            await made.ended.wait()
    assert made.lines[0]["reason"] == "destination_unknown"


@pytest.mark.parametrize("port", [15000, 15001, 15006, 15020, 15090])
async def test_outbound_connections_to_our_own_loopback_ports_are_reset(
    mesh: Mesh, port: int
) -> None:
    handler = outbound(mesh, Captured(), Address("127.0.0.1", port))
    async with door(handler) as made, await connect(made.port) as stream:
        assert await receive_until_broken(stream) == b""
        await made.ended.wait()
    assert made.lines[0]["reason"] == "self_call"


async def test_a_connection_that_nobody_redirected_was_going_where_it_arrived() -> None:
    near, far = await tcp_pair()
    assert original_destination(far) == Address(*far.socket.getsockname())
    for stream in (near, far):
        await stream.aclose()


def test_ipv4_in_ipv6_clothes_is_ipv4() -> None:
    assert canonical("::ffff:10.0.0.1") == "10.0.0.1"
    assert canonical("fe80::1%eth0") == "fe80::1"
    assert canonical("FD00:0::2") == "fd00::2"


async def test_cancelled_while_dialing_no_socket_is_left(mesh: Mesh) -> None:
    with trio.move_on_after(0):
        arrival = Arrival(
            source=Address("127.0.0.1", 1), destination=Address("127.0.0.1", 1), delivery=Delivery()
        )
        await arrival.dial(None)
    # An unclosed socket would be a ResourceWarning, which is an error here.
