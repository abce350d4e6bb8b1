"""SPIFFE_ENDPOINT_SOCKET: two forms, and nothing that looks like them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigError
from mesh.workload_endpoint import TcpEndpoint, UnixEndpoint, parse_endpoint

GOOD = {
    "unix:///run/spire/agent.sock": UnixEndpoint("/run/spire/agent.sock"),
    "unix:/run/spire/agent.sock": UnixEndpoint("/run/spire/agent.sock"),
    "unix:///a": UnixEndpoint("/a"),
    "tcp://1.2.3.4:5": TcpEndpoint(ip_address("1.2.3.4"), 5),
    "tcp://127.0.0.1:65535": TcpEndpoint(ip_address("127.0.0.1"), 65535),
    "tcp://[::1]:8081": TcpEndpoint(ip_address("::1"), 8081),
}

BAD = [
    ("", "another scheme"),
    ("/run/agent.sock", "another scheme"),
    ("blah", "another scheme"),
    ("http://1.2.3.4:5", "another scheme"),
    ("UNIX:///run/a", "another scheme"),
    ("unix", "no absolute path"),
    (" unix:///run/a", "must not be in a URI"),
    ("unix:///run/a\n", "must not be in a URI"),
    ("unix:///run/\0", "must not be in a URI"),
    ("unix:///run/ä", "must not be in a URI"),
    ("unix:", "no absolute path"),
    ("unix:opaque", "no absolute path"),
    ("unix:run/agent.sock", "no absolute path"),
    ("unix://", "no absolute path"),
    ("unix:///", "no absolute path"),
    ("unix:/", "no absolute path"),
    ("unix://foo", "names a host, 'foo'"),
    ("unix://foo/path", "names a host, 'foo'"),
    ("unix://localhost/run/a", "names a host"),
    ("unix://john:doe@foo/path", "contains '@'"),
    ("unix:///foo?whatever", "contains '?'"),
    ("unix:///foo?", "contains '?'"),
    ("unix:///foo#whatever", "contains '#'"),
    ("unix:///foo%20bar", "contains '%'"),
    ("tcp:opaque", "no address"),
    ("tcp:1.2.3.4:5", "no address"),
    ("tcp://", "no port"),
    ("tcp:///test", "has a path"),
    ("tcp://1.2.3.4:5/", "has a path"),
    ("tcp://1.2.3.4:5/path", "has a path"),
    ("tcp://1.2.3.4", "no port"),
    ("tcp://1.2.3.4:", "no port"),
    ("tcp://1.2.3.4:0", "no port"),
    ("tcp://1.2.3.4:65536", "no port"),
    ("tcp://1.2.3.4:+5", "no port"),
    ("tcp://:5", "no IP address"),
    ("tcp://foo:5", "no IP address"),
    ("tcp://localhost:5", "no IP address"),
    ("tcp://1.2.3:5", "no IP address"),
    ("tcp://01.2.3.4:5", "no IP address"),
    ("tcp://::1:5", "brackets"),
    ("tcp://[1.2.3.4]:5", "brackets"),
    ("tcp://[::1%eth0]:5", "contains '%'"),
    ("tcp://1.2.3.4:5?whatever", "contains '?'"),
    ("tcp://1.2.3.4:5#whatever", "contains '#'"),
    ("tcp://john:doe@1.2.3.4:5", "contains '@'"),
]


@pytest.mark.parametrize("text", GOOD)
def test_an_endpoint_is_read(text: str) -> None:
    assert parse_endpoint(text) == GOOD[text]


@pytest.mark.parametrize(("text", "fault"), BAD, ids=[repr(text) for text, _ in BAD])
def test_anything_else_is_refused_with_its_fault_and_a_cure(text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_endpoint(text)
    assert fault in str(refusal.value)
    assert "write unix:///path/to/socket, or tcp://IP:port" in str(refusal.value)
    assert str(refusal.value).isprintable()


@given(st.text(alphabet="unixtcp:/.0123456789[]?#@%\\ \n", max_size=40))
def test_no_text_is_a_crash_or_a_relative_path(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except ConfigError:
        return
    if isinstance(endpoint, UnixEndpoint):
        assert endpoint.path.startswith("/")
    else:
        assert 0 < endpoint.port < 65536
