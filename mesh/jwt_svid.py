"""JWT-SVIDs: tokens that name one SPIFFE ID, for where a certificate cannot go (JWT-SVID standard).

PyJWT does the JWS part. Header and claims are judged here, by type as well as by value, at the
time we are given, and the algorithm before any key is looked for.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, NoReturn, cast

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.bundle_document import JwtKey
from mesh.errors import RemoraError
from mesh.spiffe import InvalidSpiffeId, SpiffeId, TrustDomain

ALGORITHMS = frozenset(
    f"{family}{bits}" for family in ("RS", "ES", "PS") for bits in (256, 384, 512)
)
"""JWT-SVID 2.1: nothing else, above all neither `none` nor HMAC."""

HEADER_MEMBERS = frozenset({"alg", "kid", "typ"})
"""JWT-SVID 2: no others may be there."""

TYPES = frozenset({"JWT", "JOSE"})
"""JWT-SVID 2.3: what `typ` may say, if it is there."""

MAX_TOKEN_BYTES = 16 * 1024
"""A JWT-SVID has some 500 bytes; it travels in a header, and those are capped at 8 to 16 KiB."""

MAX_NUMERIC_DATE = 253402300799
"""The last second of the year 9999. Beyond it, and at NaN, arithmetic stops making sense."""

LEEWAY = timedelta(seconds=60)
"""How far the issuer's clock may be ahead (go-jose). `exp` gets none: a token dies when it says."""

SIGNING_ALGORITHM = "ES256"

_JWS = jwt.PyJWS(algorithms=sorted(ALGORITHMS))


class InvalidJwtSvid(RemoraError):
    """A token is not a JWT-SVID that can be accepted."""

    reason: ClassVar[str] = "invalid_jwt_svid"


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSvid:
    """A token and what it says; `claims` are all of its claims as JSON has them."""

    id: SpiffeId
    token: str = field(repr=False)
    audiences: tuple[str, ...]
    expires: datetime
    claims: Mapping[str, Any] = field(repr=False)


KeysByDomain = Mapping[TrustDomain, Mapping[str, JwtKey]]
"""Each trust domain with the keys that sign its tokens, by `kid`."""


def verify_jwt_svid(
    untrusted: str, keys: KeysByDomain, audiences: Collection[str], now: datetime
) -> JwtSvid:
    """Return what a token proves at `now` to one that goes by any of `audiences`.

    The key is looked up in the bundle of the subject's own trust domain (JWT-SVID 4 and 5).
    Raises InvalidJwtSvid; nothing else.
    """
    algorithm, kid = _read_header(untrusted)
    identity = _subject(_read_claims(_unverified_payload(untrusted)))
    key = _find_key(keys, identity, kid)
    svid = _judge(untrusted, _read_claims(_verified_payload(untrusted, key, algorithm)), now)
    if set(svid.audiences).isdisjoint(audiences):
        raise InvalidJwtSvid(
            f"the token of {svid.id} is for {', '.join(svid.audiences)[:120]}, "
            f"not for {' or '.join(sorted(audiences))[:120]}"
        )
    return svid


def sign_jwt_svid(
    key: ec.EllipticCurvePrivateKey,
    kid: str,
    *,
    identity: SpiffeId,
    audiences: Sequence[str],
    ttl: timedelta,
    now: datetime,
) -> JwtSvid:
    """Sign a token for `identity`, and check it as its receiver will. Raises InvalidJwtSvid."""
    issued = int(now.timestamp())
    claims = {
        "sub": str(identity),
        "aud": list(audiences),
        "iat": issued,
        "exp": issued + int(ttl.total_seconds()),
    }
    check_issued_claims(claims, identity, now)
    token = jwt.encode(claims, key, algorithm=SIGNING_ALGORITHM, headers={"kid": kid})
    keys = {identity.trust_domain: {kid: key.public_key()}}
    return verify_jwt_svid(token, keys, audiences, now)


def check_issued_claims(claims: Mapping[str, Any], identity: SpiffeId, now: datetime) -> None:
    """Check the claims of a token that is about to be handed out (SPIRE: ValidateWorkloadJWTSVID).

    Raises InvalidJwtSvid.
    """
    if not identity.path:
        raise InvalidJwtSvid(f"{identity} names a trust domain, not a workload")
    svid = _judge("", claims, now)
    if "nbf" in claims and claims["nbf"] > now.timestamp():
        raise InvalidJwtSvid(f"the token of {identity} would not be valid yet")
    if svid.id != identity:
        raise InvalidJwtSvid(f"the token is for {svid.id}, not for {identity}")


def _read_header(untrusted: str) -> tuple[str, str]:
    if len(untrusted) > MAX_TOKEN_BYTES:
        raise InvalidJwtSvid(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
    header = _decoded_part(untrusted, 0)
    if strange := sorted(set(header) - HEADER_MEMBERS):
        raise InvalidJwtSvid(f"the token's header has {strange[0][:40]!r}, which is not allowed")
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise InvalidJwtSvid(
            f"the token is signed with {str(algorithm)[:20]!r}: only RSA and ECDSA count"
        )
    if not isinstance(kid, str) or not kid:
        raise InvalidJwtSvid("the token does not name its key (kid)")
    if kind not in TYPES:
        raise InvalidJwtSvid(f"the token's type is {str(kind)[:20]!r}, neither JWT nor JOSE")
    return algorithm, kid


def _unverified_payload(untrusted: str) -> bytes:
    return _part(untrusted, 1)


def _decoded_part(untrusted: str, index: int) -> dict[str, Any]:
    return _read_claims(_part(untrusted, index))


def _part(untrusted: str, index: int) -> bytes:
    """Return one decoded part of a compact JWS (RFC 7515, 7.1)."""
    parts = untrusted.split(".")
    if len(parts) != 3 or not untrusted.isascii():
        raise InvalidJwtSvid(
            "the token is not a JWS in compact form: three parts with dots between"
        )
    try:
        return base64.b64decode(
            parts[index] + "=" * (-len(parts[index]) % 4), altchars=b"-_", validate=True
        )
    except (binascii.Error, ValueError) as error:
        raise InvalidJwtSvid("the token is not base64url") from error


def _find_key(keys: KeysByDomain, identity: SpiffeId, kid: str) -> JwtKey:
    bundle = keys.get(identity.trust_domain)
    if bundle is None:
        raise InvalidJwtSvid(
            f"the token is of {identity}, and no keys of trust domain {identity.trust_domain} "
            "are known"
        )
    key = bundle.get(kid)
    if key is None:
        raise InvalidJwtSvid(
            f"the token of {identity} is signed with a key that its trust domain does not "
            f"publish: {kid[:80]!r}"
        )
    return key


def _verified_payload(untrusted: str, key: JwtKey, algorithm: str) -> bytes:
    try:
        payload = _JWS.decode(untrusted, key, algorithms=[algorithm])
    except jwt.InvalidSignatureError as error:
        raise InvalidJwtSvid("the token's signature is wrong") from error
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise InvalidJwtSvid(f"the token cannot be checked: {error}") from error
    return cast("bytes", payload)


def _read_claims(payload: bytes) -> dict[str, Any]:
    try:
        claims: Any = json.loads(payload, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidJwtSvid(f"the token is not proper JSON: {error}") from error
    if not isinstance(claims, dict):
        raise InvalidJwtSvid("the token is not made of JSON objects")
    return cast("dict[str, Any]", claims)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse repeated members: two parsers could each believe another one (RFC 8725, 2.4)."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is there twice")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _judge(token: str, claims: Mapping[str, Any], now: datetime) -> JwtSvid:
    identity, moment = _subject(claims), now.timestamp()
    expires = _time(claims, "exp")
    if expires <= moment:
        raise InvalidJwtSvid(f"the token of {identity} expired {moment - expires:.0f} s ago")
    for name in ("nbf", "iat"):
        if name in claims and _time(claims, name) > moment + LEEWAY.total_seconds():
            raise InvalidJwtSvid(
                f"the {name} of the token of {identity} lies in the future: set the clocks"
            )
    return JwtSvid(
        id=identity,
        token=token,
        audiences=_audiences(claims),
        expires=datetime.fromtimestamp(expires, UTC),
        claims=claims,
    )


def _subject(claims: Mapping[str, Any]) -> SpiffeId:
    subject = claims.get("sub")
    if not isinstance(subject, str):
        raise InvalidJwtSvid("the token has no subject (sub)")
    try:
        return SpiffeId.parse(subject)
    except InvalidSpiffeId as error:
        raise InvalidJwtSvid(f"the token's subject: {error}") from error


def _time(claims: Mapping[str, Any], name: str) -> float:
    """Return a NumericDate (RFC 7519, section 2); a bool is an int to Python, and is refused."""
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidJwtSvid(f"the token's {name} is missing or not a number")
    if not 0 <= value <= MAX_NUMERIC_DATE:
        raise InvalidJwtSvid(f"the token's {name} is not a time")
    return float(value)


def _audiences(claims: Mapping[str, Any]) -> tuple[str, ...]:
    found: object = claims.get("aud")
    named = cast("list[object]", found) if isinstance(found, list) else [found]
    texts = [value for value in named if isinstance(value, str) and value]
    if not texts or len(texts) != len(named):
        raise InvalidJwtSvid("the token's aud is missing, empty, or holds what is no text")
    return tuple(texts)
