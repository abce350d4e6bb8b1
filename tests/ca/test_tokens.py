from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.errors import (
    AuthenticationError,
    TokenAlgorithmRefused,
    TokenClaimInvalid,
    TokenExpired,
    TokenKeyUnknown,
    TokenMalformed,
    TokenNotYetValid,
    TokenSignatureInvalid,
    TokenWrongAudience,
    TokenWrongIssuer,
    TokenWrongSubject,
)
from ca.jwks import token_key
from ca.tokens import (
    MAX_TOKEN_BYTES,
    TrustedIssuer,
    create_token,
    key_id,
    own_issuer,
    parse_subject,
    verify_token,
)
from mesh.spiffe import ServiceAccount
from tests.ca.workshop import claims, rsa_key, sign_token
from tests.pki import NOW, new_key

EPOCH = int(NOW.timestamp())
EC_KEY = new_key()


TRUSTED = TrustedIssuer(
    keys=(
        token_key(rsa_key().public_key(), "rsa"),
        token_key(EC_KEY.public_key(), "ec"),
    ),
    issuer="https://issuer.test",
    audiences=frozenset({"istio-ca", "remora"}),
)
WEB = ServiceAccount("foo", "web")


def verify(token: str, trusted: TrustedIssuer = TRUSTED) -> ServiceAccount:
    return verify_token(token, trusted, NOW)


def good(**changes: Any) -> str:
    return sign_token(claims(**changes), rsa_key(), kid="rsa")


def handmade(header: dict[str, Any], payload: dict[str, Any], signature: bytes = b"") -> str:
    parts = (json.dumps(header).encode(), json.dumps(payload).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def detached(token: str) -> str:
    header, _, signature = token.split(".")
    return f"{header}..{signature}"


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"])
def test_rsa_tokens_are_believed(algorithm: str) -> None:
    assert verify(sign_token(claims(), rsa_key(), algorithm, kid="rsa")) == WEB


def test_ec_tokens_are_believed() -> None:
    assert verify(sign_token(claims(), EC_KEY, "ES256", kid="ec")) == WEB


def test_a_token_without_kid_is_believed_if_only_one_key_fits() -> None:
    assert verify(sign_token(claims(), EC_KEY, "ES256")) == WEB
    two = TrustedIssuer(
        keys=(token_key(EC_KEY.public_key(), "a"), token_key(new_key().public_key(), "b")),
        issuer=None,
        audiences=TRUSTED.audiences,
    )
    with pytest.raises(TokenKeyUnknown, match="2 of our keys fit"):
        verify(sign_token(claims(), EC_KEY, "ES256"), two)
    assert verify(sign_token(claims(), EC_KEY, "ES256", kid="a"), two) == WEB


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"aud": "istio-ca"}, id="aud-a-string"),
        pytest.param({"aud": ["other", "remora"]}, id="aud-one-of-several"),
        pytest.param({"exp": EPOCH + 1}, id="one-second-left"),
        pytest.param({"exp": EPOCH + 0.5}, id="exp-a-float"),
        pytest.param({"nbf": EPOCH}, id="nbf-now"),
        pytest.param({"nbf": EPOCH + 60}, id="nbf-within-the-leeway"),
        pytest.param({"iat": EPOCH + 9999}, id="iat-is-not-judged"),
        pytest.param({"iat": "yesterday"}, id="iat-of-any-type"),
        pytest.param({"extra": {"kubernetes.io": {"pod": {"name": "a"}}}}, id="more-claims"),
    ],
)
def test_good_claims(changes: dict[str, Any]) -> None:
    assert verify(good(**changes)) == WEB


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param({"exp": EPOCH}, TokenExpired, id="expired-now"),
        pytest.param({"exp": EPOCH - 3600}, TokenExpired, id="expired"),
        pytest.param({"exp": 0}, TokenExpired, id="expired-in-1970"),
        pytest.param({"exp": None}, TokenClaimInvalid, id="no-exp"),
        pytest.param({"exp": str(EPOCH + 60)}, TokenClaimInvalid, id="exp-a-string"),
        pytest.param({"exp": True}, TokenClaimInvalid, id="exp-a-bool"),
        pytest.param({"exp": [EPOCH + 60]}, TokenClaimInvalid, id="exp-a-list"),
        pytest.param({"exp": 10**400}, TokenClaimInvalid, id="exp-huge"),
        pytest.param({"exp": -1}, TokenClaimInvalid, id="exp-negative"),
        pytest.param({"nbf": EPOCH + 61}, TokenNotYetValid, id="nbf-future"),
        pytest.param({"nbf": str(EPOCH)}, TokenClaimInvalid, id="nbf-a-string"),
        pytest.param({"nbf": False}, TokenClaimInvalid, id="nbf-a-bool"),
        pytest.param({"aud": None}, TokenClaimInvalid, id="no-aud"),
        pytest.param({"aud": []}, TokenWrongAudience, id="aud-empty"),
        pytest.param({"aud": ""}, TokenWrongAudience, id="aud-empty-string"),
        pytest.param({"aud": ["vault"]}, TokenWrongAudience, id="aud-other"),
        pytest.param({"aud": "istio-ca "}, TokenWrongAudience, id="aud-with-space"),
        pytest.param({"aud": "Istio-CA"}, TokenWrongAudience, id="aud-case"),
        pytest.param({"aud": ["istio-ca", 7]}, TokenClaimInvalid, id="aud-with-a-number"),
        pytest.param({"aud": {"istio-ca": 1}}, TokenClaimInvalid, id="aud-an-object"),
        pytest.param({"aud": 7}, TokenClaimInvalid, id="aud-a-number"),
        pytest.param({"iss": None}, TokenClaimInvalid, id="no-iss"),
        pytest.param({"iss": "https://issuer.test/"}, TokenWrongIssuer, id="iss-with-slash"),
        pytest.param({"iss": ["https://issuer.test"]}, TokenClaimInvalid, id="iss-a-list"),
        pytest.param({"sub": None}, TokenClaimInvalid, id="no-sub"),
        pytest.param({"sub": ""}, TokenClaimInvalid, id="sub-empty"),
        pytest.param({"sub": 7}, TokenClaimInvalid, id="sub-a-number"),
        pytest.param({"sub": "alice"}, TokenWrongSubject, id="sub-a-user"),
        pytest.param({"sub": "system:serviceaccount:foo"}, TokenWrongSubject, id="sub-three-parts"),
        pytest.param(
            {"sub": "system:serviceaccount:foo:web:x"}, TokenWrongSubject, id="sub-five-parts"
        ),
    ],
)
def test_bad_claims(changes: dict[str, Any], error: type[AuthenticationError]) -> None:
    with pytest.raises(error):
        verify(good(**changes))


def test_an_issuer_that_is_not_configured_is_not_asked_for() -> None:
    anyone = TrustedIssuer(keys=TRUSTED.keys, issuer=None, audiences=TRUSTED.audiences)
    assert verify(good(iss=None), anyone) == WEB
    assert verify(good(iss="https://elsewhere.test"), anyone) == WEB


def test_another_key_of_the_same_name_is_not_believed() -> None:
    with pytest.raises(TokenSignatureInvalid):
        verify(sign_token(claims(), new_key(), "ES256", kid="ec"))


def test_an_unknown_key_is_not_believed() -> None:
    with pytest.raises(TokenKeyUnknown, match="key 'new'"):
        verify(sign_token(claims(), EC_KEY, "ES256", kid="new"))


def test_a_key_is_not_used_with_an_algorithm_of_another_kind() -> None:
    with pytest.raises(TokenKeyUnknown):
        verify(sign_token(claims(), rsa_key(), "RS256", kid="ec"))
    wide = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(TokenKeyUnknown):
        verify(sign_token(claims(), wide, "ES384", kid="ec"))


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", ""])
def test_alg_none_is_refused_with_and_without_signature(name: str) -> None:
    for signature in (b"", b"x" * 64):
        with pytest.raises(TokenAlgorithmRefused):
            verify(handmade({"alg": name, "kid": "rsa"}, claims(), signature))


@pytest.mark.parametrize(
    "encoding",
    [
        (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
        (serialization.Encoding.PEM, serialization.PublicFormat.PKCS1),
    ],
)
def test_hs256_keyed_with_the_public_key_is_refused(
    encoding: tuple[serialization.Encoding, serialization.PublicFormat],
) -> None:
    secret = rsa_key().public_key().public_bytes(*encoding)
    unsigned = handmade({"alg": "HS256", "kid": "rsa"}, claims()).rstrip(".")
    mac = hmac.new(secret, unsigned.encode(), hashlib.sha256).digest()
    with pytest.raises(TokenAlgorithmRefused, match="'HS256'"):
        verify(handmade({"alg": "HS256", "kid": "rsa"}, claims(), mac))


@pytest.mark.parametrize("name", ["EdDSA", "ES256K", "HS512", "RSA-OAEP", "rs256", 256, None, {}])
def test_other_algorithms_are_refused_before_a_key_is_looked_for(name: object) -> None:
    with pytest.raises(TokenAlgorithmRefused):
        verify(handmade({"alg": name, "kid": "unknown"}, claims(), b"x"))


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("", id="empty"),
        pytest.param("opaque-kubernetes-token", id="opaque"),
        pytest.param("a.b", id="two-parts"),
        pytest.param("a.b.c.d", id="four-parts"),
        pytest.param("..", id="only-dots"),
        pytest.param("é.\ud800.ü", id="not-ascii"),
        pytest.param(handmade([], {}), id="header-a-list"),  # type: ignore[arg-type]
        pytest.param(handmade({"alg": "RS256", "kid": 7}, {}), id="kid-a-number"),
        pytest.param(handmade({"alg": "RS256", "kid": None}, {}), id="kid-null"),
        pytest.param(handmade({"alg": "RS256", "crit": ["exp"]}, {}), id="crit"),
        pytest.param(handmade({"alg": "RS256", "crit": ["b64"], "b64": True}, {}), id="crit-b64"),
        pytest.param(handmade({"alg": "RS256", "b64": False}, {}), id="unencoded-payload"),
        pytest.param(detached(handmade({"alg": "RS256", "b64": False}, {})), id="detached"),
        pytest.param(
            base64.urlsafe_b64encode(b"[" * 9000).decode().rstrip("=") + ".e30.AAAA", id="deep"
        ),
        pytest.param(good() + "!", id="junk-after"),
        pytest.param(" " + good(), id="space-before"),
        pytest.param("x" * (MAX_TOKEN_BYTES + 1), id="too-long"),
    ],
)
def test_what_is_no_token_is_malformed(token: str) -> None:
    with pytest.raises(TokenMalformed):
        verify(token)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="a-list"),
        pytest.param(b"\xff", id="not-utf8"),
        pytest.param(b'{"exp": NaN}', id="nan"),
        pytest.param(b'{"exp": Infinity}', id="infinity"),
        pytest.param(b'{"exp": 1, "exp": 9999999999}', id="twice"),
        pytest.param(b"[" * 9000, id="deep"),
        pytest.param(b'{"exp": ' + b"9" * 5000 + b"}", id="too-many-digits"),
    ],
)
def test_claims_that_are_no_object_are_malformed_even_if_well_signed(payload: bytes) -> None:
    with pytest.raises(TokenMalformed):
        verify(sign_token(payload, rsa_key(), kid="rsa"))


def test_an_overflowing_float_is_no_time() -> None:
    payload = json.dumps(claims()).replace(str(EPOCH + 3600), "1e999").encode()
    with pytest.raises(TokenClaimInvalid):
        verify(sign_token(payload, rsa_key(), kid="rsa"))


def test_changed_claims_break_the_signature() -> None:
    header, _, signature = good().split(".")
    other = handmade({}, claims(sub="system:serviceaccount:kube-system:admin")).split(".")[1]
    with pytest.raises(TokenSignatureInvalid):
        verify(f"{header}.{other}.{signature}")


def test_no_message_repeats_the_token() -> None:
    tokens = [good(exp=EPOCH), good(sub="x" * 5000), good(aud=["y" * 5000]), good() + "!"]
    for token in tokens:
        with pytest.raises(AuthenticationError) as caught:
            verify(token)
        assert len(str(caught.value)) < 300
        assert not any(part in str(caught.value) for part in token.split("."))


@pytest.mark.parametrize(
    ("namespace", "name"),
    [
        ("foo", "web"),
        ("a", "b"),
        ("0", "9"),
        ("n" * 63, "s" * 63),
        ("foo-bar", "web-1"),
        ("foo", "web.v1.team"),
    ],
)
def test_subjects_of_service_accounts(namespace: str, name: str) -> None:
    expected = ServiceAccount(namespace, name)
    assert parse_subject(f"system:serviceaccount:{namespace}:{name}") == expected


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "system",
        "system:serviceaccount",
        "system:serviceaccount:foo",
        "system:serviceaccount:foo:web:",
        "system:serviceaccount::web",
        "system:serviceaccount:foo:",
        "system:serviceaccountx:foo:web",
        "System:ServiceAccount:foo:web",
        "system:node:foo:web",
        " system:serviceaccount:foo:web",
        "system:serviceaccount:foo:web\n",
        "system:serviceaccount:Foo:web",
        "system:serviceaccount:foo.bar:web",
        "system:serviceaccount:foo:we_b",
        "system:serviceaccount:foo/sa/admin:web",
        "system:serviceaccount:..:web",
        "system:serviceaccount:foo:..",
        "system:serviceaccount:foo:a..b",
        "system:serviceaccount:-foo:web",
        "system:serviceaccount:foo:web-",
        "system:serviceaccount:foo:web,spiffe",
        "system:serviceaccount:fo\u00f6:web",
        "system:serviceaccount:foo:we\u0660",
        "system:serviceaccount:" + "n" * 64 + ":web",
        "system:serviceaccount:foo:" + ".".join(["s" * 63] * 4),
    ],
)
def test_subjects_that_are_no_service_account(subject: str) -> None:
    with pytest.raises(TokenWrongSubject):
        parse_subject(subject)


def test_own_tokens_are_believed_by_the_own_issuer_until_they_expire() -> None:
    key = new_key()
    token = create_token(key, WEB, audience="istio-ca", ttl=timedelta(hours=1), now=NOW)
    trusted = own_issuer(key.public_key(), ["istio-ca"])
    assert verify_token(token, trusted, NOW) == WEB
    assert verify_token(token, trusted, NOW + timedelta(minutes=59)) == WEB
    assert verify_token(token, trusted, NOW - timedelta(seconds=60)) == WEB
    with pytest.raises(TokenExpired):
        verify_token(token, trusted, NOW + timedelta(hours=1))
    with pytest.raises(TokenNotYetValid):
        verify_token(token, trusted, NOW - timedelta(seconds=61))


def test_own_tokens_are_for_one_audience_and_by_one_key() -> None:
    key = new_key()
    token = create_token(key, WEB, audience="vault", ttl=timedelta(hours=1), now=NOW)
    with pytest.raises(TokenWrongAudience):
        verify_token(token, own_issuer(key.public_key(), ["istio-ca"]), NOW)
    with pytest.raises(TokenKeyUnknown):
        verify_token(token, own_issuer(new_key().public_key(), ["vault"]), NOW)


def test_own_tokens_are_plain_jwts_for_other_software() -> None:
    key = new_key()
    token = create_token(key, WEB, audience="istio-ca", ttl=timedelta(hours=1), now=NOW)
    assert jwt.get_unverified_header(token) == {
        "alg": "ES256",
        "typ": "JWT",
        "kid": key_id(key.public_key()),
    }
    assert jwt.decode(token, options={"verify_signature": False}) == {
        "iss": "remora-ca",
        "sub": "system:serviceaccount:foo:web",
        "aud": ["istio-ca"],
        "iat": EPOCH,
        "nbf": EPOCH,
        "exp": EPOCH + 3600,
    }


def test_the_key_id_is_the_thumbprint_of_rfc_7638() -> None:
    """Coordinates of RFC 7517, A.1; the thumbprint was computed apart with sha256sum."""
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(
            base64.urlsafe_b64decode("MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4="), "big"
        ),
        int.from_bytes(
            base64.urlsafe_b64decode("4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM="), "big"
        ),
        ec.SECP256R1(),
    )
    assert key_id(numbers.public_key()) == "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.from_regex(r"[\w-]+\.[\w-]+\.[\w-]*", fullmatch=True))
def test_random_texts_give_our_error(text: str) -> None:
    with pytest.raises(AuthenticationError):
        verify(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk"]), JSON),
    algorithm=st.sampled_from(["RS256", "ES256", "none", "HS256"]),
)
def test_random_headers_give_our_error(header: dict[str, Any], algorithm: str) -> None:
    with pytest.raises(AuthenticationError):
        verify(handmade({"alg": algorithm, **header}, claims(), b"signature"))


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(["exp", "nbf", "aud", "iss", "sub"]), value=JSON)
def test_random_claims_give_our_error_or_the_account(name: str, value: object) -> None:
    token = sign_token({**claims(), name: value}, EC_KEY, "ES256", kid="ec")
    try:
        assert verify(token) == WEB
    except AuthenticationError:
        return
