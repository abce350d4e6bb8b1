"""Runs the cases about identities, SVIDs and bundles that mesh/ answers.

tests/cases/identity.yaml is a sample whose head documents the format; identity_more.yaml holds
cases of our own in the same format, for kinds and corners that the sample leaves out.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from ca.errors import CertificateUnsound
from ca.selfcheck import check_authority
from mesh.bundle import InvalidBundle, TrustBundle
from mesh.bundle_document import BundleDocument, parse_bundle, parse_bundle_map
from mesh.errors import ConfigError
from mesh.jwt_svid import InvalidJwtSvid, verify_jwt_svid
from mesh.policy.trust_domains import TrustDomains
from mesh.spiffe import (
    InvalidSpiffeId,
    ServiceAccount,
    SpiffeId,
    TrustDomain,
    service_account_id,
)
from mesh.svid import InvalidSvid, X509Svid, certificates_pem
from mesh.verify import PeerRejected, verify_chain
from mesh.workload_endpoint import parse_endpoint
from tests.identity_certificates import Chain, Key
from tests.pki import NOW, make_root

Case = dict[str, Any]

FOLDER = Path(__file__).parent / "cases"
CASES: list[Case] = [
    case
    for name in ("identity.yaml", "identity_more.yaml")
    for case in yaml.safe_load((FOLDER / name).read_text())["cases"]
]

UNCHECKED = {"id", "kind", "title", "profile", "source", "note", "expect", "also_ok", "policy"}
"""What no runner has to understand. Any other field that is not understood fails the case."""


def of_kind(*kinds: str) -> Callable[[Any], Any]:
    cases = [pytest.param(case, id=case["id"]) for case in CASES if case["kind"] in kinds]
    return pytest.mark.parametrize("case", cases)


def understand(case: Case, *fields: str) -> None:
    strange = set(case) - UNCHECKED - set(fields)
    assert not strange, f"the case says more than this runner tests: {strange}"


def judge(case: Case, outcome: str) -> bool:
    """Hold an outcome against the case; True if its further facts are due."""
    assert outcome in [case["expect"], *case.get("also_ok", ())], case["title"]
    return bool(outcome == case["expect"])


def text_of(case: Case) -> str:
    if "input_repeat" in case:
        repeat = case["input_repeat"]
        middle = repeat["char"] * repeat["count"]
        return f"{repeat.get('prefix', '')}{middle}{repeat.get('suffix', '')}"
    return str(case["input"])


def answer(case: Case, make: Callable[[], object]) -> Any:
    """Return what `make` makes; None if that is a refusal, or no fact about it is due."""
    try:
        made = make()
    except (InvalidSpiffeId, InvalidSvid, PeerRejected, InvalidBundle, ConfigError):
        judge(case, "reject")
        return None
    return made if judge(case, "accept") else None


def check(case: Case, facts: dict[str, object]) -> None:
    want = case.get("want") or {}
    assert set(want) <= set(facts), "the case wants more than this runner tests"
    assert want == {name: facts[name] for name in want}


# identities --------------------------------------------------------------------------------


@of_kind("spiffe_id", "spiffe_id_build")
def test_spiffe_id(case: Case) -> None:
    understand(case, "input", "input_repeat", "want", "normalized")
    text = text_of(case)
    identity: SpiffeId | None = answer(case, lambda: SpiffeId.parse(text))
    if identity is not None:
        assert str(identity) == text, "nothing is normalised"
        check(case, {"trust_domain": str(identity.trust_domain), "path": identity.path})


@of_kind("spiffe_id_sweep")
def test_spiffe_id_sweep(case: Case) -> None:
    understand(case, "template", "skip", "allowed", "normalize_ok")
    skipped = {point_of(item) for item in case.get("skip") or ()}
    allowed = {point_of(item) for item in case["allowed"]}
    for point in set(range(256)) - skipped:
        text = case["template"].replace("{c}", chr(point))
        try:
            identity = SpiffeId.parse(text)
        except InvalidSpiffeId:
            assert point not in allowed, repr(text)
        else:
            assert point in allowed, repr(text)
            assert str(identity) == text


def point_of(item: int | str) -> int:
    return item if isinstance(item, int) else ord(item)


@of_kind("spiffe_id_equal")
def test_spiffe_id_equal(case: Case) -> None:
    understand(case, "a", "b")
    try:
        equal = SpiffeId.parse(case["a"]) == SpiffeId.parse(case["b"])
    except InvalidSpiffeId:
        judge(case, "reject" if "reject" in [case["expect"], *case.get("also_ok", ())] else "false")
        return
    judge(case, str(equal).lower())


@of_kind("spiffe_id_member")
def test_spiffe_id_member(case: Case) -> None:
    understand(case, "id_str", "trust_domain")
    member = SpiffeId.parse(case["id_str"]).member_of(TrustDomain(case["trust_domain"]))
    judge(case, str(member).lower())


@of_kind("spiffe_id_from_segments")
def test_spiffe_id_from_segments(case: Case) -> None:
    understand(case, "trust_domain", "segments", "want", "want_id")
    identity: SpiffeId | None = answer(
        case,
        lambda: SpiffeId.from_segments(TrustDomain(case["trust_domain"]), *case["segments"]),
    )
    if identity is not None and isinstance(case.get("want"), str):
        assert str(identity) == case["want"]
    elif identity is not None:
        check(
            case,
            {
                "trust_domain": str(identity.trust_domain),
                "path": identity.path,
                "id": str(identity),
            },
        )


@of_kind("trust_domain")
def test_trust_domain(case: Case) -> None:
    understand(case, "input", "input_repeat", "want", "normalized")
    domain: TrustDomain | None = answer(case, lambda: TrustDomain.parse(text_of(case)))
    if domain is not None:
        check(case, {"trust_domain": str(domain), "id": domain.id})


@of_kind("istio_identity")
def test_istio_identity(case: Case) -> None:
    understand(case, "input", "input_repeat", "want")

    def parse() -> tuple[SpiffeId, ServiceAccount]:
        identity = SpiffeId.parse(text_of(case))
        if identity.service_account is None:
            raise InvalidSpiffeId(f"{identity} is not of a service account")
        return identity, identity.service_account

    found: tuple[SpiffeId, ServiceAccount] | None = answer(case, parse)
    if found is not None:
        identity, account = found
        names = {"ns": account.namespace, "namespace": account.namespace}
        names |= {"sa": account.name, "service_account": account.name}
        check(case, {"trust_domain": str(identity.trust_domain), **names})


@of_kind("istio_uri")
def test_istio_uri(case: Case) -> None:
    understand(case, "trust_domain", "ns", "namespace", "sa", "service_account", "want")

    def make() -> SpiffeId:
        namespace = case["ns"] if "ns" in case else case["namespace"]
        name = case["sa"] if "sa" in case else case["service_account"]
        domain = TrustDomain(case["trust_domain"])
        return service_account_id(domain, ServiceAccount(namespace, name))

    identity: SpiffeId | None = answer(case, make)
    if identity is not None and "want" in case:
        want = case["want"]
        assert str(identity) == (want if isinstance(want, str) else want["id"])


@of_kind("expand_trust_domains")
def test_expand_trust_domains(case: Case) -> None:
    understand(case, "identities", "aliases", "trust_domain", "want")
    names = [case["trust_domain"]] if "trust_domain" in case else []
    domains = TrustDomains((*names, *case["aliases"]))
    assert set(domains.expand_identities(case["identities"])) == set(case["want"])


@of_kind("endpoint_address")
def test_endpoint_address(case: Case) -> None:
    understand(case, "input", "want")
    answer(case, lambda: parse_endpoint(text_of(case)))


# SVIDs -------------------------------------------------------------------------------------


def key_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def input_of(text: str, certificates: bytes, key: bytes) -> bytes:
    """Return what a file holds that is not simply what it should hold."""
    kind, _, rest = text.partition(":")
    if kind == "text":
        return rest.encode()
    files = {"certs": certificates, "chain": certificates, "key": key, "empty": b""}
    files |= {"both": key + certificates, "none": b""}
    return files[text]


def key_of(case: Case, chain: Chain) -> bytes:
    if isinstance(case.get("key"), str) and case["key"] != "leaf":
        other = make_other_key(case["key"])
        return key_pem(other)
    return b"" if chain.leaf is None else key_pem(chain.leaf.key)


def make_other_key(kind: str) -> Key:
    if kind.startswith("ed25519"):
        return ed25519.Ed25519PrivateKey.generate()
    size = kind if ":" in kind else "ec:p256"
    made = Chain([{"t": "ca", "key": size}]).leaf
    assert made is not None
    return made.key


@of_kind("svid_parse")
def test_svid_parse(case: Case) -> None:
    understand(case, "chain", "cert_input", "key_input", "key", "want")
    chain = Chain(case["chain"])
    certificates = certificates_pem(chain.certificates)
    key = key_of(case, chain)
    chain_file = input_of(case.get("cert_input") or "certs", certificates, key)
    key_file = input_of(case.get("key_input") or "key", certificates, key)
    svid: X509Svid | None = answer(case, lambda: X509Svid.parse_pem(chain_file, key_file))
    if svid is not None:
        check(
            case,
            {
                "id": str(svid.id),
                "certificates": len(svid.chain),
                "chain_length": len(svid.chain),
            },
        )


@of_kind("svid_verify")
def test_svid_verify(case: Case) -> None:
    understand(case, "chain", "bundles", "at", "want")
    chain = Chain(case["chain"])
    bundles = {}
    for name, roots in case["bundles"].items():
        domain = TrustDomain(name)
        authorities = [chain.named(root.removesuffix("_cert")).certificate for root in roots]
        bundles[domain] = TrustBundle.of(domain, authorities)
    now = NOW + timedelta(seconds=case.get("at") or 0)
    identity = answer(case, lambda: verify_chain(chain.certificates, bundles, now))
    if identity is not None:
        check(case, {"id": str(identity), "trust_domain": str(identity.trust_domain)})


@of_kind("ca_cert")
def test_ca_cert(case: Case) -> None:
    understand(case, "cert", "trust_domain", "expected_id")
    (certificate,) = Chain([{"t": "ca", **case["cert"]}]).certificates
    domain = TrustDomain.parse(case.get("trust_domain") or case.get("expected_id") or "example.org")
    try:
        check_authority(certificate, trust_domain=domain, now=NOW)
    except CertificateUnsound:
        judge(case, "reject")
    else:
        judge(case, "accept")


# bundles -----------------------------------------------------------------------------------

CERTIFICATES = {name: make_root(name).certificate for name in ("CERT1", "CERT2")}


def document_of(case: Case) -> bytes:
    """Return the JSON document of a case, given as text or as YAML, with certificates filled in."""
    (field,) = set(case) & {"input", "document", "json", "bundle", "raw"}
    document = case[field]
    text = document if isinstance(document, str) else json.dumps(document)
    for name, certificate in CERTIFICATES.items():
        der = certificate.public_bytes(serialization.Encoding.DER)
        text = text.replace(name, base64.b64encode(der).decode())
    return text.encode()


def facts_of(bundle: BundleDocument) -> dict[str, object]:
    hint = bundle.refresh_hint
    names = {certificate: name for name, certificate in CERTIFICATES.items()}
    return {
        "x509_authorities": len(bundle.roots.authorities),
        "x509": [names[authority] for authority in bundle.roots.authorities],
        "jwt_authorities": len(bundle.jwt_keys),
        "jwt_keys": sorted(bundle.jwt_keys),
        "sequence": bundle.sequence,
        "refresh_hint": None if hint is None else int(hint.total_seconds()),
    }


DOCUMENT = ("input", "document", "json", "bundle", "raw")


@of_kind("bundle")
def test_bundle(case: Case) -> None:
    understand(case, *DOCUMENT, "trust_domain", "want")
    domain = TrustDomain(case.get("trust_domain", "example.org"))
    bundle: BundleDocument | None = answer(case, lambda: parse_bundle(domain, document_of(case)))
    if bundle is not None:
        check(case, facts_of(bundle))


@of_kind("bundle_map")
def test_bundle_map(case: Case) -> None:
    understand(case, *DOCUMENT, "want")
    bundles = answer(case, lambda: parse_bundle_map(document_of(case)))
    if bundles is not None:
        check(case, {"trust_domains": sorted(str(domain) for domain in bundles)})


# JWT-SVIDs ---------------------------------------------------------------------------------


@functools.cache
def jwt_key(name: str) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    """Return the key of that name: `k-ALG` fits its algorithm, any other is P-256."""
    family, _, bits = name.removeprefix("k-").partition("S")
    if name.startswith("k-") and family in {"R", "P"}:
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    curve = {"384": ec.SECP384R1(), "512": ec.SECP521R1()}.get(bits, ec.SECP256R1())
    return ec.generate_private_key(curve)


PUBLISHED = [f"k-{family}S{bits}" for family in "REP" for bits in (256, 384, 512)]


def token_of(fields: dict[str, Any]) -> str:
    claims: dict[str, Any] = {name: fields[name] for name in ("sub", "aud") if name in fields}
    for name in {"exp", "nbf", "iat"} & set(fields):
        claims[name] = int(NOW.timestamp()) + fields[name]
    headers: dict[str, Any] = {"typ": fields.get("typ")}
    headers |= {"kid": fields["kid"]} if "kid" in fields else {}
    key = jwt_key(fields.get("key") or fields.get("kid") or "authority1")
    return jwt.encode(claims, key, algorithm=fields["alg"], headers=headers)


@of_kind("jwt_svid")
def test_jwt_svid(case: Case) -> None:
    understand(case, "token", "expected_audience", "bundles", "want")
    strange = set(case["token"]) - {"alg", "kid", "typ", "key", "sub", "aud", "exp", "nbf", "iat"}
    assert not strange, "the token says more than this runner makes"
    keys = {
        TrustDomain(domain): {name: jwt_key(name).public_key() for name in (*names, *PUBLISHED)}
        for domain, names in case["bundles"].items()
    }
    token = token_of(case["token"])
    try:
        svid = verify_jwt_svid(token, keys, case["expected_audience"], NOW)
    except InvalidJwtSvid:
        judge(case, "reject")
        return
    if judge(case, "accept"):
        check(case, {"id": str(svid.id), "sub": str(svid.id)})
