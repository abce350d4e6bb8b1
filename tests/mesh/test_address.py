from __future__ import annotations

import pytest

from mesh.address import Address
from mesh.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:80", "127.0.0.1", 80),
        ("[::1]:0", "::1", 0),
        ("a.example:65535", "a.example", 65535),
        ("a.example.:1", "a.example.", 1),
        ("bücher.example:1", "bücher.example", 1),
    ],
)
def test_an_address_is_read_and_written(text: str, host: str, port: int) -> None:
    address = Address.parse(text)

    assert address == Address(host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "80", ":80", "host", "host:", "host:x", "host:65536", "::1:80", "[host]:80", "[]:80"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Address.parse(text)


@pytest.mark.parametrize("host", ["a..b", ".", "x" * 64, "a." + "x" * 64])
def test_a_host_that_no_name_service_knows_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="no valid host name"):
        Address.parse(f"{host}:80")
