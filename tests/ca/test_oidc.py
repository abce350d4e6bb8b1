from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from jwt.algorithms import RSAAlgorithm

import ca.oidc
from ca.oidc import DISCOVERY_PATH, MAX_DOCUMENT, FetchFailed, KeyFetcher, check_url
from mesh.errors import ConfigError
from mesh.svid import certificates_pem, private_key_pem
from tests.ca.workshop import rsa_key
from tests.pki import Leaf, make_root, real_now

ROOT = make_root("issuer", now=real_now())
KEYS = {"keys": [{**RSAAlgorithm.to_jwk(rsa_key().public_key(), as_dict=True), "kid": "k"}]}


class IssuerServer(ThreadingHTTPServer):
    """A token issuer over HTTPS, by the standard library. `pages` maps a path to its answer."""

    def __init__(self) -> None:
        self.pages: dict[str, Any] = {}
        self.silence = threading.Event()
        super().__init__(("127.0.0.1", 0), _Answer)
        self.url = f"https://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        issuer = cast("IssuerServer", self.server)
        page = issuer.pages.get(self.path)
        if page == "silence":
            issuer.silence.wait(10)
            return
        status, body = page if isinstance(page, tuple) else (200 if page else 404, page)
        self.send_response(status)
        if status == 302:
            self.send_header("location", body)
        self.end_headers()
        if status == 200:
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@contextmanager
def serving(tmp_path: Path, root_name: str = "127.0.0.1") -> Iterator[IssuerServer]:
    leaf = Leaf(sans=[root_name])
    (tmp_path / "server.pem").write_bytes(
        certificates_pem([ROOT.sign(leaf)]) + private_key_pem(leaf.key)
    )
    (tmp_path / "issuer-root.pem").write_bytes(ROOT.pem)
    with IssuerServer() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.silence.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[IssuerServer]:
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def fetcher(tmp_path: Path, server: IssuerServer) -> KeyFetcher:
    return KeyFetcher(tmp_path / "issuer-root.pem")


async def test_a_key_set_is_fetched(server: IssuerServer, fetcher: KeyFetcher) -> None:
    server.pages["/keys"] = KEYS
    (key,) = await fetcher.key_set(f"{server.url}/keys")
    assert (key.kid, key.key) == ("k", rsa_key().public_key())


@pytest.mark.parametrize("path", ["", "/", "/tenant"])
async def test_an_issuer_is_discovered(
    server: IssuerServer, fetcher: KeyFetcher, path: str
) -> None:
    issuer = server.url + path
    document = {"issuer": issuer, "jwks_uri": f"{server.url}/keys"}
    server.pages |= {path.rstrip("/") + DISCOVERY_PATH: document, "/keys": KEYS}
    (key,) = await fetcher.discovered_key_set(issuer)
    assert key.kid == "k"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        pytest.param({"issuer": "https://evil.test"}, "is about the issuer", id="other-issuer"),
        pytest.param({"issuer": None}, "is about the issuer", id="no-issuer"),
        pytest.param({"jwks_uri": None}, "names no jwks_uri", id="no-keys"),
        pytest.param({"jwks_uri": "http://example.org/"}, "must begin with https", id="plain"),
        pytest.param({"jwks_uri": "file:///etc/passwd"}, "must have a host", id="file"),
    ],
)
async def test_discovery_documents_that_must_not_be_believed(
    server: IssuerServer, fetcher: KeyFetcher, change: dict[str, Any], complaint: str
) -> None:
    document = {"issuer": server.url, "jwks_uri": f"{server.url}/keys", **change}
    server.pages |= {DISCOVERY_PATH: document, "/keys": KEYS}
    with pytest.raises(FetchFailed, match=complaint):
        await fetcher.discovered_key_set(server.url)


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        pytest.param(None, "answered with status 404", id="missing"),
        pytest.param((500, ""), "answered with status 500", id="broken"),
        pytest.param((302, "/keys"), "answered with status 302", id="redirect"),
        pytest.param(b" " * (MAX_DOCUMENT + 1), "is larger than", id="huge"),
        pytest.param(b"junk", "is not JSON", id="junk"),
        pytest.param(b"[" * 100_000, "is not JSON", id="deep"),
        pytest.param(b"[]", "not a JSON object", id="list"),
    ],
)
async def test_answers_that_are_no_document(
    server: IssuerServer, fetcher: KeyFetcher, page: Any, complaint: str
) -> None:
    server.pages[DISCOVERY_PATH] = page
    with pytest.raises(FetchFailed, match=complaint):
        await fetcher.discovered_key_set(server.url)


async def test_a_silent_issuer_is_given_up(
    server: IssuerServer, fetcher: KeyFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ca.oidc, "FETCH_DEADLINE", 0.2)
    server.pages["/keys"] = "silence"
    with pytest.raises(FetchFailed, match="did not answer"):
        await fetcher.key_set(f"{server.url}/keys")


async def test_an_impostor_is_not_believed(tmp_path: Path, server: IssuerServer) -> None:
    server.pages["/keys"] = KEYS
    (tmp_path / "other.pem").write_bytes(make_root("other", now=real_now()).pem)
    for roots in (tmp_path / "other.pem", None):
        with pytest.raises(FetchFailed, match="cannot be fetched"):
            await KeyFetcher(roots).key_set(f"{server.url}/keys")


async def test_a_certificate_for_another_host_is_not_believed(tmp_path: Path) -> None:
    with serving(tmp_path, "issuer.test") as server:
        server.pages["/keys"] = KEYS
        with pytest.raises(FetchFailed, match="cannot be fetched"):
            await KeyFetcher(tmp_path / "issuer-root.pem").key_set(f"{server.url}/keys")


async def test_nobody_there(tmp_path: Path, fetcher: KeyFetcher) -> None:
    with pytest.raises(FetchFailed, match="cannot be fetched"):
        await fetcher.key_set("https://127.0.0.1:1/keys")


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.test",
        "issuer.test",
        "ftp://issuer.test/",
        "https://",
        "https://u@h/",
        "",
        "http://[",
        "https://a b/",
    ],
)
def test_urls_that_anybody_on_the_path_could_answer(url: str) -> None:
    with pytest.raises(ConfigError, match="--oidc-issuer"):
        check_url(url, "--oidc-issuer")


@pytest.mark.parametrize("url", ["https://issuer.test/x", "http://127.0.0.1:1", "http://localhost"])
def test_urls_that_will_do(url: str) -> None:
    check_url(url, "--oidc-issuer")


@pytest.mark.parametrize("content", [None, b"junk"])
def test_roots_that_cannot_be_used(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "roots.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="--issuer-ca"):
        KeyFetcher(path)
