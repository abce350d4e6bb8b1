"""Tokens taken apart and judged: every way to be wrong, and what is right all the same."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.errors import Fault, TokenRefused
from mesh.policy.tokens import (
    LEEWAY,
    MAX_TOKEN,
    KeySet,
    audience_allowed,
    check_time,
    parse_token,
)
from tests.token_makers import by_hand, ec_jwk, ec_key, jwk, jwks, section, token

HEAD = {"alg": "RS256"}


def fault_of(text: str) -> Fault | None:
    try:
        parse_token(text)
    except TokenRefused as refused:
        return refused.fault
    return None


def test_a_fault_is_told_in_envoys_words() -> None:
    assert str(TokenRefused(Fault.EXPIRED)) == "Jwt is expired"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (by_hand(HEAD, {}), None),
        ("", Fault.BAD_FORM),
        ("a.b", Fault.BAD_FORM),
        ("a.b.c.d", Fault.BAD_FORM),
        ("a..c", Fault.BAD_FORM),
        (f"{section(HEAD)}.{section({})}.", Fault.BAD_FORM),
        ("ä.b.c", Fault.BAD_FORM),
        (f"{section(HEAD)}.{section({})}.{'x' * MAX_TOKEN}", Fault.BAD_FORM),
        ("!.e30.eA", Fault.HEADER_NOT_BASE64),
        ("a.e30.eA", Fault.HEADER_NOT_BASE64),
        (by_hand(b"{", {}), Fault.HEADER_NOT_JSON),
        (by_hand([], {}), Fault.HEADER_NOT_JSON),
        (by_hand(b"[" * 5000, {}), Fault.HEADER_NOT_JSON),
        (by_hand({}, {}), Fault.NO_ALGORITHM),
        (by_hand({"alg": 5}, {}), Fault.NO_ALGORITHM),
        (by_hand({"alg": "none"}, {}), Fault.UNSUPPORTED_ALGORITHM),
        (by_hand({"alg": "rs256"}, {}), Fault.UNSUPPORTED_ALGORITHM),
        (by_hand({**HEAD, "kid": 5}, {}), Fault.BAD_KID),
        (f"{section(HEAD)}.!.eA", Fault.PAYLOAD_NOT_BASE64),
        (by_hand(HEAD, b"\xff"), Fault.PAYLOAD_NOT_JSON),
        (by_hand(HEAD, "text"), Fault.PAYLOAD_NOT_JSON),
        (by_hand(HEAD, {"iss": 5}), Fault.BAD_ISSUER),
        (by_hand(HEAD, {"sub": []}), Fault.BAD_SUBJECT),
        (by_hand(HEAD, {"jti": {}}), Fault.BAD_ID),
        (by_hand(HEAD, {"exp": "1"}), Fault.EXPIRY_NO_NUMBER),
        (by_hand(HEAD, {"exp": -1}), Fault.BAD_EXPIRY),
        (by_hand(HEAD, {"exp": 2**64}), Fault.BAD_EXPIRY),
        (by_hand(HEAD, {"nbf": True}), Fault.NOT_BEFORE_NO_NUMBER),
        (by_hand(HEAD, {"iat": None}), Fault.ISSUED_AT_NO_NUMBER),
        (by_hand(HEAD, {"nbf": -1}), Fault.BAD_NOT_BEFORE),
        (by_hand(HEAD, {"iat": -1}), Fault.BAD_ISSUED_AT),
        (by_hand(HEAD, {"exp": 1.5}), None),
        (by_hand(HEAD, {"aud": 5}), Fault.BAD_AUDIENCE),
        (by_hand(HEAD, {"aud": ["a", 5]}), Fault.BAD_AUDIENCE),
        (by_hand(HEAD, {"aud": []}), None),
        (f"{section(HEAD)}.{section({})}.!", Fault.SIGNATURE_NOT_BASE64),
    ],
    ids=map(str, count()),
)
def test_form(text: str, fault: Fault | None) -> None:
    assert fault_of(text) is fault


@given(st.text(alphabet="abeJ09-_.=!{}", max_size=30))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    fault_of(text)


def test_what_is_in_a_token() -> None:
    read = parse_token(by_hand({**HEAD, "kid": "k"}, {"iss": "i", "aud": "a"}, b"sig"))
    assert (read.algorithm, read.kid, read.issuer, read.audiences) == ("RS256", "k", "i", ("a",))
    assert read.payload_part == section({"iss": "i", "aud": "a"})
    assert read.signature == b"sig"
    bare = parse_token(by_hand(HEAD, {"aud": ["a", "b"]}))
    assert (bare.kid, bare.issuer, bare.audiences) == (None, "", ("a", "b"))


NOW = 1_000_000


@pytest.mark.parametrize(
    ("claims", "fault"),
    [
        ({}, None),
        ({"exp": NOW + 1}, None),
        ({"exp": NOW - LEEWAY}, None),
        ({"exp": NOW - LEEWAY - 1}, Fault.EXPIRED),
        ({"exp": 0}, None),
        ({"nbf": NOW + LEEWAY}, None),
        ({"nbf": NOW + LEEWAY + 1}, Fault.NOT_YET_VALID),
        ({"nbf": NOW + 1000, "exp": 1}, Fault.NOT_YET_VALID),
        ({"iat": NOW + 1000}, None),
    ],
)
def test_time(claims: dict[str, int], fault: Fault | None) -> None:
    read = parse_token(by_hand(HEAD, claims))
    if fault is None:
        check_time(read, NOW)
    else:
        with pytest.raises(TokenRefused) as refused:
            check_time(read, NOW)
        assert refused.value.fault is fault


@pytest.mark.parametrize(
    ("allowed", "presented", "expected"),
    [
        ((), (), True),
        ((), ("a",), True),
        (("a",), (), False),
        (("a", "b"), ("c", "b"), True),
        (("a",), ("A",), False),
        (("https://a/",), ("a",), True),
        (("a",), ("http://a/",), True),
        (("a//",), ("a",), False),
        (("ftp://a",), ("a",), False),
    ],
)
def test_audiences(allowed: tuple[str, ...], presented: tuple[str, ...], expected: bool) -> None:
    assert audience_allowed(allowed, presented) is expected


def signature_fault(text: str, keys: str) -> Fault | None:
    try:
        KeySet.parse(keys).check(parse_token(text))
    except TokenRefused as refused:
        return refused.fault
    return None


def keys_of(*entries: dict[str, Any]) -> str:
    return json.dumps({"keys": entries})


WITHOUT_ALG = {key: value for key, value in jwk("key-1").items() if key != "alg"}
WITHOUT_KID = {key: value for key, value in jwk("key-1").items() if key != "kid"}
SECRET = {"kty": "oct", "k": section(b"a secret of at least 32 bytes....")}


@pytest.mark.parametrize(
    ("text", "keys", "fault"),
    [
        (token({}), jwks("key-1"), None),
        (token({}), jwks("key-2", "key-1"), None),
        (token({}), json.dumps(jwk("key-1")), None),
        (token({}), jwks("key-1", private=True), None),
        (token({}), jwks("key-2"), Fault.NO_KEY),
        (token({}, kid=None), jwks("key-2", "key-1"), None),
        (token({}, kid=None), jwks("key-2"), Fault.BAD_SIGNATURE),
        (token({}, kid="key-2"), jwks("key-1", "key-2"), Fault.BAD_SIGNATURE),
        (token({}), keys_of(WITHOUT_KID), None),
        (token({}, algorithm="PS256"), keys_of(WITHOUT_ALG), None),
        (token({}, algorithm="RS512"), keys_of(WITHOUT_ALG), None),
        (token({}, algorithm="RS512"), jwks("key-1"), Fault.NO_KEY),
        (token({}), keys_of({**jwk("key-1"), "use": "enc"}), Fault.NO_KEY),
        (token({}), keys_of({"kty": "new"}, {"kty": "RSA", "n": "!"}, jwk("key-1")), None),
        (token({}), "not json", Fault.NO_KEY),
        (token({}), '{"keys": 5}', Fault.NO_KEY),
        (token({}), "[]", Fault.NO_KEY),
        (token({})[:-8] + "AAAAAAAA", jwks("key-1"), Fault.BAD_SIGNATURE),
        (by_hand({"alg": "HS256"}, {}), jwks("key-1"), Fault.NO_KEY),
    ],
    ids=map(str, count()),
)  # fmt: skip
def test_signatures(text: str, keys: str, fault: Fault | None) -> None:
    assert signature_fault(text, keys) is fault


def test_other_kinds_of_keys() -> None:
    text = jwt.encode({}, ec_key("ec"), algorithm="ES256", headers={"kid": "ec"})
    assert signature_fault(text, keys_of(ec_jwk("ec"))) is None
    assert signature_fault(text, keys_of(ec_jwk("other"))) is Fault.NO_KEY
    assert signature_fault(text, jwks("key-1")) is Fault.NO_KEY
    secret = jwt.encode({}, "a secret of at least 32 bytes....", algorithm="HS256")
    assert signature_fault(secret, keys_of(SECRET)) is None
    assert signature_fault(token({}, kid=None), keys_of(SECRET)) is Fault.NO_KEY


def test_a_public_key_is_never_a_secret() -> None:
    """The classic confusion: a token signed by HMAC with the issuer's public key as secret."""
    confused = by_hand({"alg": "HS256", "kid": "key-1"}, {"sub": "root"}, b"0" * 32)
    assert signature_fault(confused, keys_of(WITHOUT_ALG)) is Fault.NO_KEY
