from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from ca.jwks import ALGORITHMS, MAX_KEYS, RSA_ALGORITHMS, parse_jwks, token_key
from mesh.errors import ConfigError
from tests.ca.workshop import rsa_key
from tests.pki import new_key

CURVES = [
    (ec.SECP256R1(), "ES256"),
    (ec.SECP384R1(), "ES384"),
    (ec.SECP521R1(), "ES512"),
]


def rsa_jwk(**more: Any) -> dict[str, Any]:
    return {**RSAAlgorithm.to_jwk(rsa_key().public_key(), as_dict=True), **more}


def ec_jwk(key: ec.EllipticCurvePrivateKey | None = None, **more: Any) -> dict[str, Any]:
    return {**ECAlgorithm.to_jwk((key or new_key()).public_key(), as_dict=True), **more}


def jwks(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


def test_rsa_keys_are_pinned_to_rsa_algorithms() -> None:
    (key,) = parse_jwks(jwks(rsa_jwk(kid="a", use="sig")), "keys.json")
    assert key.kid == "a"
    assert key.key == rsa_key().public_key()
    assert key.algorithms == RSA_ALGORITHMS


@pytest.mark.parametrize(("curve", "algorithm"), CURVES)
def test_each_curve_has_one_algorithm(curve: ec.EllipticCurve, algorithm: str) -> None:
    private = ec.generate_private_key(curve)
    (key,) = parse_jwks(jwks(ec_jwk(private)), "keys.json")
    assert key.algorithms == {algorithm}
    assert key.kid is None


def test_an_alg_narrows_the_choice() -> None:
    (key,) = parse_jwks(jwks(rsa_jwk(alg="PS256")), "keys.json")
    assert key.algorithms == {"PS256"}


def test_keys_we_have_no_use_for_are_passed_over() -> None:
    keys = parse_jwks(
        jwks(
            {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"},
            {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"},
            {"kty": "future"},
            {},
            "not even an object",
            rsa_jwk(use="enc", kid="encryption"),
            rsa_jwk(alg="RSA-OAEP", kid="encryption2"),
            rsa_jwk(alg="HS256", kid="confused"),
            ec_jwk(crv="secp256k1", kid="coin"),
            ec_jwk(kid="good"),
        ),
        "keys.json",
    )
    assert [key.kid for key in keys] == ["good"]


def test_no_symmetric_algorithm_is_ever_accepted() -> None:
    assert not {name for name in ALGORITHMS if name.startswith("HS")}
    assert "none" not in ALGORITHMS


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(b"\xff\xfe", "not JSON", id="binary"),
        pytest.param(b"[" * 100_000, "not JSON", id="deep"),
        pytest.param(b"[]", 'no list "keys"', id="a-list"),
        pytest.param(b"{}", 'no list "keys"', id="no-keys"),
        pytest.param(b'{"keys": {}}', 'no list "keys"', id="keys-no-list"),
        pytest.param(jwks(), "holds no RSA or EC key", id="no-key"),
        pytest.param(jwks({"kty": "oct", "k": "YWJj"}), "holds no RSA or EC key", id="symmetric"),
        pytest.param(jwks({"kty": "RSA", "kid": "k"}), "'k' in keys.json is malformed", id="no-n"),
        pytest.param(jwks(rsa_jwk(n=7)), "malformed", id="n-a-number"),
        pytest.param(jwks(ec_jwk(x="AAAA")), "malformed", id="point-too-short"),
        pytest.param(jwks(ec_jwk(y=ec_jwk()["x"])), "malformed", id="point-off-the-curve"),
        pytest.param(jwks(rsa_jwk(kid=7)), "kid is not a string", id="kid-a-number"),
        pytest.param(jwks(ec_jwk(alg="ES384")), "algorithm 'ES384'", id="alg-of-another-curve"),
        pytest.param(jwks(rsa_jwk(alg="ES256")), "algorithm 'ES256'", id="alg-of-another-kind"),
        pytest.param(jwks(rsa_jwk(kid="a"), ec_jwk(kid="a")), "same kid", id="same-kid"),
        pytest.param(jwks(*[{}] * (MAX_KEYS + 1)), "more than the 100", id="too-many"),
        pytest.param(
            jwks(RSAAlgorithm.to_jwk(rsa_key(1024).public_key(), as_dict=True)),
            "1024 bits",
            id="rsa1024",
        ),
        pytest.param(
            jwks(RSAAlgorithm.to_jwk(rsa_key(), as_dict=True)), "is a private key", id="private-rsa"
        ),
        pytest.param(
            jwks(ECAlgorithm.to_jwk(new_key(), as_dict=True)), "is a private key", id="private-ec"
        ),
    ],
)
def test_a_key_set_that_cannot_be_used_stops_the_start(data: bytes, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_jwks(data, "keys.json")


def test_unhashable_members_are_no_crash() -> None:
    entries: list[dict[str, Any]] = [
        {"kty": ["RSA"]},
        {"kty": {}},
        rsa_jwk(alg=["RS256"]),
        rsa_jwk(use=[]),
        ec_jwk(crv={}),
    ]
    for entry in entries:
        with pytest.raises(ConfigError, match="holds no RSA or EC key"):
            parse_jwks(jwks(entry), "keys.json")


def test_a_key_on_a_strange_curve_is_good_for_nothing() -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        token_key(ec.generate_private_key(ec.SECP256K1()).public_key(), "k")


def test_what_other_software_writes_is_read() -> None:
    """The members of a real issuer's document, as PyJWT reads them."""
    document = jwks(rsa_jwk(kid="a", use="sig", alg="RS256"), ec_jwk(kid="b", use="sig"))
    theirs = jwt.PyJWKSet.from_json(document.decode())
    ours = parse_jwks(document, "keys.json")
    assert [key.key_id for key in theirs.keys] == [key.kid for key in ours]
