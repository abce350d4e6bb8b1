"""Fetching a token issuer's keys over HTTPS: a JWKS URL, or OpenID Connect Discovery.

Everything is bounded, since a whole authentication waits for it: time, size, redirects (none).
"""

from __future__ import annotations

import json
import ssl
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import httpx2
import trio

from ca.jwks import TokenKey, parse_jwks
from mesh.errors import ConfigError, RemoraError

FETCH_DEADLINE = 5.0
"""Seconds for one document, name lookup and TLS included. Agents wait 10 s for their answer."""

MAX_DOCUMENT = 256 * 1024
"""Bytes. A key set of a hundred RSA keys has 50 KiB."""

DISCOVERY_PATH = "/.well-known/openid-configuration"
"""OpenID Connect Discovery 1.0, section 4."""


class FetchFailed(RemoraError):
    """A document could not be fetched from a token issuer."""

    reason = "fetch_failed"


class KeyFetcher:
    """Fetches keys from issuers whose servers' certificates lead to `ca_file` (None: the system's).

    Raises ConfigError for a file that cannot be used.
    """

    def __init__(self, ca_file: Path | None = None) -> None:
        try:
            self._tls = ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"--issuer-ca {ca_file} cannot be used: {error}") from error

    async def key_set(self, url: str) -> tuple[TokenKey, ...]:
        """Fetch a JWK Set. Raises FetchFailed, ConfigError."""
        return parse_jwks(await self._get(url), url)

    async def discovered_key_set(self, issuer: str) -> tuple[TokenKey, ...]:
        """Fetch the JWK Set that an issuer's discovery document names.

        The document must name the issuer exactly as we do (OpenID Connect Discovery, 4.3), or
        whoever can put a file on its host could speak for it. Raises FetchFailed, ConfigError.
        """
        url = issuer.rstrip("/") + DISCOVERY_PATH
        document = _parse(await self._get(url), url)
        if document.get("issuer") != issuer:
            raise FetchFailed(
                f"{url} is about the issuer {str(document.get('issuer'))[:120]!r}, not {issuer!r}"
            )
        keys = document.get("jwks_uri")
        if not isinstance(keys, str):
            raise FetchFailed(f"{url} names no jwks_uri")
        try:
            check_url(keys, "jwks_uri")
        except ConfigError as error:
            raise FetchFailed(f"{url}: {error}") from error
        return await self.key_set(keys)

    async def _get(self, url: str) -> bytes:
        try:
            with trio.fail_after(FETCH_DEADLINE):
                return await self._read(url)
        except trio.TooSlowError as error:
            raise FetchFailed(f"{url} did not answer within {FETCH_DEADLINE:.0f} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise FetchFailed(f"{url} cannot be fetched: {error!r}") from error

    async def _read(self, url: str) -> bytes:
        # Nothing from the environment: a proxy that a variable names would be believed too.
        client = httpx2.AsyncClient(
            verify=self._tls,
            timeout=None,
            trust_env=False,
            headers={"accept": "application/json", "accept-encoding": "identity"},
        )
        async with client, client.stream("GET", url) as response:
            if response.status_code != 200:
                raise FetchFailed(f"{url} answered with status {response.status_code}")
            return await _read_bounded(response, url)


async def _read_bounded(response: httpx2.Response, url: str) -> bytes:
    # Raw: a few compressed bytes could become any number. Cancelled from inside, so that the
    # library's nested generators are unwound; leaving the loop would abandon them.
    data = bytearray()
    with trio.CancelScope() as reading:
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > MAX_DOCUMENT:
                reading.cancel()
    if len(data) > MAX_DOCUMENT:
        raise FetchFailed(f"{url} is larger than {MAX_DOCUMENT} bytes")
    return bytes(data)


def check_url(url: str, flag: str) -> None:
    """Refuse a URL whose answer anybody on the path could replace. Raises ConfigError."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"{flag} {url[:120]!r} is not a URL: {error}") from error
    if parsed.userinfo or not parsed.host or any(c.isspace() for c in url):
        raise ConfigError(f"{flag} {url[:120]!r} must have a host, and no user")
    if parsed.scheme != "https" and not (parsed.scheme == "http" and _is_loopback(parsed.host)):
        raise ConfigError(f"{flag} {url[:120]!r} must begin with https://")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse(data: bytes, url: str) -> dict[str, Any]:
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FetchFailed(f"{url} is not JSON") from error
    if not isinstance(document, dict):
        raise FetchFailed(f"{url} is not a JSON object")
    return cast("dict[str, Any]", document)
