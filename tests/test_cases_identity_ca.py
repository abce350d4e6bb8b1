"""Runs the CA's share of tests/cases/identity.yaml; the file's head documents its format."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from ca.authenticate import Authenticator, Caller, Presented, TokenAuthenticator, bearer_token
from ca.authority import Authority, TtlLimits
from ca.cacerts import PluggedInFiles, check_plugged_in
from ca.errors import (
    AuthenticationError,
    CertificateUnsound,
    Fault,
    NoCredential,
    PluggedInCaUnusable,
    SigningError,
)
from ca.jwks import token_key
from ca.root_bundle import safe_change
from ca.selfcheck import check_leaf
from ca.service import CertificateService
from ca.template import Signer
from ca.tokens import TrustedIssuer
from mesh.bundle import TrustBundle
from mesh.grpc import GrpcError, Peer, ServerCall
from mesh.protos.istio_ca_pb2 import IstioCertificateRequest
from mesh.spiffe import InvalidSpiffeId, SpiffeId, TrustDomain
from mesh.svid import parse_certificates_pem, private_key_pem
from tests.ca.case_templates import (
    EXTENDED,
    general_name,
    make_csr,
    make_leaf,
    snake,
    subject,
)
from tests.ca.workshop import LIMITS, csr_pem, rsa_key, sign_token
from tests.pki import NOW, key_usage, make_root, new_key
from tests.pki import Authority as Workshop

CASES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "cases" / "identity.yaml").read_text()
)["cases"]

Case = dict[str, Any]

UNCHECKED = {"id", "kind", "title", "profile", "source", "note", "expect", "also_ok", "policy"}
"""What no runner has to understand. Any other field that is not understood fails the case."""


def of_kind(kind: str) -> list[Any]:
    """Return the cases of a kind; policies for CSRs that this CA does not have are left out."""
    return [
        pytest.param(case, id=case["id"])
        for case in CASES
        if case["kind"] == kind and case.get("policy", "istio") == "istio"
    ]


def understand(case: Case, *fields: str) -> None:
    assert not set(case) - UNCHECKED - set(fields), "the case says more than this runner tests"


def judge(case: Case, outcome: str) -> bool:
    """Hold an outcome against the case; True if its further facts are due."""
    assert outcome in [case["expect"], *case.get("also_ok", ())], case["title"]
    return bool(outcome == case["expect"])


# csr ----------------------------------------------------------------------------------------


@dataclass
class Known:
    """Stands for whatever proved the callers' identity."""

    caller: Caller | None
    name: str = "case"

    async def authenticate(self, presented: Presented, now: object) -> Caller:
        if self.caller is None:
            raise NoCredential(f"nothing among {presented} at {now}")
        return self.caller


def make_ca(settings: dict[str, Any], trust_domain: TrustDomain) -> Authority:
    assert set(settings) <= {"default_ttl", "max_ttl", "signer_not_after", "trust_domain"}
    limits = TtlLimits(
        default=timedelta(seconds=settings.get("default_ttl", LIMITS.default.total_seconds())),
        maximum=timedelta(seconds=settings.get("max_ttl", LIMITS.maximum.total_seconds())),
    )
    key = new_key()
    ends = NOW + timedelta(seconds=settings.get("signer_not_after", 3650 * 86400))
    root = (
        x509.CertificateBuilder()
        .subject_name(subject([["O", "signer"]]))
        .issuer_name(subject([["O", "signer"]]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(min(NOW, ends) - timedelta(days=1))
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage("key_cert_sign"), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(
        signer=Signer(certificate=root, key=key),
        roots=TrustBundle.of(trust_domain, [root]),
        limits=limits,
    )


@pytest.mark.parametrize("case", of_kind("csr"))
async def test_csr(case: Case) -> None:
    understand(
        case, "caller", "csr", "ttl", "ca", "code", "message", "error_class", "issued", "want"
    )
    settings = case.get("ca", {})
    if settings.get("ready") is False:
        pytest.skip("a CA of ours that is not ready does not listen")
    try:
        caller = sole_caller(case["caller"])
    except InvalidSpiffeId:
        judge(case, "reject")  # our caller has one SPIFFE ID, and no type holds more
        return
    domain = TrustDomain("cluster.local") if caller is None else caller.identity.trust_domain
    authority = make_ca(settings, TrustDomain(settings.get("trust_domain", str(domain))))
    known: Authenticator = Known(caller)
    service = CertificateService(
        authority=lambda: authority, authenticators=(known,), now=lambda: NOW
    )
    request = IstioCertificateRequest(
        csr=make_csr(case["csr"]).decode(), validity_duration=case.get("ttl", 3600)
    )
    try:
        answer = await service.create_certificate(request, no_call())
    except GrpcError as error:
        if judge(case, "reject"):
            check_refusal(case, error)
        return
    if judge(case, "accept"):
        (leaf,) = parse_certificates_pem(answer.cert_chain[0].encode())
        check_issued_fields(case.get("issued", {}), leaf, authority.signer.certificate)


def sole_caller(identities: list[str] | None) -> Caller | None:
    if identities is None:
        return None
    if len(identities) != 1:
        raise InvalidSpiffeId("a caller has one identity")
    return Caller(identity=SpiffeId.parse(identities[0]), authenticator="case")


def no_call() -> ServerCall:
    """A call without metadata, as far as the service looks at it."""
    call = SimpleNamespace(
        metadata=SimpleNamespace(get_all=lambda _name: []),
        peer=Peer(address="127.0.0.1:1"),
    )
    return cast("ServerCall", call)


def check_refusal(case: Case, error: GrpcError) -> None:
    if "code" in case:
        assert error.code.name == snake(case["code"]).removeprefix("_").upper()
    if "message" in case:
        assert error.message == case["message"]
    if "error_class" in case:
        cause = error.__cause__
        assert isinstance(cause, SigningError)
        assert cause.fault is Fault(case["error_class"])


def check_issued_fields(
    want: dict[str, Any], leaf: x509.Certificate, signer: x509.Certificate
) -> None:
    lifetime = (leaf.not_valid_after_utc - NOW).total_seconds()
    backdate = (NOW - leaf.not_valid_before_utc).total_seconds()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    checks: dict[str, Callable[[Any], bool]] = {
        "san": lambda value: list(names.value) == [general_name(text) for text in value],
        "san_critical": lambda value: names.critical is value,
        "subject": lambda value: leaf.subject == subject(value),
        "ku": lambda value: usage == key_usage(*(snake(name) for name in value)),
        "eku": lambda value: set(extended) == {EXTENDED[name] for name in value},
        "ca": lambda value: (
            leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is value
        ),
        "lifetime": lambda value: abs(lifetime - value) <= 5,
        "backdate": lambda value: abs(backdate - value) <= 5,
        "lifetime_at_most": lambda value: lifetime <= value,
        "not_after": lambda value: (
            value == "signer.not_after" and leaf.not_valid_after_utc == signer.not_valid_after_utc
        ),
    }
    for field, value in want.items():
        assert checks[field](value), (field, value)


# svid_issued --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", of_kind("svid_issued"))
def test_svid_issued(case: Case) -> None:
    understand(case, "expected_id", "cert")
    try:
        check_leaf(make_leaf(case["cert"]), expected=SpiffeId.parse(case["expected_id"]), now=NOW)
    except CertificateUnsound:
        judge(case, "reject")
    else:
        judge(case, "accept")


# cert_chain_response ------------------------------------------------------------------------


@pytest.mark.parametrize("case", of_kind("cert_chain_response"))
def test_cert_chain_response(case: Case) -> None:
    understand(case, "chain_pem", "root_pem", "want")
    roots = {name: make_root(name) for name in case["root_pem"]}
    signer: Workshop = next(iter(roots.values()))
    named = {name: root.certificate for name, root in roots.items()}
    intermediates: list[x509.Certificate] = []
    for name in reversed(case["chain_pem"]):
        signer = signer.intermediate(name)
        named[name] = signer.certificate
        intermediates.insert(0, signer.certificate)
    domain = TrustDomain("cluster.local")
    authority = Authority(
        signer=Signer(certificate=signer.certificate, key=signer.key),
        intermediates=tuple(intermediates),
        roots=TrustBundle.of(domain, [root.certificate for root in roots.values()]),
        limits=LIMITS,
    )
    caller = Caller(identity=SpiffeId(domain, "/ns/a/sa/b"), authenticator="case")
    issued = authority.sign(caller, csr_pem(), 60, NOW)
    named["L"] = issued.certificate
    answer = [list(parse_certificates_pem(element.encode())) for element in issued.elements]
    assert answer == [[named[name] for name in element] for element in case["want"]]


# bearer_extract -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", of_kind("bearer_extract"))
def test_bearer_extract(case: Case) -> None:
    understand(case, "metadata", "want")
    values = (case["metadata"] or {}).get("authorization", [])
    try:
        token = bearer_token([values] if isinstance(values, str) else values)
    except NoCredential:
        judge(case, "reject")
        return
    if judge(case, "accept"):
        assert token == case.get("want", token)


# ca_token -----------------------------------------------------------------------------------

ISSUER = "https://issuer.example.com"


@pytest.mark.parametrize("case", of_kind("ca_token"))
async def test_ca_token(case: Case) -> None:
    understand(case, "token", "want", "code")
    authenticator = TokenAuthenticator(
        name="jwks",
        issuer=TrustedIssuer(
            keys=(token_key(rsa_key().public_key(), "jwks_key"),),
            issuer=ISSUER,
            audiences=frozenset({"istio-ca"}),
        ),
        trust_domain=TrustDomain("cluster.local"),
    )
    presented = Presented(authorization=[f"Bearer {make_token(case['token'])}"])
    try:
        caller = await authenticator.authenticate(presented, NOW)
    except AuthenticationError:
        judge(case, "reject")
        return
    if judge(case, "accept"):
        want = case.get("want", {})
        assert set(want) <= {"identity"}
        assert str(caller.identity) == want.get("identity", str(caller.identity))


def make_token(fields: dict[str, Any]) -> str:
    if "raw" in fields:
        return cast("str", fields["raw"])
    claims = dict(fields)
    algorithm, key = claims.pop("alg", "RS256"), claims.pop("key", "jwks_key")
    headers = {"kid": claims.pop("kid")} if "kid" in claims else {}
    for name in ("exp", "nbf", "iat"):
        if isinstance(claims.get(name), int | float) and not isinstance(claims[name], bool):
            claims[name] += int(NOW.timestamp())
    if claims.get("iss") == "<configured>":
        claims["iss"] = ISSUER
    if algorithm == "none" or algorithm.startswith("HS"):
        return keyless_token({"alg": algorithm, **headers}, claims, key)
    return sign_token(claims, signing_key(key), algorithm, **headers)


def signing_key(key: str) -> rsa.RSAPrivateKey:
    """`jwks_key` is the issuer's; any other name is a key that the issuer does not have."""
    return rsa_key() if key == "jwks_key" else rsa.generate_private_key(65537, 2048)


def keyless_token(header: dict[str, Any], claims: dict[str, Any], key: str) -> str:
    unsigned = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in (header, claims)
    )
    if key != "hmac:rsa_public_pem":
        return unsigned + "."
    secret = (
        rsa_key()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    mac = hmac.new(secret, unsigned.encode(), hashlib.sha256).digest()
    return unsigned + "." + base64.urlsafe_b64encode(mac).rstrip(b"=").decode()


# root_bundle_update, plugin_ca -------------------------------------------------------------------


@pytest.mark.parametrize("case", of_kind("root_bundle_update"))
def test_root_bundle_update(case: Case) -> None:
    understand(case, "current", "new")
    names = sorted({*case["current"], *case["new"]})
    roots = {name: make_root(name).certificate for name in names}
    current, new = ([roots[name] for name in case[field]] for field in ("current", "new"))
    judge(case, str(safe_change(current, new)).lower())


@pytest.mark.parametrize("case", of_kind("plugin_ca"))
def test_plugin_ca(case: Case) -> None:
    understand(case, "files")
    root = make_root("root")
    ours = {"root": root, "int": root.intermediate("int"), "root2": make_root("root2")}
    wanted = case["files"]
    assert set(filter(None, wanted.values())) <= set(ours)
    files = PluggedInFiles(
        cert=ours[wanted["cert"]].pem,
        key=private_key_pem(ours[wanted["key"]].key),
        chain=None if wanted["chain"] is None else ours[wanted["chain"]].pem,
        root=ours[wanted["root"]].pem,
    )
    try:
        check_plugged_in(files, TrustDomain("cluster.local"), NOW)
    except PluggedInCaUnusable:
        judge(case, "reject")
    else:
        judge(case, "accept")
