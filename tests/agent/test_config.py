from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.config import (
    AgentConfig,
    CaAddress,
    load_ca_bundle,
    parse_account,
    parse_ca_name,
    parse_trust_domain,
)
from mesh.errors import ConfigError
from mesh.spiffe import ServiceAccount, SpiffeId, TrustDomain
from tests.pki import make_root

DOMAIN = TrustDomain("cluster.local")


@pytest.fixture
def root_file(tmp_path: Path) -> Path:
    path = tmp_path / "root-cert.pem"
    path.write_bytes(make_root().pem)
    return path


def config(root_file: Path, **changes: Any) -> AgentConfig:
    facts: dict[str, Any] = {
        "ca_address": CaAddress.parse("127.0.0.1:15012"),
        "ca_name": parse_ca_name(None, DOMAIN),
        "ca_root_cert": root_file,
        "token_file": root_file.with_name("token"),
        "socket": root_file.with_name("agent.sock"),
        "trust_domain": DOMAIN,
    }
    return AgentConfig(**(facts | changes))


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        ("127.0.0.1:15012", "127.0.0.1", 15012, "127.0.0.1:15012"),
        ("istiod.istio-system.svc:443", "istiod.istio-system.svc", 443, None),
        ("localhost", "localhost", 15012, "localhost:15012"),
        ("[::1]:9", "::1", 9, "[::1]:9"),
        ("[::1]", "::1", 15012, "[::1]:15012"),
    ],
)
def test_address(text: str, host: str, port: int, shown: str | None) -> None:
    address = CaAddress.parse(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == (shown or text)


@pytest.mark.parametrize(
    "text",
    ["", ":15012", "host:", "host:x", "host:0", "host:65536", "host:999999", "::1", "::1:15012",
     "[::1", "[]:1", "host:1\n", "a:b:1", "host:\u0661"],
)  # fmt: skip
def test_bad_address(text: str) -> None:
    with pytest.raises(ConfigError, match="--ca-address"):
        CaAddress.parse(text)


def test_ca_name() -> None:
    istiod = SpiffeId.parse("spiffe://cluster.local/ns/istio-system/sa/istiod")
    assert parse_ca_name(None, DOMAIN) == istiod
    assert parse_ca_name("spiffe://td/ca", DOMAIN) == SpiffeId.parse("spiffe://td/ca")
    assert parse_ca_name("istiod.istio-system.svc", DOMAIN) == "istiod.istio-system.svc"


@pytest.mark.parametrize(
    "text", ["", "spiffe://", "spiffe://TD/x", "a b", "a..b", "-a", "a\n", "x" * 300, "http://x"]
)
def test_bad_ca_name(text: str) -> None:
    with pytest.raises(ConfigError, match="--ca-name"):
        parse_ca_name(text, DOMAIN)


def test_trust_domain_and_account() -> None:
    assert parse_trust_domain("spiffe://td") == TrustDomain("td")
    assert parse_account(None) is None
    assert parse_account("foo/httpbin") == ServiceAccount("foo", "httpbin")
    with pytest.raises(ConfigError, match="--trust-domain"):
        parse_trust_domain("A B")
    with pytest.raises(ConfigError, match="--service-account"):
        parse_account("foo")


def test_token_file_may_come_later(root_file: Path) -> None:
    assert not config(root_file).token_file.exists()


@pytest.mark.parametrize(
    "ttl", [timedelta(), timedelta(milliseconds=1500), timedelta(days=4000)], ids=str
)
def test_bad_ttl(root_file: Path, ttl: timedelta) -> None:
    with pytest.raises(ConfigError, match="--secret-ttl"):
        config(root_file, secret_ttl=ttl)


@pytest.mark.parametrize("uid", [-1, 2**32 - 1])
def test_bad_uid(root_file: Path, uid: int) -> None:
    with pytest.raises(ConfigError, match="--allow-uid"):
        config(root_file, allow_uids=(uid,))


def test_missing_root_file(root_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read CA root certificate file .*nowhere"):
        config(root_file, ca_root_cert=tmp_path / "nowhere")


def test_root_file_that_is_no_pem(root_file: Path) -> None:
    root_file.write_text("hello")
    with pytest.raises(ConfigError, match=r"root-cert\.pem: .*not a PEM file"):
        config(root_file)


def test_roots_speak_for_the_cas_own_trust_domain(root_file: Path) -> None:
    foreign = SpiffeId.parse("spiffe://control.plane/ca")
    assert load_ca_bundle(root_file, foreign, DOMAIN).trust_domain == TrustDomain("control.plane")
    assert load_ca_bundle(root_file, "istiod", DOMAIN).trust_domain == DOMAIN
