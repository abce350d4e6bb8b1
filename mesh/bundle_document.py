"""Trust bundles as documents (SPIFFE Trust Domain and Bundle, sections 4 and 5).

A document is a JWK set. It does not name its trust domain, so whoever fetched it has to say. What
is not understood is left out entry by entry, as the standard wants, for an entry left out grants
no trust. What is understood and malformed makes the whole document invalid: its reader then keeps
the bundle it had, and does not go on with half of a new one.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError

from mesh.bundle import InvalidBundle, TrustBundle
from mesh.spiffe import InvalidSpiffeId, TrustDomain

MAX_DOCUMENT = 1024 * 1024
"""Bytes. About a thousand roots; a real bundle has three."""

MAX_SEQUENCE = 2**64 - 1
"""The standard asks for 64 bits, so nobody may count further."""

MAX_REFRESH_HINT = timedelta(days=3650)
"""Nobody means to wait longer; and a timedelta could not hold every integer."""

X509_USE = "x509-svid"
JWT_USE = "jwt-svid"

JwtKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
"""Keys for RS, PS and ES signatures: JWT-SVID allows no others."""

_Required = TypeVar("_Required")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleDocument:
    """What a trust domain publishes: roots for certificates, keys for tokens, and advice.

    `sequence` grows with every change. `refresh_hint` says how often to look; None if it does not.
    """

    roots: TrustBundle
    jwt_keys: Mapping[str, JwtKey]
    sequence: int | None = None
    refresh_hint: timedelta | None = None

    @property
    def trust_domain(self) -> TrustDomain:
        """The trust domain that the document is about."""
        return self.roots.trust_domain

    def to_json(self) -> bytes:
        """Write the document as a JWK set."""
        document: dict[str, Any] = {
            "keys": [
                *(_x509_entry(authority) for authority in self.roots.authorities),
                *(_jwt_entry(kid, key) for kid, key in self.jwt_keys.items()),
            ]
        }
        if self.sequence is not None:
            document["spiffe_sequence"] = self.sequence
        if self.refresh_hint is not None:
            document["spiffe_refresh_hint"] = int(self.refresh_hint.total_seconds())
        return json.dumps(document).encode()


def parse_bundle(trust_domain: TrustDomain, text: bytes) -> BundleDocument:
    """Read the bundle of `trust_domain` from a JWK set. Raises InvalidBundle."""
    return _bundle(trust_domain, _load(text, f"the bundle of {trust_domain}"))


def parse_bundle_map(text: bytes) -> Mapping[TrustDomain, BundleDocument]:
    """Read `{"trust_domains": {NAME: bundle}}`; hints inside are ignored. Raises InvalidBundle."""
    document = _object(_load(text, "the bundle map"), "the bundle map")
    if "trust_domains" not in document:
        raise InvalidBundle("the bundle map has no member `trust_domains`")
    named = _object(document["trust_domains"], "`trust_domains` in the bundle map")
    bundles: dict[TrustDomain, BundleDocument] = {}
    for name, member in named.items():
        bundle = _bundle(_trust_domain(name), member)
        bundles[bundle.trust_domain] = BundleDocument(
            roots=bundle.roots, jwt_keys=bundle.jwt_keys, sequence=bundle.sequence
        )
    return bundles


def _trust_domain(name: str) -> TrustDomain:
    try:
        return TrustDomain(name)
    except InvalidSpiffeId as error:
        raise InvalidBundle(f"the bundle map names no trust domain: {error}") from error


def _load(text: bytes, what: str) -> object:
    """Decode strict JSON: no duplicate member, no NaN, UTF-8 only, and not without end."""
    if len(text) > MAX_DOCUMENT:
        raise InvalidBundle(f"{what} has more than {MAX_DOCUMENT} bytes")
    try:
        return cast(
            "object",
            json.loads(
                text.decode("utf-8"),
                object_pairs_hook=_members,
                parse_constant=_no_constant,
            ),
        )
    except (ValueError, RecursionError) as error:
        raise InvalidBundle(f"{what} is not JSON: {error}") from error


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise InvalidBundle(f"the member {repeated[:80]!r} is there more than once")
    return members


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _bundle(trust_domain: TrustDomain, document: object) -> BundleDocument:
    what = f"the bundle of {trust_domain}"
    members = _object(document, what)
    if "keys" not in members:
        raise InvalidBundle(f"{what} has no member `keys`; an empty one would trust nothing")
    entries = _array(members["keys"], f"`keys` in {what}")
    roots: list[x509.Certificate] = []
    jwt_keys: dict[str, JwtKey] = {}
    for position, member in enumerate(entries):
        place = f"key {position} of {what}"
        entry = _object(member, place)
        if entry.get("use") == X509_USE and _known_type(entry):
            roots.extend(_x509_authority(entry, place))
        elif entry.get("use") == JWT_USE and _known_type(entry):
            _add_jwt_key(jwt_keys, entry, place)
    hint = _whole_number(members, "spiffe_refresh_hint", what, MAX_REFRESH_HINT.total_seconds())
    return BundleDocument(
        roots=TrustBundle.of(trust_domain, roots),
        jwt_keys=jwt_keys,
        sequence=_whole_number(members, "spiffe_sequence", what, MAX_SEQUENCE),
        refresh_hint=None if hint is None else timedelta(seconds=hint),
    )


def _known_type(entry: Mapping[str, object]) -> bool:
    return entry.get("kty") in ("EC", "RSA")


def _x509_authority(entry: Mapping[str, object], place: str) -> list[x509.Certificate]:
    """Return the certificate of an entry: the first if there are more, none if there is none."""
    chain = _array(entry.get("x5c", []), f"`x5c` in {place}")
    if not chain:
        return []
    try:
        der = base64.b64decode(_string(chain[0], f"`x5c` in {place}"), validate=True)
        return [x509.load_der_x509_certificate(der)]
    except (binascii.Error, ValueError, x509.InvalidVersion) as error:
        raise InvalidBundle(f"{place} is not a base64 DER certificate: {error}") from error


def _add_jwt_key(keys: dict[str, JwtKey], entry: Mapping[str, object], place: str) -> None:
    kid = _string(entry.get("kid", ""), f"`kid` in {place}")
    if not kid:
        raise InvalidBundle(f"{place} is for tokens and has no `kid`, by which they would name it")
    if kid in keys:
        raise InvalidBundle(f"{place} has the `kid` {kid[:80]!r} of another key")
    keys[kid] = _public_key(entry, place)


def _public_key(entry: Mapping[str, object], place: str) -> JwtKey:
    algorithm = RSAAlgorithm if entry["kty"] == "RSA" else ECAlgorithm
    try:
        key = algorithm.from_jwk(dict(entry))
    except (InvalidKeyError, ValueError, TypeError) as error:
        raise InvalidBundle(f"{place} is not a public key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise InvalidBundle(f"{place} is a private key, which must never be published")
    return key


def _x509_entry(authority: x509.Certificate) -> dict[str, Any]:
    key = authority.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise InvalidBundle(f"a root with a {type(key).__name__} cannot be published in a bundle")
    der = authority.public_bytes(serialization.Encoding.DER)
    return {"use": X509_USE, **_jwk(key), "x5c": [base64.b64encode(der).decode()]}


def _jwt_entry(kid: str, key: JwtKey) -> dict[str, Any]:
    return {"use": JWT_USE, "kid": kid, **_jwk(key)}


def _jwk(key: JwtKey) -> dict[str, Any]:
    if isinstance(key, rsa.RSAPublicKey):
        jwk = RSAAlgorithm.to_jwk(key, as_dict=True)
    else:
        jwk = ECAlgorithm.to_jwk(key, as_dict=True)
    return {name: jwk[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in jwk}


def _object(value: object, what: str) -> Mapping[str, object]:
    return cast("Mapping[str, object]", _required(value, dict, f"{what} is not a JSON object"))


def _array(value: object, what: str) -> Sequence[object]:
    return cast("Sequence[object]", _required(value, list, f"{what} is not a JSON array"))


def _string(value: object, what: str) -> str:
    return _required(value, str, f"{what} is not a JSON string")


def _required(value: object, kind: type[_Required], complaint: str) -> _Required:
    if not isinstance(value, kind):
        raise InvalidBundle(complaint)
    return value


def _whole_number(
    members: Mapping[str, object], name: str, what: str, maximum: float
) -> int | None:
    value = members.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= maximum:
        raise InvalidBundle(f"`{name}` in {what} is not a whole number from 0 to {int(maximum)}")
    return value
