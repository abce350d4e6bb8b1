"""Ways out by the registry, on real sockets: which endpoint, how secured, and what if it fails."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from mesh.svid import certificates_pem, private_key_pem
from mesh.tls import ClientCertificate, TlsContext, server_context
from mesh.tls_errors import TlsError
from mesh.tls_origination import UserCredential
from mesh.tls_stream import TlsStream
from mesh.verify import PeerRejected
from proxy.listener import Handler
from proxy.live_policy import LivePolicy
from tests.pki import NOW, Authority, Leaf, make_root
from tests.proxy.network import (
    CLIENT_ID,
    SERVER_ID,
    connect,
    port_of,
    receive_until_broken,
    tcp_listener,
)
from tests.proxy.rig import Door, Mesh, app_on, door, echo, outbound, round_trip, tls_server
from tests.proxy.test_admission import view_of
from tests.proxy.test_outbound import keeping, of_evil_ca


@pytest.fixture(scope="module")
def root() -> Authority:
    return make_root()


@pytest.fixture
def mesh(root: Authority) -> Mesh:
    return Mesh(root, CLIENT_ID)


def entry(*endpoints: str, more: str = "resolution: STATIC, location: MESH_INTERNAL") -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: httpbin, namespace: foo}}
spec:
  {{hosts: [httpbin.test], ports: [{{number: 80, name: tcp, protocol: TCP}}], {more},
   endpoints: [{", ".join(endpoints)}]}}
"""


def endpoint(port: int, more: str = "serviceAccount: httpbin", host: str = "127.0.0.1") -> str:
    return f"{{address: {host}, ports: {{tcp: {port}}}, {more}}}"


def rule(policy: str) -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: rule, namespace: foo}}
spec: {{host: httpbin.test, trafficPolicy: {{{policy}}}}}
"""


@asynccontextmanager
async def way_to(
    mesh: Mesh,
    *texts: str,
    host: str = "httpbin.test",
    port: int = 80,
    captured: bool = False,
) -> AsyncIterator[tuple[Door, LivePolicy]]:
    policy = LivePolicy(view_of(*texts))
    handler = outbound(mesh, port, host=host, policy=policy, captured=captured)
    async with door(handler) as way:
        yield way, policy


async def says(way: Door, data: bytes = b"hello") -> bytes:
    async with await connect(way.port) as app:
        return await round_trip(app, data)


async def refused(way: Door) -> str:
    async with await connect(way.port) as app:
        with contextlib.suppress(trio.BrokenResourceError):
            await app.send_all(b"secret")
            assert await app.receive_some() == b""
            raise AssertionError("a clean end, where a reset was due")
    line = await way.line()
    return str(line["reason"])


async def test_an_endpoint_in_the_mesh_is_reached_by_mutual_tls(mesh: Mesh) -> None:
    async with app_on(tls_server(mesh.root)) as far:
        async with way_to(mesh, entry(endpoint(far))) as (way, _):
            assert await says(way) == b"hello"
            line = await way.line()
    assert line["transport"] == "mtls"
    assert line["peer_id"] == str(SERVER_ID)
    assert line["target"] == "httpbin.test:80"
    assert line["endpoint"] == f"127.0.0.1:{far}"


async def test_an_endpoint_without_a_proxy_is_reached_in_plaintext(mesh: Mesh) -> None:
    async with app_on() as far, way_to(mesh, entry(endpoint(far, "weight: 1"))) as (way, _):
        assert await says(way) == b"hello"
        assert (await way.line())["transport"] == "plaintext"


async def test_a_service_may_be_half_in_the_mesh(mesh: Mesh) -> None:
    async with app_on(tls_server(mesh.root)) as secure, app_on() as plain:
        turns = rule("loadBalancer: {simple: ROUND_ROBIN}")
        service = entry(endpoint(secure), endpoint(plain, "weight: 1"))
        async with way_to(mesh, service, turns) as (way, _):
            for _ in range(4):
                assert await says(way) == b"hello"
            await trio.testing.wait_all_tasks_blocked(0.01)
    transports = [line["transport"] for line in way.lines if line["event"] == "connection closed"]
    assert transports == ["mtls", "plaintext"] * 2


async def test_a_rule_may_forbid_mutual_tls_and_demand_it(mesh: Mesh) -> None:
    async with app_on() as far:
        off = rule("tls: {mode: DISABLE}")
        async with way_to(mesh, entry(endpoint(far)), off) as (way, _):
            assert await says(way) == b"hello"
        on = rule("tls: {mode: ISTIO_MUTUAL}")
        async with way_to(mesh, entry(endpoint(far, "weight: 1")), on) as (way, _):
            assert await refused(way) in {"peer_spoke_plaintext", "peer_closed", "tls_error"}


async def test_the_next_endpoint_is_tried_and_a_failing_one_ejected(mesh: Mesh) -> None:
    async with await tcp_listener() as listener:
        dead = port_of(listener)
    eject = rule("outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 1m}")
    async with app_on(tls_server(mesh.root)) as far:
        async with way_to(mesh, entry(endpoint(dead), endpoint(far)), eject) as (way, _):
            for _ in range(3):
                assert await says(way) == b"hello"
            await trio.testing.wait_all_tasks_blocked(0.01)
    ejected = [line for line in way.lines if line["event"].startswith("endpoint ejected")]
    assert [(line["endpoint"], line["seconds"]) for line in ejected] == [
        (f"127.0.0.1:{dead}", 60.0)
    ]
    failed = [line for line in way.lines if line["event"] == "endpoint failed"]
    assert len(failed) == 1


async def test_an_impostor_is_stepped_over_and_gets_no_byte(mesh: Mesh) -> None:
    received = bytearray()
    impostor = keeping(received, mesh.root, of_evil_ca(mesh.root))
    async with app_on(impostor) as evil, app_on(tls_server(mesh.root)) as far:
        async with way_to(mesh, entry(endpoint(evil), endpoint(far))) as (way, _):
            assert await says(way, b"secret") == b"secret"
            await way.line()
    assert received == b""
    assert way.lines[0]["reason"] == "peer_not_trusted"


async def test_without_a_good_endpoint_the_last_reason_is_told(mesh: Mesh) -> None:
    impostor = keeping(bytearray(), mesh.root, of_evil_ca(mesh.root))
    async with app_on(impostor) as evil:
        async with way_to(mesh, entry(endpoint(evil), endpoint(evil, "serviceAccount: x"))) as (
            way,
            _,
        ):
            assert await refused(way) == "peer_not_trusted"


async def test_a_connection_that_the_app_may_have_used_is_not_made_again(mesh: Mesh) -> None:
    asked = 0

    async def greedy(stream: trio.SocketStream) -> None:
        nonlocal asked
        asked += 1
        await stream.receive_some()
        await trio.aclose_forcefully(stream)

    async with app_on(greedy) as one, app_on(greedy) as other:
        service = entry(endpoint(one, "weight: 1"), endpoint(other, "weight: 1"))
        async with way_to(mesh, service) as (way, _):
            async with await connect(way.port) as app:
                await app.send_all(b"pay 5")
                assert await app.receive_some() == b""
                await app.send_eof()
            await way.line()
    assert asked == 1


async def test_the_way_is_that_of_the_policy_in_force(mesh: Mesh) -> None:
    async with app_on(tls_server(mesh.root)) as far:
        async with way_to(mesh, entry(endpoint(1))) as (way, policy):
            policy.publish(view_of(entry(endpoint(far))))
            assert await says(way) == b"hello"


async def test_busy_endpoints_get_fewer_connections(mesh: Mesh) -> None:
    async with app_on() as one, app_on() as other:
        service = entry(endpoint(one, "weight: 1"), endpoint(other, "weight: 1"))
        async with way_to(mesh, service) as (way, _):
            first, second = await connect(way.port), await connect(way.port)
            for stream in (first, second):
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
            for stream in (first, second):
                await stream.aclose()
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert {line["endpoint"] for line in way.lines} == {f"127.0.0.1:{p}" for p in (one, other)}


async def test_a_name_is_resolved_for_every_connection(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    monkeypatch.setattr("proxy.reach.resolve", resolve)
    async with app_on() as far:
        outside = entry(endpoint(far, "weight: 1", "db.test"), more="resolution: DNS")
        async with way_to(mesh, outside) as (way, _):
            assert await says(way) == b"hello"
            assert await says(way) == b"hello"
    assert asked == ["db.test"] * 2


async def test_what_an_app_calls_by_itself_goes_as_it_is_if_no_registry_knows_it(
    mesh: Mesh,
) -> None:
    async with app_on() as far, way_to(mesh, host="127.0.0.1", port=far, captured=True) as (way, _):
        assert await says(way) == b"hello"
        assert (await way.line())["transport"] == "plaintext"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_what_a_flag_names_never_goes_in_plaintext_for_want_of_a_registry(
    mesh: Mesh, host: str
) -> None:
    async with app_on() as far, way_to(mesh, host=host, port=far) as (way, _):
        async with await connect(way.port) as app:
            assert await receive_until_broken(app) == b""
        line = await way.line()
    assert line["reason"] == "outbound_blocked"
    assert "@plaintext" in line["detail"]


async def test_a_service_without_endpoints_says_so(mesh: Mesh) -> None:
    async with way_to(mesh, entry()) as (way, _):
        async with await connect(way.port) as app:
            assert await receive_until_broken(app) == b""
        line = await way.line()
    assert line["reason"] == "no_endpoints"
    assert "ServiceEntry foo/httpbin" in line["detail"]


# SIMPLE and MUTUAL: servers outside of the mesh.


@pytest.fixture(scope="module")
def other() -> Authority:
    return make_root("the outside CA")


def outside(context: TlsContext) -> Handler:
    async def serve(transport: trio.SocketStream) -> None:
        stream = TlsStream(transport, context.session(NOW))
        try:
            await stream.do_handshake()
            async for chunk in stream:
                await stream.send_all(chunk)
            await stream.send_eof()
        except (TlsError, PeerRejected, trio.BrokenResourceError):
            pass
        finally:
            transport.socket.close()

    return serve


def named(
    authority: Authority, *names: str, demanding: bool = False
) -> tuple[UserCredential, TlsContext]:
    leaf = Leaf(sans=names)
    credential = UserCredential(chain=(authority.sign(leaf),), key=leaf.key)
    mode = ClientCertificate.REQUIRED if demanding else ClientCertificate.NONE
    context = server_context(
        credential,
        authority.bundle(),
        client_certificate=mode,
    )
    return credential, context


def ca_file(folder: Path, authority: Authority) -> Path:
    file = folder / "ca.pem"
    file.write_bytes(certificates_pem([authority.certificate]))
    return file


async def test_simple_checks_the_hosts_name_and_shows_nothing(
    mesh: Mesh, other: Authority, tmp_path: Path
) -> None:
    _, context = named(other, "httpbin.test")
    simple = rule(f"tls: {{mode: SIMPLE, caCertificates: {ca_file(tmp_path, other)}}}")
    async with app_on(outside(context)) as far:
        async with way_to(mesh, entry(endpoint(far)), simple) as (way, _):
            assert await says(way) == b"hello"
            line = await way.line()
    assert line["transport"] == "tls"
    assert "peer_id" not in line


@pytest.mark.parametrize(
    ("names", "settings", "reason"),
    [
        (["other.test"], "", "tls_error"),
        (["other.test"], ", subjectAltNames: [other.test]", None),
        (["httpbin.test"], ", subjectAltNames: [other.test]", "tls_error"),
        (["other.test"], ", insecureSkipVerify: true", None),
        (["httpbin.test"], ", credentialName: secret", "client_tls_unusable"),
    ],
)
async def test_simple_believes_no_other_name(
    mesh: Mesh,
    other: Authority,
    tmp_path: Path,
    names: list[str],
    settings: str,
    reason: str | None,
) -> None:
    _, context = named(other, *names)
    authority = "" if settings.endswith(("true", "secret")) else ca_file(tmp_path, other)
    simple = rule(f"tls: {{mode: SIMPLE, caCertificates: '{authority}'{settings}}}")
    async with app_on(outside(context)) as far:
        async with way_to(mesh, entry(endpoint(far)), simple) as (way, _):
            if reason is None:
                assert await says(way) == b"hello"
            else:
                assert await refused(way) == reason


async def test_a_server_of_another_ca_is_refused(
    mesh: Mesh, other: Authority, tmp_path: Path
) -> None:
    _, context = named(make_root("evil"), "httpbin.test")
    simple = rule(f"tls: {{mode: SIMPLE, caCertificates: {ca_file(tmp_path, other)}}}")
    async with app_on(outside(context)) as far:
        async with way_to(mesh, entry(endpoint(far)), simple) as (way, _):
            assert await refused(way) == "peer_not_trusted"


async def test_mutual_shows_the_users_certificate_and_reads_renewed_files(
    mesh: Mesh, other: Authority, tmp_path: Path
) -> None:
    _, context = named(other, "httpbin.test", demanding=True)
    files = tmp_path / "user.pem", tmp_path / "user.key"
    mutual = rule(
        f"tls: {{mode: MUTUAL, caCertificates: {ca_file(tmp_path, other)}, "
        f"clientCertificate: {files[0]}, privateKey: {files[1]}}}"
    )

    def write(authority: Authority) -> None:
        credential, _ = named(authority, "spiffe://cluster.local/ns/a/sa/user")
        files[0].write_bytes(certificates_pem(credential.chain))
        files[1].write_bytes(private_key_pem(credential.key))

    async with app_on(outside(context)) as far:
        async with way_to(mesh, entry(endpoint(far)), mutual) as (way, _):
            assert await refused(way) == "client_tls_unusable"
            assert "user.pem" in way.lines[-1]["detail"]
            write(other)
            assert await says(way) == b"hello"
            write(make_root("evil"))
            async with await connect(way.port) as app:
                await app.send_all(b"hello")
                assert await receive_until_broken(app) == b""


async def test_a_key_of_another_certificate_is_refused(
    mesh: Mesh, other: Authority, tmp_path: Path
) -> None:
    one, _ = named(other, "a.test")
    two, _ = named(other, "a.test")
    (tmp_path / "c").write_bytes(certificates_pem(one.chain))
    (tmp_path / "k").write_bytes(private_key_pem(two.key))
    mutual = rule(
        f"tls: {{mode: MUTUAL, clientCertificate: {tmp_path / 'c'}, privateKey: {tmp_path / 'k'}}}"
    )
    async with app_on(echo) as far, way_to(mesh, entry(endpoint(far)), mutual) as (way, _):
        assert await refused(way) == "client_tls_unusable"
        assert "does not belong" in way.lines[-1]["detail"]
