from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.struct_pb2 import Struct
from structlog.testing import capture_logs

from ca.authenticate import Caller, Presented, TokenAuthenticator
from ca.jwks import token_key
from ca.service import CertificateService
from ca.tokens import TrustedIssuer, create_token, own_issuer
from mesh.grpc import GrpcError, Peer, ServerCall, Status
from mesh.protos.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from mesh.spiffe import ServiceAccount
from mesh.svid import leaf_id, parse_certificates_pem
from tests.ca.workshop import CLUSTER, WEB, claims, csr_pem, make_authority, rsa_key, sign_token
from tests.pki import NOW, new_key

KEY = new_key()
AUTHORITY = make_authority()
SERVICE = CertificateService(
    authority=lambda: AUTHORITY,
    authenticators=(
        TokenAuthenticator(
            name="own-token",
            issuer=own_issuer(KEY.public_key(), ["istio-ca"]),
            trust_domain=CLUSTER,
        ),
        TokenAuthenticator(
            name="jwks",
            issuer=TrustedIssuer(
                keys=(token_key(rsa_key().public_key(), "k"),),
                issuer="https://issuer.test",
                audiences=frozenset({"istio-ca"}),
            ),
            trust_domain=CLUSTER,
        ),
    ),
    now=lambda: NOW,
)


def own_token(ttl: timedelta = timedelta(hours=1)) -> str:
    account = ServiceAccount("foo", "web")
    return create_token(KEY, account, audience="istio-ca", ttl=ttl, now=NOW)


def bearer(token: str) -> list[str]:
    return [f"Bearer {token}"]


async def ask(
    request: IstioCertificateRequest,
    authorization: list[str] | None = None,
    service: CertificateService = SERVICE,
) -> IstioCertificateResponse:
    values = bearer(own_token()) if authorization is None else authorization
    call = SimpleNamespace(
        metadata=SimpleNamespace(get_all={"authorization": values}.__getitem__),
        peer=Peer(address="10.0.0.9:4711"),
    )
    return await service.create_certificate(request, cast("ServerCall", call))


def request(csr: bytes | None = None, ttl: int = 3600, **metadata: Any) -> IstioCertificateRequest:
    fields = Struct()
    fields.update(metadata)
    return IstioCertificateRequest(
        csr=(csr or csr_pem()).decode(), validity_duration=ttl, metadata=fields
    )


async def refused(
    message: IstioCertificateRequest, authorization: list[str] | None = None
) -> tuple[GrpcError, dict[str, Any]]:
    """Return the refusal and its one log line."""
    with capture_logs() as logs, pytest.raises(GrpcError) as caught:
        await ask(message, authorization)
    (line,) = logs
    return caught.value, dict(line)


async def test_a_certificate_for_the_caller_and_one_line_about_it() -> None:
    with capture_logs() as logs:
        answer = await ask(request())
    (leaf,) = parse_certificates_pem(answer.cert_chain[0].encode())
    assert leaf_id(leaf) == WEB
    assert len(answer.cert_chain) == 2
    (line,) = logs
    assert line["event"] == "certificate issued"
    assert line["identity"] == str(WEB)
    assert line["authenticator"] == "own-token"
    assert line["serial"] == f"{leaf.serial_number:x}"
    assert line["not_after"] == "2026-06-01T13:00:00+00:00"
    assert line["peer"] == "10.0.0.9:4711"


async def test_the_second_authenticator_is_asked_too() -> None:
    token = sign_token(claims(), rsa_key(), kid="k")
    with capture_logs() as logs:
        await ask(request(), bearer(token))
    assert logs[0]["authenticator"] == "jwks"


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param([], id="nothing"),
        pytest.param(["Basic Zm9vOmJhcg=="], id="basic"),
        pytest.param(bearer("opaque"), id="opaque"),
        pytest.param(bearer(own_token(timedelta(0))), id="expired"),
        pytest.param(bearer(sign_token(claims(aud="vault"), rsa_key(), kid="k")), id="audience"),
        pytest.param(bearer(sign_token(claims(sub="root"), rsa_key(), kid="k")), id="subject"),
    ],
)
async def test_whoever_is_not_known_is_told_nothing(authorization: list[str]) -> None:
    error, line = await refused(request(), authorization)
    assert error.code is Status.UNAUTHENTICATED
    assert error.message == "request authenticate failure"
    assert line["event"] == "caller refused"
    assert line["peer"] == "10.0.0.9:4711"
    assert set(line["why"]) == {"own-token", "jwks"}


async def test_the_log_says_why_by_authenticator_and_holds_no_token() -> None:
    token = own_token(timedelta(0))
    _, line = await refused(request(), bearer(token))
    assert line["why"]["own-token"].startswith("token_expired: the token expired 0 s ago")
    assert line["why"]["jwks"].startswith("token_key_unknown: ")
    assert not any(part in repr(line) for part in token.split("."))


async def test_nobody_is_told_what_is_wrong_with_the_request_before_being_known() -> None:
    error, _ = await refused(request(b"garbage"), [])
    assert error.code is Status.UNAUTHENTICATED


@pytest.mark.parametrize(
    "value",
    ["spiffe://cluster.local/ns/foo/sa/web", "junk", 7, True, {"a": "b"}, ["x"], {}, 0, False],
)
async def test_impersonation_is_refused(value: object) -> None:
    error, line = await refused(request(ImpersonatedIdentity=value))
    assert error.code is Status.UNAUTHENTICATED
    assert error.message == "request impersonation authentication failure"
    assert line["event"] == "impersonation refused"
    assert line["identity"] == str(WEB)


DB = "spiffe://cluster.local/ns/foo/sa/db"
NODE = replace(SERVICE, trusted_nodes=frozenset({ServiceAccount("foo", "web")}))


async def test_a_trusted_node_gets_the_certificates_of_its_workloads() -> None:
    answer = await ask(request(ImpersonatedIdentity=DB), service=NODE)
    assert str(leaf_id(parse_certificates_pem(answer.cert_chain[0].encode())[0])) == DB


@pytest.mark.parametrize(
    "value",
    ["spiffe://other/ns/foo/sa/db", "spiffe://cluster.local/ns/istio-system/sa/istiod", "junk"],
)
async def test_what_a_trusted_node_does_not_get(value: str) -> None:
    with pytest.raises(GrpcError) as caught:
        await ask(request(ImpersonatedIdentity=value), service=NODE)
    assert caught.value.code is Status.UNAUTHENTICATED


async def test_a_node_that_is_revoked_acts_for_nobody() -> None:
    revocations = AUTHORITY.revocations.revoke_identity(WEB, NOW)
    revoked = replace(AUTHORITY, revocations=revocations)
    with pytest.raises(GrpcError) as caught:
        await ask(
            request(ImpersonatedIdentity=DB), service=replace(NODE, authority=lambda: revoked)
        )
    assert caught.value.code is Status.UNAUTHENTICATED


@pytest.mark.parametrize(
    "metadata",
    [
        {"ImpersonatedIdentity": ""},
        {"ImpersonatedIdentity": None},
        {"CertSigner": "example.com/signer"},
        {"impersonatedidentity": "x"},
        {},
    ],
)
async def test_other_metadata_changes_nothing(metadata: dict[str, Any]) -> None:
    assert len((await ask(request(**metadata))).cert_chain) == 2


async def test_an_unset_impersonation_value_is_none() -> None:
    message = request()
    message.metadata.fields["ImpersonatedIdentity"].Clear()
    assert len((await ask(message)).cert_chain) == 2


async def test_a_bad_request_is_answered_with_what_is_wrong_with_it() -> None:
    error, line = await refused(request(csr_pem(rsa_key(1024))))
    assert error.code is Status.INVALID_ARGUMENT
    assert error.message.startswith("CSR signing error (CSR_ERROR: the RSA key has 1024 bits")
    assert line["event"] == "certificate refused"
    assert line["reason"] == "csr_key_refused"
    assert line["identity"] == str(WEB)


async def test_a_join_token_opens_no_stream() -> None:
    async def spend() -> None:
        raise AssertionError("nothing is given for it")

    class Joined:
        name = "join-token"

        async def authenticate(self, presented: Presented, now: datetime) -> Caller:
            assert (list(presented.authorization), now) == ([], NOW)
            return Caller(identity=WEB, authenticator=self.name, spend=spend)

    service = CertificateService(
        authority=lambda: AUTHORITY, authenticators=(Joined(),), now=lambda: NOW
    )
    call = SimpleNamespace(
        metadata=SimpleNamespace(get_all=lambda _name: []), peer=Peer(address="10.0.0.9:4711")
    )
    assert (await service.identify(cast("ServerCall", call))).identity == WEB
    with pytest.raises(GrpcError) as caught:
        await service.identify_for_stream(cast("ServerCall", call))
    assert caught.value.code is Status.UNAUTHENTICATED


async def test_too_long_a_life_is_an_invalid_argument() -> None:
    error, line = await refused(request(ttl=2**62))
    assert error.code is Status.INVALID_ARGUMENT
    assert error.message.startswith("CSR signing error (TTL_ERROR: ")
    assert line["reason"] == "ttl_too_long"


async def test_what_is_wrong_with_the_ca_is_not_told() -> None:
    short = make_authority(life=timedelta(seconds=1))
    service = CertificateService(
        authority=lambda: short,
        authenticators=SERVICE.authenticators,
        now=lambda: NOW + timedelta(seconds=2),
    )
    with capture_logs() as logs, pytest.raises(GrpcError) as caught:
        await ask(request(), service=service)
    assert caught.value.code is Status.INTERNAL
    assert caught.value.message == "CSR signing error (CERT_GEN_ERROR)"
    assert logs[0]["reason"] == "signer_not_valid"
    assert "expired" in logs[0]["why"]
