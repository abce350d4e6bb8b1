from __future__ import annotations

from ipaddress import ip_network

import pytest

from mesh.address import Address
from mesh.errors import ConfigError
from mesh.spiffe import SpiffeId
from proxy.capture.options import OWN_PORTS, InterceptionMode
from proxy.captured import (
    SERVER_FIRST_WAIT,
    Captured,
    OutboundPolicy,
    refuse_inbound_loop,
    refuse_outbound_loop,
)
from proxy.captured_flags import parse_captured
from proxy.captured_ports import route
from proxy.errors import DestinationUnknown, SelfCall
from proxy.mode import MtlsMode

LISTEN = Address("0.0.0.0", 15001)
IDENTITY = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/httpbin")
HTTPBIN = Address("10.0.0.2", 8080)


@pytest.mark.parametrize("port", sorted(OWN_PORTS))
@pytest.mark.parametrize("host", ["10.0.0.1", "127.0.0.1", "fd00::1", "::1"])
def test_no_inbound_connection_may_be_going_to_a_port_of_the_proxy(host: str, port: int) -> None:
    with pytest.raises(SelfCall, match=str(port)):
        refuse_inbound_loop(Address(host, port), Captured().own_ports)


@pytest.mark.parametrize("port", sorted(OWN_PORTS))
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.6", "::1"])
def test_no_outbound_connection_may_come_back_by_loopback(host: str, port: int) -> None:
    with pytest.raises(SelfCall):
        refuse_outbound_loop(Address(host, port), 15001, Captured().own_ports)


def test_an_outbound_connection_to_the_port_it_arrived_at_was_dialed_directly() -> None:
    with pytest.raises(SelfCall):
        refuse_outbound_loop(Address("10.0.0.1", 15001), 15001, Captured().own_ports)


def test_other_machines_have_these_ports_too_and_everything_else_may_pass() -> None:
    refuse_outbound_loop(Address("10.0.0.9", 15012), 15001, Captured().own_ports)
    refuse_outbound_loop(Address("10.0.0.9", 15021), 15001, Captured().own_ports)
    refuse_outbound_loop(Address("127.0.0.1", 8080), 15001, Captured().own_ports)
    refuse_inbound_loop(HTTPBIN, Captured().own_ports)


def test_ports_that_were_moved_are_the_proxys_own_too() -> None:
    assert {4001, 4006, 15001} <= Captured(outbound_port=4001, inbound_port=4006).own_ports


def test_a_known_destination_is_reached_by_mutual_tls_and_an_unknown_one_as_it_is() -> None:
    captured = Captured(destinations={HTTPBIN: frozenset({IDENTITY})})
    assert route(HTTPBIN, LISTEN, captured).identities == frozenset({IDENTITY})
    other = route(Address("10.0.0.2", 8081), LISTEN, captured)
    assert (other.destination, other.identities) == (Address("10.0.0.2", 8081), frozenset())


def test_an_unknown_destination_is_refused_where_only_known_ones_are_allowed() -> None:
    captured = Captured(
        destinations={HTTPBIN: frozenset({IDENTITY})}, outbound_policy=OutboundPolicy.REGISTRY_ONLY
    )
    assert route(HTTPBIN, LISTEN, captured).identities == frozenset({IDENTITY})
    with pytest.raises(DestinationUnknown, match=r"10\.0\.0\.3:80"):
        route(Address("10.0.0.3", 80), LISTEN, captured)


def test_ports_have_their_modes_and_their_patience() -> None:
    captured = Captured(
        mode=MtlsMode.STRICT,
        port_modes={3306: MtlsMode.PERMISSIVE},
        server_first_ports=frozenset({3306}),
    )
    assert captured.mode_of(3306) is MtlsMode.PERMISSIVE
    assert captured.mode_of(80) is MtlsMode.STRICT
    assert captured.detect_timeout_of(3306, 5.0) == SERVER_FIRST_WAIT
    assert captured.detect_timeout_of(3306, 0.1) == 0.1
    assert captured.detect_timeout_of(80, 5.0) == 5.0


def parse(interception: str | None = "REDIRECT", **flags: object) -> Captured | None:
    return parse_captured(interception, mode=MtlsMode.STRICT, port_modes={}, **flags)  # type: ignore[arg-type]  # each test gives the right type


def test_the_flags_become_settings() -> None:
    captured = parse(
        "TPROXY",
        destinations=[f"10.0.0.2:8080@{IDENTITY}", f"[fd00:0::2]:80@{IDENTITY}"],
        outbound_policy="REGISTRY_ONLY",
        balancers=["192.0.2.0/24"],
    )
    assert captured is not None
    assert captured.interception is InterceptionMode.TPROXY
    assert set(captured.destinations) == {HTTPBIN, Address("fd00::2", 80)}
    assert captured.balancers == (ip_network("192.0.2.0/24"),)
    assert parse(None) is None


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"interception": "redirect"}, "write REDIRECT or TPROXY"),
        ({"interception": "NONE"}, "write REDIRECT or TPROXY"),
        ({"interception": None, "balancers": ["::/0"]}, "give --capture too"),
        ({"destinations": ["10.0.0.2:80"]}, "IP:PORT@SPIFFE_ID"),
        ({"destinations": [f"httpbin:80@{IDENTITY}"]}, "captured traffic goes to IP addresses"),
        ({"destinations": ["10.0.0.2:80@spiffe://cluster.local"]}, "not a workload"),
        ({"outbound_policy": "DENY"}, "ALLOW_ANY or REGISTRY_ONLY"),
        ({"balancers": ["somewhere"]}, "is no range"),
    ],
)
def test_flags_that_cannot_be_used_are_refused(flags: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse(**flags)  # type: ignore[arg-type]  # as above
