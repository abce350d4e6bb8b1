from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from ca.config import CaConfig, parse_account, parse_token_ttl, parse_trust_domain
from mesh.address import Address
from mesh.errors import ConfigError
from mesh.spiffe import ServiceAccount, TrustDomain


def config(**changes: Any) -> CaConfig:
    settings: dict[str, Any] = {
        "state_dir": Path("/state"),
        "listen": Address(host="127.0.0.1", port=0),
        "trust_domain": TrustDomain("cluster.local"),
    }
    return CaConfig(**{**settings, **changes})


def test_the_defaults_are_istios() -> None:
    defaults = config()
    assert defaults.default_ttl == timedelta(hours=24)
    assert defaults.max_ttl == timedelta(hours=2160)
    assert defaults.token_audiences == ("istio-ca",)
    assert str(defaults.identity) == "spiffe://cluster.local/ns/istio-system/sa/istiod"


def test_the_servers_names() -> None:
    names = config(dns_names=("ca.example.com", "10.1.2.3", "localhost")).server_names
    assert list(names) == [
        x509.DNSName("localhost"),
        x509.DNSName("istiod.istio-system.svc"),
        x509.IPAddress(ip_address("127.0.0.1")),
        x509.IPAddress(ip_address("::1")),
        x509.DNSName("ca.example.com"),
        x509.IPAddress(ip_address("10.1.2.3")),
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"default_ttl": timedelta(0)}, "--workload-cert-ttl 0s", id="no-life"),
        pytest.param(
            {"default_ttl": timedelta(milliseconds=1500)}, "give whole seconds", id="fraction"
        ),
        pytest.param({"max_ttl": timedelta(days=3651)}, "--max-workload-cert-ttl", id="too-long"),
        pytest.param({"max_ttl": timedelta(hours=1)}, "24h is longer than", id="default-over-max"),
        pytest.param({"dns_names": ("*.example.com",)}, "neither a host name", id="wildcard"),
        pytest.param({"dns_names": ("Ca.example",)}, "lower case", id="capital"),
        pytest.param({"dns_names": ("",)}, "neither a host name", id="empty-name"),
        pytest.param({"dns_names": ("a..b",)}, "neither a host name", id="empty-label"),
        pytest.param({"dns_names": ("a.b\n",)}, "neither a host name", id="newline"),
        pytest.param({"dns_names": ("x." * 127 + "x",)}, "neither a host name", id="long-name"),
        pytest.param({"dns_names": ("spiffe://a/b",)}, "neither a host name", id="uri"),
        pytest.param({"token_audiences": ()}, "must not be empty", id="no-audience"),
        pytest.param({"token_audiences": ("a", "")}, "must not be empty", id="empty-audience"),
        pytest.param({"jwks_issuer": "https://x"}, "give --jwks too", id="issuer-without-keys"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config(**changes)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:15012", "127.0.0.1", 15012),
        ("localhost:0", "localhost", 0),
        ("[::1]:65535", "::1", 65535),
        ("0.0.0.0:1", "0.0.0.0", 1),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    address = Address.parse(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", ":", "15012", ":15012", "host:", "host:x", "host:65536", "host:-1", "::1:80",
             "[]:80", "host:1\u0660", "host: 80", "host:000080"]
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError):
        Address.parse(text)


def test_trust_domains() -> None:
    assert parse_trust_domain("spiffe://example.org/x") == TrustDomain("example.org")
    for bad in ("", "Example.org", "a b", "example.org/x", "spiffe://"):
        with pytest.raises(ConfigError, match="--trust-domain"):
            parse_trust_domain(bad)


def test_accounts_and_lives_of_tokens() -> None:
    assert parse_account("foo/web") == ServiceAccount("foo", "web")
    for bad in ("foo", "foo/", "/web", "foo/web/x", "Foo/web", "foo/we_b", "foo/web:x", "a,b/c"):
        with pytest.raises(ConfigError, match="--service-account"):
            parse_account(bad)
    assert parse_token_ttl("1h") == timedelta(hours=1)
    for bad in ("0s", "8761h"):
        with pytest.raises(ConfigError, match="--ttl"):
            parse_token_ttl(bad)
    with pytest.raises(ConfigError, match="not a duration"):
        parse_token_ttl("tomorrow")
