"""Bundle documents: what is read, what is left out, and what makes the whole invalid."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509 import Certificate
from hypothesis import given
from hypothesis import strategies as st

from mesh.bundle import InvalidBundle, TrustBundle
from mesh.bundle_document import (
    MAX_DOCUMENT,
    MAX_SEQUENCE,
    BundleDocument,
    parse_bundle,
    parse_bundle_map,
)
from mesh.spiffe import TrustDomain
from tests.pki import make_root

DOMAIN = TrustDomain("example.org")
OTHER = TrustDomain("other.test")
ONE = make_root("one").certificate
TWO = make_root("two").certificate
EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)


def b64(certificate: Certificate) -> str:
    return base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()


def root(certificate: Certificate, **members: object) -> dict[str, object]:
    return {"kty": "EC", "use": "x509-svid", "x5c": [b64(certificate)], **members}


def token_key(**members: object) -> dict[str, object]:
    public: dict[str, Any] = jwt.algorithms.ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True)
    return {**public, "use": "jwt-svid", "kid": "k1", **members}


def without(entry: dict[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in entry.items() if name not in names}


def read(*keys: object, **members: object) -> BundleDocument:
    return parse_bundle(DOMAIN, json.dumps({"keys": list(keys), **members}).encode())


def test_roots_and_token_keys_are_read() -> None:
    bundle = read(root(ONE), token_key(), root(TWO))
    assert bundle.trust_domain == DOMAIN
    assert bundle.roots == TrustBundle.of(DOMAIN, [ONE, TWO])
    assert bundle.jwt_keys == {"k1": EC_KEY.public_key()}
    assert bundle.sequence is None
    assert bundle.refresh_hint is None


def test_an_empty_set_is_valid_and_trusts_nothing() -> None:
    bundle = read()
    assert bundle.roots.authorities == ()
    assert bundle.jwt_keys == {}


def test_sequence_and_hint_are_read() -> None:
    bundle = read(spiffe_sequence=MAX_SEQUENCE, spiffe_refresh_hint=300)
    assert bundle.sequence == 2**64 - 1
    assert bundle.refresh_hint == timedelta(minutes=5)
    assert read(spiffe_sequence=0, spiffe_refresh_hint=0).refresh_hint == timedelta(0)


@pytest.mark.parametrize("name", ["spiffe_sequence", "spiffe_refresh_hint"])
@pytest.mark.parametrize("value", [-1, 1.5, "7", True, [7], 2**64, 10**400], ids=repr)
def test_sequence_and_hint_are_whole_numbers_in_range(name: str, value: object) -> None:
    with pytest.raises(InvalidBundle, match=name):
        read(**{name: value})


@pytest.mark.parametrize(
    "entry",
    [
        without(root(ONE), "use"),
        root(ONE, use="X509-SVID"),
        root(ONE, use="wit-svid"),
        root(ONE, use="sig"),
        root(ONE, use=["x509-svid"]),
        without(root(ONE), "kty"),
        root(ONE, kty="XYZ"),
        root(ONE, kty={"EC": 1}),
        without(root(ONE), "x5c"),
        root(ONE, x5c=[]),
        without(token_key(), "use"),
        token_key(use="JWT-SVID"),
        token_key(kty="oct", k="AAAA"),
    ],
    ids=lambda entry: f"{entry.get('kty')} {entry.get('use')} {len(entry)}",
)
def test_an_entry_that_is_not_understood_is_left_out_alone(entry: dict[str, object]) -> None:
    bundle = read(entry, root(TWO))
    assert bundle.roots.authorities == (TWO,)
    assert bundle.jwt_keys == {}


def test_of_several_certificates_in_an_entry_the_first_counts() -> None:
    assert read(root(ONE, x5c=[b64(ONE), b64(TWO)])).roots.authorities == (ONE,)


def test_unknown_members_and_a_superfluous_kid_are_ignored() -> None:
    bundle = read(root(ONE, kid="x", more=[1]), spiffe_future={"a": 1})
    assert bundle.roots.authorities == (ONE,)


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("a string", "key 0 of the bundle of example.org is not a JSON object"),
        (root(ONE, x5c="AAAA"), "is not a JSON array"),
        (root(ONE, x5c=[17]), "is not a JSON string"),
        (root(ONE, x5c=["AAAA"]), "not a base64 DER certificate"),
        (root(ONE, x5c=[b64(ONE).replace("M", "-", 1)]), "not a base64 DER certificate"),
        (root(ONE, x5c=[b64(ONE)[:80] + "\n" + b64(ONE)[80:]]), "not a base64 DER certificate"),
        (root(ONE, x5c=[ONE.public_bytes(serialization.Encoding.PEM).decode()]), "not a base64"),
        (without(token_key(), "kid"), "has no `kid`"),
        (token_key(kid=""), "has no `kid`"),
        (token_key(kid=7), "is not a JSON string"),
        (without(token_key(), "x"), "is not a public key"),
        (token_key(x="AAAA"), "is not a public key"),
        (token_key(crv="P-1"), "is not a public key"),
        (token_key(kty="RSA"), "is not a public key"),
        (token_key(kty="RSA", n=1, e=2), "is not a public key"),
        ({**jwt.algorithms.ECAlgorithm.to_jwk(EC_KEY, as_dict=True), "use": "jwt-svid",
          "kid": "k"}, "is a private key"),
    ],
)  # fmt: skip
def test_an_entry_that_is_malformed_makes_the_document_invalid(entry: object, fault: str) -> None:
    with pytest.raises(InvalidBundle) as refusal:
        read(entry, root(TWO))
    assert fault in str(refusal.value)


def test_two_keys_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidBundle, match="the `kid` 'k1' of another key"):
        read(token_key(), token_key())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b'{"keys": []} x', "is not JSON"),
        (b'{"keys": [NaN]}', "NaN is not a JSON number"),
        (b'{"keys": [], "x": -Infinity}', "is not a JSON number"),
        (b'\xff{"keys": []}', "is not JSON"),
        ('{"keys": []}'.encode("utf-16"), "is not JSON"),
        (b'\xef\xbb\xbf{"keys": []}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a":' * 100_000, "is not JSON"),
        (b'{"keys": [], "n": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b" " * (MAX_DOCUMENT + 1), "more than"),
        (b"[]", "is not a JSON object"),
        (b"null", "is not a JSON object"),
        (b"{}", "has no member `keys`"),
        (b'{"keys": null}', "is not a JSON array"),
        (b'{"keys": {}}', "is not a JSON array"),
        (b'{"keys": [], "keys": []}', "'keys' is there more than once"),
        (b'{"keys": [{"use": "a", "use": "b"}]}', "'use' is there more than once"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_what_is_no_key_set_is_refused(text: bytes, fault: str) -> None:
    with pytest.raises(InvalidBundle) as refusal:
        parse_bundle(DOMAIN, text)
    assert fault in str(refusal.value)


def test_a_document_is_read_back_as_it_was_written() -> None:
    bundle = BundleDocument(
        roots=TrustBundle.of(DOMAIN, [ONE, TWO]),
        jwt_keys={"a": EC_KEY.public_key(), "b": RSA_KEY.public_key()},
        sequence=12,
        refresh_hint=timedelta(minutes=5),
    )
    assert parse_bundle(DOMAIN, bundle.to_json()) == bundle
    written = json.loads(bundle.to_json())
    assert written["spiffe_sequence"] == 12
    assert written["spiffe_refresh_hint"] == 300
    first, *_, last = written["keys"]
    assert set(first) == {"use", "kty", "crv", "x", "y", "x5c"}
    assert "kid" not in first
    assert set(last) == {"use", "kid", "kty", "n", "e"}


def test_a_document_without_advice_gives_none() -> None:
    empty = BundleDocument(roots=TrustBundle.of(DOMAIN, []), jwt_keys={})
    assert json.loads(empty.to_json()) == {"keys": []}
    assert parse_bundle(DOMAIN, empty.to_json()) == empty


def test_a_root_whose_key_has_no_place_in_a_jwk_set_is_not_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Odd:
        def public_key(self) -> ed25519.Ed25519PublicKey:
            return ed25519.Ed25519PrivateKey.generate().public_key()

        def public_bytes(self, _encoding: object) -> bytes:
            return b""

    bundle = TrustBundle(trust_domain=DOMAIN, authorities=(Odd(),))  # type: ignore[arg-type]
    with pytest.raises(InvalidBundle, match="cannot be published"):
        BundleDocument(roots=bundle, jwt_keys={}).to_json()


# bundle maps -------------------------------------------------------------------------------


def test_a_map_keeps_trust_domains_apart_and_ignores_their_hints() -> None:
    text = json.dumps(
        {
            "trust_domains": {
                "example.org": {"keys": [root(ONE)], "spiffe_refresh_hint": 5},
                "other.test": {"keys": [root(TWO), token_key()], "spiffe_sequence": 3},
            }
        }
    ).encode()
    bundles = parse_bundle_map(text)
    assert list(bundles) == [DOMAIN, OTHER]
    assert bundles[DOMAIN].roots == TrustBundle.of(DOMAIN, [ONE])
    assert bundles[DOMAIN].refresh_hint is None
    assert bundles[OTHER].roots == TrustBundle.of(OTHER, [TWO])
    assert bundles[OTHER].sequence == 3
    assert set(bundles[OTHER].jwt_keys) == {"k1"}


def test_a_map_may_be_empty() -> None:
    assert parse_bundle_map(b'{"trust_domains": {}}') == {}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"trust_domains": {"a": {"keys": []}, "a": {"keys": []}}}', "'a' is there more than"),
        ('{"trust_domains": {"a": {"keys": []}, "\\u0061": {"keys": []}}}', "more than once"),
        ('{"trust_domains": {"A": {"keys": []}}}', "names no trust domain"),
        ('{"trust_domains": {"": {"keys": []}}}', "names no trust domain"),
        ('{"trust_domains": {"spiffe://a": {"keys": []}}}', "names no trust domain"),
        ('{"trust_domains": {"a": {}}}', "the bundle of a has no member `keys`"),
        ('{"trust_domains": {"a": []}}', "is not a JSON object"),
        ('{"trust_domains": []}', "is not a JSON object"),
        ('{"keys": []}', "has no member `trust_domains`"),
        ("[]", "is not a JSON object"),
        ("{", "the bundle map is not JSON"),
    ],
)
def test_what_is_no_map_is_refused(text: str, fault: str) -> None:
    with pytest.raises(InvalidBundle) as refusal:
        parse_bundle_map(text.encode())
    assert fault in str(refusal.value)


# whatever comes ----------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(["kty", "use", "x5c", "kid", "crv", "x", "y", "n", "e", "d", "k"]),
        st.sampled_from(
            ["EC", "RSA", "oct", "x509-svid", "jwt-svid", "P-256", "AQAB", "AAAA", "", b64(ONE)]
        )
        | JSON,
    )
)
def test_no_entry_is_a_crash(entry: dict[str, object]) -> None:
    try:
        bundle = read(entry)
    except InvalidBundle:
        return
    assert len(bundle.roots.authorities) + len(bundle.jwt_keys) <= 1


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_document_is_a_crash(text: bytes) -> None:
    for parse in (parse_bundle_map, lambda data: parse_bundle(DOMAIN, data)):
        try:
            parse(text)
        except InvalidBundle:
            continue
