"""Keys that tokens may be signed with, read from a JSON Web Key Set (RFC 7517, RFC 7518).

Each key carries the algorithms it may be used with, so that a token cannot choose how it is
checked (RFC 8725, section 3.1). Symmetric keys never become a key here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from ca.csr import MIN_RSA_BITS
from mesh.errors import ConfigError

TokenPublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

RSA_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})

CURVE_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
"""RFC 7518, section 3.4: each ECDSA algorithm belongs to one curve."""

ALGORITHMS = RSA_ALGORITHMS | frozenset(CURVE_ALGORITHMS.values())
"""All that are ever accepted, as in JWT-SVID section 2.1: no `none`, no HMAC."""

MAX_KEYS = 100
"""Issuers publish one to four keys; more would make a token without `kid` expensive to judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """A public key, the name that tokens call it by, and what it may be used with."""

    kid: str | None
    key: TokenPublicKey
    algorithms: frozenset[str]


def token_key(key: TokenPublicKey, kid: str | None, algorithm: str | None = None) -> TokenKey:
    """Pin `key` to its algorithms, or to the one of them that its owner named.

    Raises ConfigError for a key that is too weak, or that the named algorithm cannot use.
    """
    usable = _algorithms(key, kid)
    if algorithm is not None:
        usable &= {algorithm}
    if not usable:
        raise ConfigError(f"token key {kid!r} cannot be used with algorithm {algorithm!r}")
    return TokenKey(kid=kid, key=key, algorithms=usable)


def parse_jwks(data: bytes, source: str) -> tuple[TokenKey, ...]:
    """Return the signature keys of a JWK Set; `source` names it in complaints.

    Keys of unknown kinds and for other uses are ignored (RFC 7517, section 5). Raises ConfigError
    if the set is malformed, holds a private or weak key, or holds none that can be used.
    """
    entries = _entries(data, source)
    keys = tuple(key for entry in entries if (key := _key(entry, source)) is not None)
    if not keys:
        raise ConfigError(
            f"{source} holds no RSA or EC key for signatures: no token could be checked"
        )
    names = [key.kid for key in keys if key.kid is not None]
    if len(names) != len(set(names)):
        raise ConfigError(f"{source} holds two keys of the same kid: give each its own")
    return keys


def _algorithms(key: TokenPublicKey, kid: str | None) -> frozenset[str]:
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            raise ConfigError(
                f"token key {kid!r} has {key.key_size} bits: use RSA with at least {MIN_RSA_BITS}"
            )
        return RSA_ALGORITHMS
    algorithm = CURVE_ALGORITHMS.get(key.curve.name)
    return frozenset() if algorithm is None else frozenset({algorithm})


def _entries(data: bytes, source: str) -> list[dict[str, Any]]:
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not JSON: give a JSON Web Key Set") from error
    keys = cast("dict[str, Any]", document).get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise ConfigError(f'{source} has no list "keys": give a JSON Web Key Set')
    entries = cast("list[object]", keys)
    if len(entries) > MAX_KEYS:
        raise ConfigError(f"{source} holds {len(entries)} keys, more than the {MAX_KEYS} allowed")
    return [cast("dict[str, Any]", entry) for entry in entries if isinstance(entry, dict)]


def _key(entry: dict[str, Any], source: str) -> TokenKey | None:
    if not _is_for_signatures(entry):
        return None
    kid = entry.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise ConfigError(f"{source} holds a key whose kid is not a string")
    algorithm = entry.get("alg")
    return token_key(_public_key(entry, f"key {kid!r} in {source}"), kid, algorithm)


def _is_for_signatures(entry: dict[str, Any]) -> bool:
    # Tuples, not sets: members may be of any type, and some cannot be hashed.
    if entry.get("use", "sig") != "sig" or entry.get("alg", "RS256") not in tuple(ALGORITHMS):
        return False
    known_curve = entry.get("crv") in ("P-256", "P-384", "P-521")
    return entry.get("kty") == "RSA" or (entry.get("kty") == "EC" and known_curve)


def _public_key(entry: dict[str, Any], what: str) -> TokenPublicKey:
    # Loaded by kind, not by jwt.PyJWK: that would let `alg` choose the kind.
    try:
        kind = RSAAlgorithm if entry["kty"] == "RSA" else ECAlgorithm
        key = kind.from_jwk(entry)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{what} is malformed: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise ConfigError(
            f"{what} is a private key: give the CA public keys only, and replace this one, "
            "since it has been copied"
        )
    return key
