"""Keys and tokens for tests: what an issuer makes, good and bad."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from jwt.algorithms import ECAlgorithm, RSAAlgorithm


@cache
def rsa_key(name: str) -> RSAPrivateKey:
    """Return the RSA key of a name, the same one every time."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def ec_key(name: str) -> ec.EllipticCurvePrivateKey:
    """Return the P-256 key of a name, the same one every time."""
    return ec.generate_private_key(ec.SECP256R1())


def jwk(name: str, *, private: bool = False) -> dict[str, Any]:
    """Return an RSA key as a JSON Web Key."""
    key = rsa_key(name)
    return {
        **RSAAlgorithm.to_jwk(key if private else key.public_key(), as_dict=True),
        "kid": name,
        "alg": "RS256",
    }


def ec_jwk(name: str) -> dict[str, Any]:
    """Return an EC key as a JSON Web Key."""
    return {**ECAlgorithm.to_jwk(ec_key(name).public_key(), as_dict=True), "kid": name}


def jwks(*names: str, private: bool = False) -> str:
    """Return RSA keys as a key set."""
    return json.dumps({"keys": [jwk(name, private=private) for name in names]})


def token(
    claims: Mapping[str, Any],
    key: str = "key-1",
    *,
    kid: str | None = "",
    algorithm: str = "RS256",
) -> str:
    """Sign claims; the kid is the key's name unless another is given, None leaves it out."""
    headers = None if kid is None else {"kid": kid or key}
    return jwt.encode(dict(claims), rsa_key(key), algorithm=algorithm, headers=headers)


def section(value: object) -> str:
    """Write one section of a token by hand."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def by_hand(header: object, claims: object, signature: bytes = b"x") -> str:
    """Write a token whose sections may be anything."""
    return f"{section(header)}.{section(claims)}.{section(signature)}"
