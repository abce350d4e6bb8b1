"""JSON Web Tokens (RFC 7519): taken apart, and judged by key set, time, issuer and audience.

Istio's data plane checks in this order: form, issuer, time, audience, signature. Each fault has
that proxy's own words, which become the body of the answer. A key is pinned to the algorithms of
its kind, so that a token cannot choose how it is checked (RFC 8725, section 3.1).
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import (
    Algorithm,
    ECAlgorithm,
    HMACAlgorithm,
    OKPAlgorithm,
    RSAAlgorithm,
    get_default_algorithms,
)
from msgspec import DecodeError, convert, json

from mesh.policy.errors import Fault, TokenRefused

LEEWAY = 60
"""Seconds that the clocks of an issuer and a proxy may differ (Envoy: clock_skew_seconds)."""

MAX_TOKEN = 60 * 1024
"""Characters: Envoy takes no more in all headers together."""

MAX_KEYS = 100
"""Keys of one set: issuers publish a few, and a token without `kid` is tried with each."""

_ALGORITHMS: Mapping[str, Algorithm] = get_default_algorithms()
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_HMAC = frozenset({"HS256", "HS384", "HS512"})
_CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
SUPPORTED = _RSA | _HMAC | frozenset(_CURVES.values()) | {"EdDSA"}
"""What a token may be signed with; `none` is nothing."""

_BASE64URL = re.compile(r"[-_A-Za-z0-9]+={0,2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token that has been taken apart, and not yet been believed.

    `payload_part` is the middle section as it came, `signed` the bytes that the signature is over.
    """

    algorithm: str
    kid: str | None
    claims: Mapping[str, Any]
    payload_part: str
    signed: bytes
    signature: bytes

    @property
    def issuer(self) -> str:
        """The `iss` claim; a token without has an empty one."""
        issuer: str = self.claims.get("iss", "")
        return issuer

    @property
    def audiences(self) -> tuple[str, ...]:
        """The `aud` claim, which may be one text or several."""
        audience = self.claims.get("aud", ())
        return (audience,) if isinstance(audience, str) else tuple(audience)


def parse_token(text: str) -> Token:
    """Take a token apart. Raises TokenRefused."""
    parts = text.split(".")
    if len(parts) != 3 or not all(parts) or len(text) > MAX_TOKEN or not text.isascii():
        raise TokenRefused(Fault.BAD_FORM)
    header = _json_object(parts[0], Fault.HEADER_NOT_BASE64, Fault.HEADER_NOT_JSON)
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str):
        raise TokenRefused(Fault.NO_ALGORITHM)
    if algorithm not in SUPPORTED:
        raise TokenRefused(Fault.UNSUPPORTED_ALGORITHM)
    if kid is not None and not isinstance(kid, str):
        raise TokenRefused(Fault.BAD_KID)
    claims = _json_object(parts[1], Fault.PAYLOAD_NOT_BASE64, Fault.PAYLOAD_NOT_JSON)
    _check_claims(claims)
    return Token(
        algorithm=algorithm,
        kid=kid,
        claims=claims,
        payload_part=parts[1],
        signed=f"{parts[0]}.{parts[1]}".encode(),
        signature=_decoded(parts[2], Fault.SIGNATURE_NOT_BASE64),
    )


def check_time(token: Token, now: float) -> None:
    """Check a token's time; `now` is in seconds since the epoch. Raises TokenRefused.

    A token without `exp` does not expire (Envoy; other verifiers refuse it).
    """
    if now + LEEWAY < token.claims.get("nbf", 0):
        raise TokenRefused(Fault.NOT_YET_VALID)
    expiry = token.claims.get("exp", 0)
    if expiry and now > expiry + LEEWAY:
        raise TokenRefused(Fault.EXPIRED)


def audience_allowed(allowed: Sequence[str], presented: Iterable[str]) -> bool:
    """Compare audiences; a scheme before and one slash behind do not count. None allows all."""
    wanted = {_bare(audience) for audience in allowed}
    return not wanted or any(_bare(audience) in wanted for audience in presented)


def _bare(audience: str) -> str:
    return audience.removeprefix("http://").removeprefix("https://").removesuffix("/")


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a set, with the algorithms of its kind."""

    kid: str
    algorithms: frozenset[str]
    material: Any

    def fits(self, token: Token) -> bool:
        """Tell whether a token may have been signed with this key: names that both have agree."""
        return token.algorithm in self.algorithms and (
            not self.kid or not token.kid or self.kid == token.kid
        )


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of an issuer (RFC 7517); with none, no token is good."""

    keys: tuple[Key, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a key set, or a single key; keys of unknown kinds are left out.

        Admission has already refused what is no key set: whatever cannot be read has no keys.
        """
        try:
            data = json.decode(text.encode(), type=dict[str, Any])
            entries = convert(data.get("keys", [data]), list[dict[str, Any]])
        except (DecodeError, RecursionError, UnicodeEncodeError):
            return cls()
        found = (_key(entry) for entry in entries[:MAX_KEYS])
        return cls(tuple(key for key in found if key is not None))

    def check(self, token: Token) -> None:
        """Check that some key made the token's signature. Raises TokenRefused."""
        fitting = [key for key in self.keys if key.fits(token)]
        if not fitting:
            raise TokenRefused(Fault.NO_KEY)
        algorithm = _ALGORITHMS[token.algorithm]
        if not any(
            algorithm.verify(token.signed, key.material, token.signature) for key in fitting
        ):
            raise TokenRefused(Fault.BAD_SIGNATURE)


def _key(entry: Mapping[str, Any]) -> Key | None:
    if entry.get("use", "sig") != "sig":
        return None
    try:
        material, algorithms = _material(entry)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        return None
    named = entry.get("alg")
    if named is not None:
        algorithms &= {named}
    kid = entry.get("kid", "")
    return Key(kid if isinstance(kid, str) else "", algorithms, material) if algorithms else None


def _material(entry: Mapping[str, Any]) -> tuple[Any, frozenset[str]]:
    data = dict(entry)
    match entry.get("kty"):
        case "RSA":
            return _public(RSAAlgorithm.from_jwk(data)), _RSA
        case "EC" if entry.get("crv") in _CURVES:
            return _public(ECAlgorithm.from_jwk(data)), frozenset({_CURVES[entry["crv"]]})
        case "OKP" if entry.get("crv") == "Ed25519":
            return _public(OKPAlgorithm.from_jwk(data)), frozenset({"EdDSA"})
        case "oct":
            return HMACAlgorithm.from_jwk(data), _HMAC
        case _:
            return None, frozenset()


_PRIVATE = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def _public(key: Any) -> Any:
    """Return the public half; some issuers publish both, which admission warns of."""
    return key.public_key() if isinstance(key, _PRIVATE) else key


def _decoded(part: str, fault: Fault) -> bytes:
    bare = part.rstrip("=")
    if not _BASE64URL.fullmatch(part) or len(bare) % 4 == 1:
        raise TokenRefused(fault)
    return urlsafe_b64decode(bare + "=" * (-len(bare) % 4))


def _json_object(part: str, not_base64: Fault, not_json: Fault) -> Mapping[str, Any]:
    try:
        return json.decode(_decoded(part, not_base64), type=dict[str, Any])
    except (DecodeError, RecursionError) as error:
        raise TokenRefused(not_json) from error


_TEXT_CLAIMS = {"iss": Fault.BAD_ISSUER, "sub": Fault.BAD_SUBJECT, "jti": Fault.BAD_ID}
_TIME_CLAIMS = {
    "iat": (Fault.ISSUED_AT_NO_NUMBER, Fault.BAD_ISSUED_AT),
    "nbf": (Fault.NOT_BEFORE_NO_NUMBER, Fault.BAD_NOT_BEFORE),
    "exp": (Fault.EXPIRY_NO_NUMBER, Fault.BAD_EXPIRY),
}


def _check_claims(claims: Mapping[str, Any]) -> None:
    for name, fault in _TEXT_CLAIMS.items():
        if name in claims and not isinstance(claims[name], str):
            raise TokenRefused(fault)
    for name, (no_number, out_of_range) in _TIME_CLAIMS.items():
        value = claims.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TokenRefused(no_number)
        if not 0 <= value < 2**64:
            raise TokenRefused(out_of_range)
    audience = claims.get("aud", "")
    if not isinstance(audience, str) and not _is_texts(audience):
        raise TokenRefused(Fault.BAD_AUDIENCE)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, str) for one in cast("list[object]", value)
    )
