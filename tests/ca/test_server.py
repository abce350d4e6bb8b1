from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
import trio
from jwt.algorithms import RSAAlgorithm
from structlog.testing import capture_logs

import ca.keeper as ca_keeper
from ca.audit import AUDIT_LOG
from ca.config import CaConfig
from ca.errors import RotationTooEarly
from ca.join_tokens import JoinTokens
from ca.material import load_token_key
from ca.oidc import DISCOVERY_PATH
from ca.operations import (
    activate_root,
    prepare_root,
    restore_identity,
    retire_root,
    revoke_identity,
    revoke_serial,
)
from ca.rate_limit import Rate
from ca.replicas import running
from ca.server import Running, serve
from ca.state import ROOT_CERT, generation
from ca.tokens import create_join_token, create_token
from mesh.address import Address
from mesh.api import CREATE_CERTIFICATE, TAKES_REVOCATION_LISTS
from mesh.bundle import TrustBundle
from mesh.errors import ConfigError
from mesh.grpc import GrpcError, Status, open_channel
from mesh.protos.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from mesh.spiffe import ServiceAccount
from mesh.svid import X509Svid, parse_certificates_pem
from mesh.tls import client_context
from mesh.tls_stream import TlsStream
from mesh.verify import PeerRevoked, verify_chain
from tests.ca.test_keeper import plug_in
from tests.ca.test_oidc import KEYS
from tests.ca.test_oidc import serving as issuer_server
from tests.ca.workshop import CLUSTER, WEB, claims, csr_pem, rsa_key, sign_token
from tests.pki import make_root, new_key, real_now, svid_pem

ANY_PORT = Address(host="127.0.0.1", port=0)


@dataclass
class Ca:
    """A CA at work, and what its clients need."""

    config: CaConfig
    running: Running

    @property
    def target(self) -> str:
        return str(self.running.addresses[0])

    @property
    def root(self) -> bytes:
        return (self.config.state_dir / ROOT_CERT).read_bytes()

    @property
    def roots(self) -> TrustBundle:
        return TrustBundle.from_pem(CLUSTER, self.root)

    def token(self, ttl: timedelta = timedelta(hours=1), audience: str = "istio-ca") -> str:
        key = load_token_key(self.config.state_dir)
        account = ServiceAccount("foo", "web")
        return create_token(key, account, audience=audience, ttl=ttl, now=real_now())

    def join_token(self, ttl: timedelta = timedelta(hours=1)) -> str:
        state, now = self.config.state_dir, real_now()
        return create_join_token(
            load_token_key(state),
            ServiceAccount("foo", "web"),
            token_id=JoinTokens(state).add(now + ttl),
            audience="istio-ca",
            ttl=ttl,
            now=now,
        )


def make_config(tmp_path: Path, **changes: Any) -> CaConfig:
    config = CaConfig(state_dir=tmp_path / "state", listen=ANY_PORT, trust_domain=CLUSTER)
    return replace(config, **changes)


@asynccontextmanager
async def running_ca(config: CaConfig) -> AsyncGenerator[Ca]:
    async with trio.open_nursery() as nursery:
        running = await nursery.start(partial(serve, config, now=real_now))
        yield Ca(config, running)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def ca(tmp_path: Path) -> AsyncGenerator[Ca]:
    async with running_ca(make_config(tmp_path)) as running:
        yield running


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


def request(csr: bytes | None = None, ttl: int = 3600) -> IstioCertificateRequest:
    return IstioCertificateRequest(csr=(csr or csr_pem()).decode(), validity_duration=ttl)


async def ask(
    ca: Ca,
    message: IstioCertificateRequest,
    metadata: Sequence[tuple[str, str]] = (),
    *,
    root: bytes | None = None,
    svid: X509Svid | None = None,
) -> IstioCertificateResponse:
    """Call as grpcio does, which knows nothing of us. Raises grpc.RpcError."""
    chain, key = (None, None) if svid is None else svid_pem(svid)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=root or ca.root, private_key=key, certificate_chain=chain
    )

    def call() -> IstioCertificateResponse:
        with grpc.secure_channel(ca.target, credentials) as channel:
            method = channel.unary_unary(
                CREATE_CERTIFICATE.path,
                request_serializer=IstioCertificateRequest.SerializeToString,
                response_deserializer=IstioCertificateResponse.FromString,
            )
            answer: IstioCertificateResponse = method(message, metadata=metadata, timeout=10)
            return answer

    return await trio.to_thread.run_sync(call)


async def refused(ca: Ca, *args: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        await ask(ca, *args, **options)
    code: str = caught.value.code().name
    details: str = caught.value.details()
    return code, details


def check(ca: Ca, answer: IstioCertificateResponse) -> None:
    leaf, roots = (parse_certificates_pem(element.encode()) for element in answer.cert_chain)
    assert roots == ca.roots.authorities
    assert verify_chain(leaf, {CLUSTER: ca.roots}, real_now()) == WEB


async def test_a_foreign_client_gets_its_certificate(ca: Ca) -> None:
    with capture_logs() as logs:
        check(ca, await ask(ca, request(), bearer(ca.token())))
    issued = [line for line in logs if line["event"] == "certificate issued"]
    assert [line["identity"] for line in issued] == [str(WEB)]
    assert issued[0]["peer"].startswith("127.0.0.1:")


async def test_of_several_authorization_values_the_first_bearer_counts(ca: Ca) -> None:
    metadata = [("authorization", "Basic Zm9v"), *bearer(ca.token()), *bearer("junk")]
    check(ca, await ask(ca, request(), metadata))


async def test_an_unknown_caller_is_refused_without_a_reason(ca: Ca) -> None:
    for metadata in (
        [],
        bearer("junk"),
        bearer(ca.token(timedelta(seconds=-1))),
        bearer(ca.token(audience="vault")),
    ):
        answer = await refused(ca, request(), metadata)
        assert answer == ("UNAUTHENTICATED", "request authenticate failure")


async def test_bad_requests_are_refused_with_a_reason(ca: Ca) -> None:
    metadata = bearer(ca.token())
    code, details = await refused(ca, request(b"not PEM"), metadata)
    assert code == "INVALID_ARGUMENT"
    assert details.startswith("CSR signing error (CSR_ERROR: the signing request cannot be read")
    code, details = await refused(ca, request(ttl=2**63 - 1), metadata)
    assert (code, details[:30]) == ("INVALID_ARGUMENT", "CSR signing error (TTL_ERROR: ")


async def test_requests_of_any_size_are_survived(ca: Ca) -> None:
    metadata = bearer(ca.token())
    code, _ = await refused(ca, request(b"x" * 70_000), metadata)
    assert code == "INVALID_ARGUMENT"
    code, _ = await refused(ca, request(b"x" * (4 * 1024 * 1024 + 1)), metadata)
    assert code == "RESOURCE_EXHAUSTED"
    check(ca, await ask(ca, request(), metadata))


async def test_a_client_that_trusts_another_root_does_not_send_its_token(ca: Ca) -> None:
    with capture_logs() as logs:
        code, _ = await refused(ca, request(), bearer(ca.token()), root=make_root().pem)
    assert code == "UNAVAILABLE"
    assert not [line for line in logs if line["event"] == "certificate issued"]


async def joined(ca: Ca, token: str) -> X509Svid:
    """Get a certificate as a machine does that has nothing but a token."""
    key = new_key()
    answer = await ask(ca, request(csr_pem(key)), bearer(token))
    return X509Svid(id=WEB, chain=parse_certificates_pem(answer.cert_chain[0].encode()), key=key)


async def test_a_certificate_is_renewed_with_itself(ca: Ca) -> None:
    svid = await joined(ca, ca.token())
    with capture_logs() as logs:
        check(ca, await ask(ca, request(), svid=svid))
    assert logs[-1]["authenticator"] == "client-certificate"
    check(ca, await ask(ca, request(), bearer("junk"), svid=svid))


async def test_a_join_token_gives_one_certificate_which_then_renews_itself(ca: Ca) -> None:
    token = ca.join_token()
    code, _ = await refused(ca, request(b"not PEM"), bearer(token))
    assert code == "INVALID_ARGUMENT", "and the token is as good as before"
    svid = await joined(ca, token)
    assert await refused(ca, request(), bearer(token)) == (
        "UNAUTHENTICATED",
        "request authenticate failure",
    )
    check(ca, await ask(ca, request(), bearer(token), svid=svid))


async def test_of_many_who_come_with_one_join_token_to_two_cas_one_gets_a_certificate(
    tmp_path: Path,
) -> None:
    outcomes: list[bool] = []

    async def join(ca: Ca, token: str) -> None:
        try:
            check(ca, await ask(ca, request(), bearer(token)))
        except grpc.RpcError:
            outcomes.append(False)
        else:
            outcomes.append(True)

    config = make_config(tmp_path)
    async with running_ca(config) as first, running_ca(config) as second:
        token = first.join_token()
        async with trio.open_nursery() as nursery:
            for ca in (first, second) * 5:
                nursery.start_soon(join, ca, token)
    assert sorted(outcomes) == [False] * 9 + [True]


async def test_a_client_certificate_of_another_ca_is_refused_though_the_token_is_good(
    ca: Ca,
) -> None:
    stranger = make_root(now=real_now()).issue(str(WEB))
    code, _ = await refused(ca, request(), bearer(ca.token()), svid=stranger)
    assert code == "UNAVAILABLE"


async def test_tokens_of_a_configured_issuer_are_believed(tmp_path: Path) -> None:
    jwks = tmp_path / "keys.json"
    jwk = {**RSAAlgorithm.to_jwk(rsa_key().public_key(), as_dict=True), "kid": "k"}
    jwks.write_text(json.dumps({"keys": [jwk]}))
    exp = int(real_now().timestamp()) + 60
    config = make_config(tmp_path, jwks=jwks, jwks_issuer="https://issuer.test")
    async with running_ca(config) as ca:
        check(ca, await ask(ca, request(), bearer(sign_token(claims(exp=exp), rsa_key(), kid="k"))))
        check(ca, await ask(ca, request(), bearer(ca.token())))
        other = sign_token(claims(exp=exp, iss="https://other.test"), rsa_key(), kid="k")
        code, _ = await refused(ca, request(), bearer(other))
        assert code == "UNAUTHENTICATED"


async def test_an_issuer_is_discovered_over_https_and_its_new_keys_too(tmp_path: Path) -> None:
    exp = int(real_now().timestamp()) + 60
    with issuer_server(tmp_path) as issuer:
        document = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
        issuer.pages |= {DISCOVERY_PATH: document, "/keys": KEYS}
        config = make_config(
            tmp_path, oidc_issuer=issuer.url, issuer_ca=tmp_path / "issuer-root.pem"
        )
        async with running_ca(config) as ca:
            good = sign_token(claims(exp=exp, iss=issuer.url), rsa_key(), kid="k")
            check(ca, await ask(ca, request(), bearer(good)))
            other = sign_token(claims(exp=exp), rsa_key(), kid="k")
            code, _ = await refused(ca, request(), bearer(other))
            assert code == "UNAUTHENTICATED"


async def scrape(ca: Ca) -> str:
    async with httpx2.AsyncClient(trust_env=False) as client:
        return (await client.get(f"http://{ca.running.metrics}/metrics")).text


async def test_every_decision_is_in_the_audit_log_and_in_the_metrics(tmp_path: Path) -> None:
    config = make_config(tmp_path, metrics_listen=ANY_PORT)
    async with running_ca(config) as ca:
        good = bearer(ca.token())
        answer = await ask(ca, request(), good)
        await refused(ca, request(), bearer("junk"))
        await refused(ca, request(b"junk"), good)
        await refused(ca, request(ttl=10**9), good)
        text = await scrape(ca)
    (leaf,) = parse_certificates_pem(answer.cert_chain[0].encode())
    lines = [json.loads(line) for line in (config.state_dir / AUDIT_LOG).read_text().splitlines()]
    assert [(line["event"], line.get("reason")) for line in lines] == [
        ("issued", None),
        ("caller_refused", "caller_unknown"),
        ("certificate_refused", "csr_unreadable"),
        ("certificate_refused", "ttl_too_long"),
    ]
    assert lines[0]["serial"] == f"{leaf.serial_number:x}"
    assert lines[0]["not_after"] == leaf.not_valid_after_utc.isoformat()
    assert (lines[0]["identity"], lines[0]["authenticator"]) == (str(WEB), "own-token")
    assert lines[1]["why"]["own-token"].startswith("token_malformed: ")
    for sample in (
        "csr_count 4",
        "success_cert_issuance_count 1",
        "authentication_failure_count 1",
        'csr_sign_err_count{error="TTL_ERROR"} 1',
        "csr_parsing_err_count 1",
    ):
        assert f"citadel_server_{sample}\n" in text


async def test_no_certificate_leaves_without_its_line(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    async with running_ca(config) as ca:
        token = ca.join_token()
        log = config.state_dir / AUDIT_LOG
        log.unlink()
        log.mkdir()
        code, details = await refused(ca, request(), bearer(ca.token()))
        assert (code, details) == ("INTERNAL", "CSR signing error (CA_NOT_READY)")
        log.rmdir()
        check(ca, await ask(ca, request(), bearer(token)))


async def test_an_identity_that_asks_too_often_is_told_to_wait(tmp_path: Path) -> None:
    config = make_config(tmp_path, identity_rate_limit=Rate(per_second=0.01, burst=2))
    async with running_ca(config) as ca:
        good = bearer(ca.token())
        for _ in range(2):
            check(ca, await ask(ca, request(), good))
        assert await refused(ca, request(), good) == ("RESOURCE_EXHAUSTED", "too many requests")


async def test_a_plugged_in_ca_signs_and_its_chain_comes_along(tmp_path: Path) -> None:
    root = make_root("corporate root", now=real_now())
    signer = root.intermediate("region").intermediate("mesh")
    plug_in(tmp_path / "cacerts", signer, root)
    async with running_ca(make_config(tmp_path, ca_certs=tmp_path / "cacerts")) as ca:
        answer = await ask(ca, request(), bearer(ca.token()), root=root.pem)
    chain = [parse_certificates_pem(element.encode()) for element in answer.cert_chain]
    assert [*chain[1], *chain[2]] == list(signer.chain)
    assert chain[3] == (root.certificate,)
    path = [link for (link,) in chain[:3]]
    bundle = TrustBundle.of(CLUSTER, [root.certificate])
    assert verify_chain(path, {CLUSTER: bundle}, real_now()) == WEB
    assert not (tmp_path / "state" / ROOT_CERT).exists(), "no root of its own beside it"


async def test_a_plugged_in_ca_that_is_unsound_stops_the_start(tmp_path: Path) -> None:
    root = make_root(now=real_now())
    plug_in(tmp_path / "cacerts", root.intermediate(), make_root(now=real_now()))
    with pytest.raises(ConfigError, match="does not lead to"):
        await serve(make_config(tmp_path, ca_certs=tmp_path / "cacerts"), now=real_now)


async def issued(ca: Ca, root: bytes, svid: X509Svid | None = None) -> X509Svid:
    """Join with a token, or renew `svid` with itself."""
    key = new_key()
    metadata = bearer(ca.token()) if svid is None else []
    answer = await ask(ca, request(csr_pem(key)), metadata, root=root, svid=svid)
    return X509Svid(id=WEB, chain=parse_certificates_pem(answer.cert_chain[0].encode()), key=key)


async def taken_up(ca: Ca, step: Callable[[], object]) -> None:
    """Take a step, and wait until the CA works with it."""
    step()
    state = ca.config.state_dir
    with trio.fail_after(10):
        while {n.generation for n in running(state, real_now())} != {generation(state)}:  # noqa: ASYNC110 - files
            await trio.sleep(0.01)


async def test_the_root_is_replaced_while_workloads_renew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ca_keeper, "POLL_INTERVAL", 0.01)
    monkeypatch.setattr("ca.ledger.SETTLING", timedelta(0))
    async with running_ca(make_config(tmp_path)) as ca:
        old = ca.root
        svid = await issued(ca, old)
        state = ca.config.state_dir
        await taken_up(ca, lambda: prepare_root(state, real_now()))
        with pytest.raises(RotationTooEarly):
            activate_root(state, real_now())
        svid = await issued(ca, old, svid)
        await taken_up(ca, lambda: activate_root(state, real_now()))
        with pytest.raises(RotationTooEarly):
            retire_root(state, real_now())
        svid = await issued(ca, old, svid)
        await taken_up(ca, lambda: retire_root(state, real_now()))
        assert ca.root != old
        assert verify_chain(svid.chain, {CLUSTER: ca.roots}, real_now()) == WEB
        await issued(ca, ca.root, svid)
        assert (await refused(ca, request(), bearer(ca.token()), root=old))[0] == "UNAVAILABLE"


async def until_refused(ca: Ca, svid: X509Svid) -> None:
    with trio.fail_after(10):
        while True:
            try:
                await ask(ca, request(), svid=svid)
            except grpc.RpcError:
                return


async def test_a_revoked_certificate_renews_nothing_and_is_in_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ca_keeper, "POLL_INTERVAL", 0.01)
    async with running_ca(make_config(tmp_path)) as ca:
        svid = await issued(ca, ca.root)
        revoke_serial(ca.config.state_dir, svid.serial, real_now())
        await until_refused(ca, svid)
        message = request()
        message.metadata.fields[TAKES_REVOCATION_LISTS].bool_value = True
        answer = await ask(ca, message, bearer(ca.token()))
        bundle = TrustBundle.from_pem(CLUSTER, answer.cert_chain[-1].encode())
        assert bundle.revoked[0].serials == {svid.serial}
        with pytest.raises(PeerRevoked):
            verify_chain(svid.chain, {CLUSTER: bundle}, real_now())
        plain = await ask(ca, request(), bearer(ca.token()))
        assert "CRL" not in plain.cert_chain[-1], "not for those who did not ask"


async def test_a_revoked_identity_gets_nothing_until_that_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ca_keeper, "POLL_INTERVAL", 0.01)
    async with running_ca(make_config(tmp_path)) as ca:
        svid = await issued(ca, ca.root)
        assert len(revoke_identity(ca.config.state_dir, WEB, real_now())) == 1
        await until_refused(ca, svid)
        code, details = await refused(ca, request(), bearer(ca.token()))
        assert (code, details) == ("PERMISSION_DENIED", "the identity was revoked")
        restore_identity(ca.config.state_dir, WEB, real_now())
        with trio.fail_after(10):
            while True:
                try:
                    await issued(ca, ca.root)
                except grpc.RpcError:
                    continue
                break
        assert (await refused(ca, request(), svid=svid))[0] in {"UNAVAILABLE", "UNAUTHENTICATED"}


async def test_a_restart_keeps_root_and_tokens(tmp_path: Path) -> None:
    async with running_ca(make_config(tmp_path)) as ca:
        root, token = ca.root, ca.token()
    async with running_ca(make_config(tmp_path)) as ca:
        assert ca.root == root
        check(ca, await ask(ca, request(), bearer(token)))


async def test_two_cas_that_start_together_on_one_directory_are_one(tmp_path: Path) -> None:
    running: list[Running] = []

    async def start() -> None:
        running.append(await servers.start(partial(serve, make_config(tmp_path), now=real_now)))

    async with trio.open_nursery() as servers:
        async with trio.open_nursery() as starting:
            starting.start_soon(start)
            starting.start_soon(start)
        first, second = (Ca(make_config(tmp_path), one) for one in running)
        assert first.target != second.target
        token = first.token()
        for ca in (first, second):
            check(ca, await ask(ca, request(), bearer(token)))
        servers.cancel_scope.cancel()


async def test_many_clients_at_once(ca: Ca) -> None:
    """Ours, over one root and many connections."""
    metadata = bearer(ca.token())
    answers: list[IstioCertificateResponse] = []

    async def client() -> None:
        async with open_channel(partial(connect, ca), authority="localhost") as channel:
            answers.append(
                await channel.unary(CREATE_CERTIFICATE, request(), metadata=metadata, timeout=20)
            )

    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(client)
    serials = set()
    for answer in answers:
        check(ca, answer)
        serials.add(parse_certificates_pem(answer.cert_chain[0].encode())[0].serial_number)
    assert len(serials) == 30


async def connect(ca: Ca) -> TlsStream:
    address = ca.running.addresses[0]
    socket = await trio.open_tcp_stream(address.host, address.port)
    context = client_context({CLUSTER: ca.roots}, alpn=[b"h2"])
    stream = TlsStream(socket, context.session(real_now(), server_name="localhost"))
    await stream.do_handshake()
    return stream


async def test_our_own_client_knows_the_ca_by_its_spiffe_id(ca: Ca) -> None:
    stream = await connect(ca)
    assert stream.session.peer_id == ca.config.identity
    await trio.aclose_forcefully(stream)
    async with open_channel(partial(connect, ca), authority="localhost") as channel:
        with pytest.raises(GrpcError) as caught:
            await channel.unary(CREATE_CERTIFICATE, request(), timeout=10)
    assert caught.value.code is Status.UNAUTHENTICATED


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n", b""])
async def test_whoever_does_not_speak_tls_is_dropped_and_the_ca_lives(
    ca: Ca, greeting: bytes
) -> None:
    address = ca.running.addresses[0]
    stream = await trio.open_tcp_stream(address.host, address.port)
    async with stream:
        await stream.send_all(greeting)
        await stream.send_eof()
        with trio.fail_after(5):
            assert len(await stream.receive_some()) < 20, "an alert at most"
    check(ca, await ask(ca, request(), bearer(ca.token())))


async def test_a_port_in_use_is_said_plainly(ca: Ca, tmp_path: Path) -> None:
    config = make_config(tmp_path, listen=ca.running.addresses[0])
    with pytest.raises(ConfigError, match=f"cannot listen on {ca.target}: Address already in use"):
        await serve(config, now=real_now)


async def test_an_address_of_another_machine_is_said_plainly(tmp_path: Path) -> None:
    config = make_config(tmp_path, listen=Address(host="192.0.2.1", port=0))
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:0"):
        await serve(config, now=real_now)


async def test_a_bad_key_set_stops_the_start_before_anything_is_made(tmp_path: Path) -> None:
    bad = tmp_path / "keys.json"
    with pytest.raises(ConfigError, match=r"cannot read key set .*keys\.json"):
        await serve(make_config(tmp_path, jwks=bad), now=real_now)
    bad.write_text("{}")
    with pytest.raises(ConfigError, match='no list "keys"'):
        await serve(make_config(tmp_path, jwks=bad), now=real_now)
    assert not (tmp_path / "state").exists()


async def test_readiness_is_one_line_that_names_addresses_and_root(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with running_ca(make_config(tmp_path)) as ca:
            target = ca.target
    events = [line["event"] for line in logs]
    assert events == ["root created", "serving certificate issued", "ca ready"]
    assert logs[-1]["addresses"] == [target]
    assert logs[-1]["root_cert"] == str(tmp_path / "state" / ROOT_CERT)
    assert "PRIVATE" not in repr(logs)
