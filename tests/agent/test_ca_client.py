from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

from agent.ca_client import ATTEMPTS, CONNECT_DEADLINE, RETRYABLE, CaClient, dial_tcp
from agent.config import AgentConfig, CaAddress
from agent.csr import new_request
from agent.errors import (
    CaFailing,
    CaNotTrusted,
    CaRefused,
    CaRootsUnusable,
    CaUnreachable,
    TokenRejected,
    TokenUnusable,
)
from mesh.grpc import GrpcError, Status
from tests.agent.fake_ca import CA_ID, IDENTITY, FakeCa, fixed_now, make_client
from tests.agent.fake_ca import make_config as config_for
from tests.pki import NOW, make_root

CSR = new_request(IDENTITY).csr_pem


def jwt(claims: dict[str, object]) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"e30.{payload}.c2ln"


@pytest.fixture
def ca(nursery: trio.Nursery) -> FakeCa:
    return FakeCa(now=fixed_now, nursery=nursery)


@pytest.fixture
def config(tmp_path: Path, ca: FakeCa) -> AgentConfig:
    return config_for(tmp_path, ca)


async def ask(config: AgentConfig, ca: FakeCa) -> list[str]:
    return list(await make_client(config, ca).create_certificate(CSR))


async def test_call(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    answer = await ask(config, ca)
    assert len(answer) == 2
    assert answer[1] == ca.root.pem.decode()
    [seen] = ca.seen
    assert seen.authorization == ["Bearer a.token.of-httpbin"]
    assert seen.validity == 24 * 3600
    assert seen.csr.is_signature_valid


async def test_token_and_roots_are_read_again_for_every_call(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    client = make_client(config, ca)
    await client.create_certificate(CSR)
    config.token_file.write_text("the.next.one")
    ca.root = make_root("new root")
    config.ca_root_cert.write_bytes(ca.root.pem)
    await client.create_certificate(CSR)
    assert [seen.authorization for seen in ca.seen] == [
        ["Bearer a.token.of-httpbin"],
        ["Bearer the.next.one"],
    ]
    assert ca.dials == 2


@pytest.mark.parametrize("content", [None, "", " \n"], ids=["missing", "empty", "blank"])
async def test_without_a_token_no_header_is_sent(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock, content: str | None
) -> None:
    if content is None:
        config.token_file.unlink()
    else:
        config.token_file.write_text(content)
    await ask(config, ca)
    assert ca.seen[0].authorization == []


async def test_unusable_token_is_not_sent(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    config.token_file.write_text("two words")
    with pytest.raises(TokenUnusable):
        await ask(config, ca)
    assert ca.dials == 0


async def test_token_file_that_cannot_be_read(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    config.token_file.unlink()
    config.token_file.mkdir()
    with pytest.raises(TokenUnusable, match=r"cannot read token file .*: Is a directory"):
        await ask(config, ca)


@pytest.mark.parametrize("code", sorted(RETRYABLE), ids=lambda code: code.name)
async def test_passing_failures_are_retried(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock, code: Status
) -> None:
    ca.failures = [GrpcError(code, "not now")] * (ATTEMPTS - 1)
    start = trio.current_time()
    assert len(await ask(config, ca)) == 2
    assert ca.dials == ATTEMPTS
    # 100, 200, 400 and 800 ms, 10 % up or down.
    assert 1.35 <= trio.current_time() - start <= 1.65


async def test_five_attempts_and_no_more(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    ca.failures = [GrpcError(Status.UNAVAILABLE, "not now")] * 100
    with pytest.raises(CaFailing, match=r"ca\.test:15012 answered UNAVAILABLE: not now"):
        await ask(config, ca)
    assert len(ca.seen) == ATTEMPTS


@pytest.mark.parametrize(
    "code", sorted(set(Status) - RETRYABLE - {Status.OK, Status.UNAUTHENTICATED})
)
async def test_lasting_failures_are_not_retried(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock, code: Status
) -> None:
    ca.failures = [GrpcError(code, "no")]
    with pytest.raises(CaRefused, match="no"):
        await ask(config, ca)
    assert len(ca.seen) == 1


@pytest.mark.parametrize(
    ("token", "advice"),
    [
        pytest.param("", "no token was sent", id="none"),
        pytest.param(jwt({"exp": NOW.timestamp() - 60}), "expired 60 s ago", id="expired"),
        pytest.param(jwt({"aud": "vault"}), "for audience vault", id="audience"),
        pytest.param(jwt({"aud": "istio-ca"}), "its issuer", id="no visible fault"),
    ],
)
async def test_rejected_token_is_explained(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock, token: str, advice: str
) -> None:
    config.token_file.write_text(token)
    ca.failures = [GrpcError(Status.UNAUTHENTICATED, "request authenticate failure")]
    with pytest.raises(TokenRejected, match=advice):
        await ask(config, ca)
    assert len(ca.seen) == 1


async def test_refused_connection_is_retried(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    ca.up = False
    with pytest.raises(CaUnreachable, match=r"ca\.test:15012 \(Connection refused\): start it"):
        await ask(config, ca)
    assert ca.dials == ATTEMPTS


async def test_ca_that_comes_up_between_attempts(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    ca.up = False

    async def start() -> None:
        await trio.sleep(0.2)
        ca.up = True

    ca.nursery.start_soon(start)
    assert len(await ask(config, ca)) == 2
    assert 1 < ca.dials < ATTEMPTS


async def test_mute_ca(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    ca.mute = True
    start = trio.current_time()
    with pytest.raises(CaUnreachable, match="did not answer within 10 s"):
        await ask(config, ca)
    assert trio.current_time() - start >= ATTEMPTS * CONNECT_DEADLINE


async def test_slow_ca(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    ca.latency = 3600
    with pytest.raises(CaFailing, match="DEADLINE_EXCEEDED"):
        await ask(config, ca)
    assert len(ca.seen) == ATTEMPTS


async def test_latency_within_the_deadline(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    ca.latency = 5.0
    assert len(await ask(config, ca)) == 2
    assert len(ca.seen) == 1


async def test_ca_of_another_root(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    ca.root = make_root("impostor")
    with pytest.raises(CaNotTrusted, match=r"not known to be the CA .*by the roots in .*root-cert"):
        await ask(config, ca)
    assert ca.dials == 1
    assert not ca.seen


async def test_workload_in_place_of_the_ca(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    ca.server_svid = ca.root.issue(str(IDENTITY))
    with pytest.raises(CaNotTrusted, match=r"it is spiffe://cluster\.local/ns/foo/sa/httpbin"):
        await ask(config, ca)
    assert not ca.seen


@pytest.mark.parametrize(
    ("shift", "words"), [(-7200, "expired"), (7200, "valid only in")], ids=["past", "future"]
)
async def test_ca_certificate_out_of_its_time(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock, shift: int, words: str
) -> None:
    start = NOW + timedelta(seconds=shift)
    ca.server_svid = ca.root.issue(CA_ID, not_before=start, not_after=start + timedelta(minutes=10))
    with pytest.raises(CaNotTrusted, match=rf"{words}.*check the clocks"):
        await ask(config, ca)


async def test_ca_known_by_dns_name(
    tmp_path: Path, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    ca.server_svid = ca.root.issue(CA_ID, "istiod.istio-system.svc")
    config = config_for(tmp_path, ca, ca_name="istiod.istio-system.svc")
    assert len(await ask(config, ca)) == 2


@pytest.mark.parametrize("name", ["istiod.evil.svc", "istio-system.svc", "x.localhost"])
async def test_ca_of_another_dns_name(
    tmp_path: Path, ca: FakeCa, autojump_clock: trio.testing.MockClock, name: str
) -> None:
    ca.server_svid = ca.root.issue(CA_ID, "istiod.istio-system.svc", "localhost")
    with pytest.raises(CaNotTrusted, match=f"istiod.istio-system.svc, localhost, not {name}"):
        await ask(config_for(tmp_path, ca, ca_name=name), ca)
    assert not ca.seen


async def test_tls_server_that_is_not_grpc(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    ca.alpn = b"http/1.1"
    with pytest.raises(CaUnreachable, match="speaks TLS but not gRPC"):
        await ask(config, ca)


async def test_plaintext_server(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    async def dial(address: CaAddress) -> trio.abc.Stream:
        client, server = trio.testing.memory_stream_pair()
        await server.send_all(b"SSH-2.0-OpenSSH_9.9\r\n")
        return client

    client = CaClient(config, now=ca.now, random=Random(1), dial=dial)
    with pytest.raises(CaUnreachable, match=r"no TLS connection .*plaintext"):
        await client.create_certificate(CSR)


async def test_roots_that_vanish_later(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    client = make_client(config, ca)
    config.ca_root_cert.unlink()
    with pytest.raises(CaRootsUnusable, match="cannot read CA root certificate file"):
        await client.create_certificate(CSR)
    config.ca_root_cert.write_bytes(ca.root.pem)
    assert len(await client.create_certificate(CSR)) == 2


async def test_cancelling_leaves_nothing_open(
    config: AgentConfig, ca: FakeCa, autojump_clock: trio.testing.MockClock
) -> None:
    ca.latency = 5.0
    with trio.move_on_after(1.0) as scope:
        await make_client(config, ca).create_certificate(CSR)
    assert scope.cancelled_caught
    await trio.testing.wait_all_tasks_blocked()
    assert not ca.nursery.child_tasks


async def test_nobody_listens_on_a_real_port(tmp_path: Path) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    address = CaAddress(host="127.0.0.1", port=port)
    with pytest.raises(OSError, match="connect"):
        await dial_tcp(address)


async def test_real_connection(tmp_path: Path, nursery: trio.Nursery) -> None:
    ca = FakeCa(now=fixed_now, nursery=nursery)
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = CaAddress(host="127.0.0.1", port=listener.socket.getsockname()[1])
    config = config_for(tmp_path, ca, ca_address=address)
    nursery.start_soon(trio.serve_listeners, ca.serve, [listener])
    client = CaClient(config, now=ca.now, random=Random(1))
    assert len(await client.create_certificate(CSR)) == 2
