from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from mesh.jwt_svid import InvalidJwtSvid, check_issued_claims, sign_jwt_svid, verify_jwt_svid
from mesh.spiffe import SpiffeId, TrustDomain
from tests.pki import NOW, new_key

WEB = SpiffeId.parse("spiffe://example.org/web")
DOMAIN, OTHER = TrustDomain("example.org"), TrustDomain("other.org")
KEY, OTHER_KEY = new_key(), new_key()
KEYS = {DOMAIN: {"k": KEY.public_key()}, OTHER: {"o": OTHER_KEY.public_key()}}


def token(
    *, header: dict[str, Any] | None = None, key: Any = KEY, alg: str = "ES256", **claims: Any
) -> str:
    now = int(NOW.timestamp())
    facts = {"sub": str(WEB), "aud": ["a"], "exp": now + 60, "iat": now} | claims
    facts = {name: value for name, value in facts.items() if value is not None}
    return jwt.encode(facts, key, algorithm=alg, headers={"kid": "k"} | (header or {}))


def verify(text: str, *audiences: str) -> SpiffeId:
    return verify_jwt_svid(text, KEYS, audiences or ("a",), NOW).id


def test_what_is_signed_is_accepted() -> None:
    svid = sign_jwt_svid(
        KEY, "k", identity=WEB, audiences=["a", "b"], ttl=timedelta(minutes=5), now=NOW
    )
    seen = verify_jwt_svid(svid.token, KEYS, ["b"], NOW)
    assert seen.id == WEB
    assert seen.audiences == ("a", "b")
    assert seen.expires == NOW + timedelta(minutes=5)
    assert svid.token not in repr(svid)


def test_only_the_members_that_the_standard_has_are_in_the_header() -> None:
    svid = sign_jwt_svid(KEY, "k", identity=WEB, audiences=["a"], ttl=timedelta(60), now=NOW)
    assert set(jwt.get_unverified_header(svid.token)) == {"alg", "kid", "typ"}


@pytest.mark.parametrize("audiences", [[], [""], ["a", ""]])
def test_no_token_for_nobody(audiences: list[str]) -> None:
    with pytest.raises(InvalidJwtSvid, match="aud"):
        sign_jwt_svid(KEY, "k", identity=WEB, audiences=audiences, ttl=timedelta(60), now=NOW)


def test_no_token_for_a_trust_domain() -> None:
    with pytest.raises(InvalidJwtSvid, match="not a workload"):
        sign_jwt_svid(
            KEY, "k", identity=SpiffeId(DOMAIN), audiences=["a"], ttl=timedelta(60), now=NOW
        )


def test_one_audience_may_stand_alone() -> None:
    assert verify(token(aud="a")) == WEB


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", ["9999999999", True, float("nan"), -1, 1e300, [], {}])
def test_times_are_numbers(name: str, value: Any) -> None:
    with pytest.raises(InvalidJwtSvid):
        verify(token(**{name: value}))


NOW_SECONDS = int(NOW.timestamp())


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": None},
        {"exp": NOW_SECONDS},
        {"nbf": NOW_SECONDS + 61},
        {"iat": NOW_SECONDS + 61},
        {"aud": None},
        {"aud": []},
        {"aud": "b"},
        {"aud": ["b"]},
        {"aud": ["a", 5]},
        {"aud": ["a", ""]},
        {"aud": {"a": "a"}},
        {"sub": None},
        {"sub": 5},
        {"sub": "web"},
        {"sub": "spiffe://example.org/web/"},
        {"sub": "spiffe://unknown.org/web"},
        {"sub": "spiffe://other.org/web"},
    ],
)
def test_claims_that_are_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(InvalidJwtSvid):
        verify(token(**claims))


def test_clocks_may_differ_a_little() -> None:
    assert verify(token(nbf=NOW_SECONDS + 59, iat=NOW_SECONDS + 59)) == WEB


@pytest.mark.parametrize("header", [{"typ": "JWT"}, {"typ": "JOSE"}, {"typ": None}])
def test_types_that_are_accepted(header: dict[str, Any]) -> None:
    assert verify(token(header=header)) == WEB


@pytest.mark.parametrize(
    "header",
    [
        {"kid": "o"},
        {"kid": ""},
        {"typ": "jwt"},
        {"typ": "at+jwt"},
        {"jku": "https://evil"},
        {"crit": ["exp"]},
        {"x5c": []},
    ],
)
def test_headers_that_are_refused(header: dict[str, Any]) -> None:
    with pytest.raises(InvalidJwtSvid):
        verify(token(header=header))


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("alg", ["none", "NONE", "HS256", "EdDSA", "ES256K", "", None, 5])
def test_algorithms_are_refused_before_a_key_is_looked_for(alg: Any) -> None:
    _, claims, signature = token().split(".")
    forged = ".".join([encoded({"alg": alg, "kid": "not there", "typ": "JWT"}), claims, signature])
    with pytest.raises(InvalidJwtSvid, match="only RSA and ECDSA"):
        verify(forged)


def test_the_curve_must_be_the_algorithms() -> None:
    large = ec.generate_private_key(ec.SECP384R1())
    keys = {DOMAIN: {"k": large.public_key()}}
    assert verify_jwt_svid(token(key=large, alg="ES384"), keys, ["a"], NOW).id == WEB
    _, claims, signature = token(key=large, alg="ES384").split(".")
    forged = ".".join([encoded({"alg": "ES256", "kid": "k"}), claims, signature])
    with pytest.raises(InvalidJwtSvid):
        verify_jwt_svid(forged, keys, ["a"], NOW)


@pytest.mark.parametrize("alg", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"])
def test_rsa(alg: str) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    keys = {DOMAIN: {"k": key.public_key()}}
    assert verify_jwt_svid(token(key=key, alg=alg), keys, ["a"], NOW).id == WEB
    with pytest.raises(InvalidJwtSvid):
        verify_jwt_svid(token(), keys, ["a"], NOW)


def test_a_key_speaks_for_its_own_trust_domain_only() -> None:
    text = token(sub="spiffe://other.org/web")
    with pytest.raises(InvalidJwtSvid, match="does not publish"):
        verify(text)


def test_a_changed_byte_anywhere() -> None:
    text = token()
    for position in range(0, len(text) - 2, 7):
        changed = "A" if text[position] != "A" else "B"
        with pytest.raises(InvalidJwtSvid):
            verify(text[:position] + changed + text[position + 1 :])


def test_claims_that_are_there_twice() -> None:
    body = '{"sub":"spiffe://example.org/web","sub":"spiffe://example.org/admin"}'
    middle = base64.urlsafe_b64encode(body.encode()).rstrip(b"=").decode()
    header, _, signature = token().split(".")
    with pytest.raises(InvalidJwtSvid, match="twice"):
        verify(f"{header}.{middle}.{signature}")


@given(st.text())
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidJwtSvid):
        verify(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "x"]), json_values), json_values)
def test_any_header_and_claims_are_refused(header: Any, claims: Any) -> None:
    with pytest.raises(InvalidJwtSvid):
        verify(f"{encoded(header)}.{encoded(claims)}.AAAA")


def test_what_is_too_long_is_not_looked_at() -> None:
    with pytest.raises(InvalidJwtSvid, match="longer than"):
        verify("a" * 20_000)


def test_issuers_check() -> None:
    claims = {"sub": str(WEB), "aud": ["a"], "exp": NOW_SECONDS + 1}
    check_issued_claims(claims, WEB, NOW)
    with pytest.raises(InvalidJwtSvid, match="not for"):
        check_issued_claims(claims, SpiffeId.parse("spiffe://example.org/db"), NOW)
