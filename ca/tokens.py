"""Service-account tokens: JWTs that say who a workload is, made and judged.

PyJWT does the JWS part: form and signature. Claims are judged here, by type as well as by value
and at the time we are given: PyJWT would use the system's clock, take `exp` for optional and
accept "123" for a number.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NoReturn, cast

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from ca.errors import (
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
from ca.jwks import ALGORITHMS, TokenKey, token_key
from mesh.spiffe import ServiceAccount

OWN_ISSUER = "remora-ca"
"""The `iss` of the tokens that the CA makes itself."""

JOIN_ISSUER = "remora-ca/join"
"""The `iss` of one-time tokens: another one, so that they are never taken for reusable ones."""

OWN_ALGORITHM = "ES256"

MAX_TOKEN_BYTES = 16 * 1024
"""A Kubernetes token has about 1 KiB; gRPC implementations cap a whole header list at 8 to 16."""

NOT_BEFORE_LEEWAY = timedelta(seconds=60)
"""How far the issuer's clock may be ahead of ours. `exp` gets none: a token dies when it says."""

MAX_NUMERIC_DATE = 253402300799
"""The last second of the year 9999. Beyond it, and at NaN, arithmetic stops making sense."""

SUBJECT_PREFIX = ("system", "serviceaccount")

_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_ACCOUNT = re.compile(rf"{_LABEL}(\.{_LABEL})*")
"""Kubernetes: a namespace is a DNS label, a service account's name may be several (RFC 1123)."""

MAX_ACCOUNT_NAME = 253
"""RFC 1123: the longest DNS name."""

_JWS = jwt.PyJWS(algorithms=sorted(ALGORITHMS))
"""Knows nothing but the algorithms we accept: `none` and HMAC are not even there to be chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedIssuer:
    """Whose tokens are believed: by which keys, of which `iss` (None: any), for which audiences."""

    keys: tuple[TokenKey, ...]
    issuer: str | None
    audiences: frozenset[str]


def create_token(
    key: ec.EllipticCurvePrivateKey,
    account: ServiceAccount,
    *,
    audience: str,
    ttl: timedelta,
    now: datetime,
) -> str:
    """Sign a token that says its bearer is `account`, until `now` + `ttl`."""
    return _sign(key, OWN_ISSUER, account, audience=audience, ttl=ttl, now=now)


def create_join_token(
    key: ec.EllipticCurvePrivateKey,
    account: ServiceAccount,
    *,
    token_id: str,
    audience: str,
    ttl: timedelta,
    now: datetime,
) -> str:
    """Sign a token that works once; the CA knows by `token_id` whether it was used."""
    return _sign(key, JOIN_ISSUER, account, audience=audience, ttl=ttl, now=now, jti=token_id)


def _sign(
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    account: ServiceAccount,
    *,
    audience: str,
    ttl: timedelta,
    now: datetime,
    **more: str,
) -> str:
    issued = int(now.timestamp())
    claims = {
        "iss": issuer,
        "sub": ":".join([*SUBJECT_PREFIX, account.namespace, account.name]),
        "aud": [audience],
        "iat": issued,
        "nbf": issued,
        "exp": issued + int(ttl.total_seconds()),
        **more,
    }
    headers = {"kid": key_id(key.public_key())}
    return jwt.encode(claims, key, algorithm=OWN_ALGORITHM, headers=headers)


def own_issuer(
    key: ec.EllipticCurvePublicKey, audiences: Iterable[str], issuer: str = OWN_ISSUER
) -> TrustedIssuer:
    """Trust the tokens made here with the private half of `key`; JOIN_ISSUER for one-time ones."""
    return TrustedIssuer(
        keys=(token_key(key, key_id(key), OWN_ALGORITHM),),
        issuer=issuer,
        audiences=frozenset(audiences),
    )


def key_id(key: ec.EllipticCurvePublicKey) -> str:
    """Return the key's thumbprint (RFC 7638)."""
    jwk = ECAlgorithm.to_jwk(key, as_dict=True)
    members = {name: jwk[name] for name in ("crv", "kty", "x", "y")}
    canonical = json.dumps(members, sort_keys=True, separators=(",", ":")).encode("ascii")
    return base64.urlsafe_b64encode(hashlib.sha256(canonical).digest()).rstrip(b"=").decode("ascii")


def verify_token(untrusted: str, trusted: TrustedIssuer, now: datetime) -> ServiceAccount:
    """Return the account that a token proves at `now`.

    In order: size, form, algorithm, key, signature; then iss, exp, nbf, aud, sub.
    Raises AuthenticationError leaves; nothing else.
    """
    return parse_subject(_text(_proven_claims(untrusted, trusted, now), "sub"))


def verify_join_token(
    untrusted: str, trusted: TrustedIssuer, now: datetime
) -> tuple[ServiceAccount, str]:
    """Return account and token ID of a one-time token; whether it was used is not known here.

    Otherwise as `verify_token`.
    """
    claims = _proven_claims(untrusted, trusted, now)
    return parse_subject(_text(claims, "sub")), _text(claims, "jti")


def _proven_claims(untrusted: str, trusted: TrustedIssuer, now: datetime) -> dict[str, Any]:
    algorithm, kid = _read_header(untrusted)
    key = _find_key(trusted.keys, algorithm, kid)
    claims = _read_claims(_verified_payload(untrusted, key, algorithm))
    _check_issuer(claims, trusted.issuer)
    _check_time(claims, now)
    _check_audience(claims, trusted.audiences)
    return claims


def parse_subject(subject: str) -> ServiceAccount:
    """Return the account of `system:serviceaccount:NS:SA`: exactly these four parts.

    Raises TokenWrongSubject.
    """
    parts = subject.split(":")
    if len(parts) != 4 or tuple(parts[:2]) != SUBJECT_PREFIX:
        raise TokenWrongSubject(
            f"the token's subject is {subject[:80]!r}, not system:serviceaccount:NAMESPACE:NAME"
        )
    namespace, name = parts[2:]
    if not is_account_name(ServiceAccount(namespace, name)):
        raise TokenWrongSubject(
            f"the token's subject {subject[:80]!r} names a service account that Kubernetes "
            "would not allow"
        )
    return ServiceAccount(namespace, name)


def is_account_name(account: ServiceAccount) -> bool:
    """Tell whether namespace and name are such as Kubernetes allows."""
    return bool(
        _NAMESPACE.fullmatch(account.namespace)
        and _ACCOUNT.fullmatch(account.name)
        and len(account.name) <= MAX_ACCOUNT_NAME
    )


def _read_header(untrusted: str) -> tuple[str, str | None]:
    """Return algorithm and key id, the algorithm refused here, before any key is looked at."""
    if len(untrusted) > MAX_TOKEN_BYTES:
        raise TokenMalformed(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
    header = _parse_header(untrusted)
    if "crit" in header:
        raise TokenMalformed("the token demands an extension that is not understood here (crit)")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise TokenAlgorithmRefused(
            f"the token is signed with {str(algorithm)[:20]!r}: only RSA and ECDSA signatures count"
        )
    kid = header.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise TokenMalformed("the token's kid is not a string")
    return algorithm, kid


def _parse_header(untrusted: str) -> dict[str, Any]:
    """Read the first part alone: PyJWT reads all of a token, and will do so once more."""
    try:
        first, _, _ = untrusted.split(".")
        data = base64.b64decode(first + "=" * (-len(first) % 4), altchars=b"-_", validate=True)
        header: Any = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise TokenMalformed(f"the token is not a JWT: {error}") from error
    if not isinstance(header, dict):
        raise TokenMalformed("the token's header is not a JSON object")
    return cast("dict[str, Any]", header)


def _find_key(keys: tuple[TokenKey, ...], algorithm: str, kid: str | None) -> TokenKey:
    """Pick the one key that the token means; without `kid` only if there is no choice."""
    fitting = [key for key in keys if algorithm in key.algorithms]
    if kid is not None:
        fitting = [key for key in fitting if key.kid == kid]
    if len(fitting) != 1:
        name = f"key {kid[:80]!r}" if kid is not None else "a key it does not name"
        raise TokenKeyUnknown(
            f"the token is signed with {name} and {algorithm}: {len(fitting)} of our keys fit"
        )
    return fitting[0]


def _verified_payload(untrusted: str, key: TokenKey, algorithm: str) -> bytes:
    try:
        payload = _JWS.decode(untrusted, key.key, algorithms=[algorithm])
    except jwt.InvalidSignatureError as error:
        raise TokenSignatureInvalid("the token's signature is wrong") from error
    except (jwt.PyJWTError, ValueError) as error:
        raise TokenMalformed(f"the token cannot be checked: {error}") from error
    return cast("bytes", payload)


def _read_claims(payload: bytes) -> dict[str, Any]:
    try:
        claims: Any = json.loads(
            payload, object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise TokenMalformed(f"the token's claims are not proper JSON: {error}") from error
    if not isinstance(claims, dict):
        raise TokenMalformed("the token's claims are not a JSON object")
    return cast("dict[str, Any]", claims)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse repeated members: two parsers could each believe another one (RFC 8725, 2.4)."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is there twice")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_issuer(claims: dict[str, Any], issuer: str | None) -> None:
    if issuer is None:
        return
    found = _text(claims, "iss")
    if found != issuer:
        raise TokenWrongIssuer(f"the token's issuer is {found[:80]!r}, not {issuer!r}")


def _check_time(claims: dict[str, Any], now: datetime) -> None:
    moment = now.timestamp()
    expires = _number(claims, "exp")
    if expires <= moment:
        raise TokenExpired(
            f"the token expired {_seconds(moment - expires)} ago: get a new one, or set the clocks"
        )
    if "nbf" not in claims:
        return
    begins = _number(claims, "nbf")
    if begins > moment + NOT_BEFORE_LEEWAY.total_seconds():
        raise TokenNotYetValid(
            f"the token begins only in {_seconds(begins - moment)}: set the clocks"
        )


def _check_audience(claims: dict[str, Any], audiences: frozenset[str]) -> None:
    found = claims.get("aud")
    named = [found] if isinstance(found, str) else found
    if not isinstance(named, list):
        raise TokenClaimInvalid("the token's aud is missing, or neither a string nor a list")
    values = cast("list[object]", named)
    if not all(isinstance(value, str) for value in values):
        raise TokenClaimInvalid("the token's aud holds something that is not a string")
    if audiences.isdisjoint(values):
        raise TokenWrongAudience(
            f"the token is for {str(values)[:120]}, not for {' or '.join(sorted(audiences))}"
        )


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise TokenClaimInvalid(f"the token's {name} is missing or not a string")
    return value


def _number(claims: dict[str, Any], name: str) -> float:
    """Return a NumericDate (RFC 7519, section 2); a bool is an int to Python, and is refused."""
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenClaimInvalid(f"the token's {name} is missing or not a number")
    if not 0 <= value <= MAX_NUMERIC_DATE:
        raise TokenClaimInvalid(f"the token's {name} is not a time")
    return value


def _seconds(count: float) -> str:
    return f"{count:.0f} s"
