"""Istio's admission rules for a RequestAuthentication."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import DecodeError, convert, json

from mesh.resources.checks import http_url, positive_duration
from mesh.resources.problem import Finding
from mesh.resources.security import JwtRule, RequestAuthenticationSpec
from mesh.resources.tree import Path
from mesh.resources.validate_common import selector_findings, target_findings

_HEADER = re.compile(r"[-_A-Za-z0-9]+")
_BASE64URL = re.compile(r"[-_A-Za-z0-9]+={0,2}")
_KEY_FIELDS: Mapping[str, tuple[str, ...]] = {
    "RSA": ("n", "e"),
    "EC": ("x", "y"),
    "OKP": ("x",),
    "oct": ("k",),
}
_CURVES: Mapping[str, frozenset[str]] = {
    "EC": frozenset({"P-256", "P-384", "P-521", "secp256k1"}),
    "OKP": frozenset({"Ed25519", "X25519", "Ed448", "X448"}),
}


def request_authentication_findings(spec: RequestAuthenticationSpec) -> Iterator[Finding]:
    """Yield what is wrong or doubtful in a RequestAuthentication."""
    yield from target_findings(spec.selector, spec.target_ref, spec.target_refs)
    yield from selector_findings(spec.selector)
    for index, rule in enumerate(spec.jwt_rules):
        yield from _rule_findings(rule, ("spec", "jwtRules", index))


def _rule_findings(rule: JwtRule, path: Path) -> Iterator[Finding]:
    if rule.issuer is None and rule.jwks_uri is None:
        yield Finding(path, "a rule needs an issuer or a jwksUri")
    if rule.jwks is not None and rule.jwks_uri is not None:
        yield Finding((*path, "jwks"), "only one of jwks and jwksUri can be set")
    if rule.jwks_uri is not None and (wrong := http_url(rule.jwks_uri)):
        yield Finding((*path, "jwksUri"), wrong)
    if rule.jwks:
        yield from _key_set_findings(rule.jwks, (*path, "jwks"))
    if rule.timeout is not None and (wrong := positive_duration(rule.timeout)):
        yield Finding((*path, "timeout"), wrong)
    for index, output in enumerate(rule.output_claim_to_headers):
        if not _HEADER.fullmatch(output.header):
            place = (*path, "outputClaimToHeaders", index, "header")
            yield Finding(place, f"{output.header!r} is not a header name")


def _key_set_findings(text: str, path: Path) -> Iterator[Finding]:
    """Check an inline key set: one JSON Web Key, or `{"keys": [...]}` (RFC 7517)."""
    try:
        data = json.decode(text.encode(), type=dict[str, Any])
        keys = convert(data.get("keys", [data]), list[dict[str, Any]])
    except (DecodeError, UnicodeEncodeError, RecursionError) as error:
        yield Finding(path, f"is not a JSON Web Key Set: {error}")
        return
    for index, key in enumerate(keys):
        if not _is_key(key):
            yield Finding(path, f"key {index} of the set is not a JSON Web Key")
        elif "d" in key:
            yield Finding(
                path,
                f"key {index} of the set is a PRIVATE key: whoever can read this resource can "
                "sign tokens; publish only the public half",
                warning=True,
            )


def _is_key(key: Mapping[str, Any]) -> bool:
    kind = key.get("kty")
    if not isinstance(kind, str) or kind not in _KEY_FIELDS:
        return False
    if kind in _CURVES and key.get("crv") not in _CURVES[kind]:
        return False
    values = [key.get(name) for name in _KEY_FIELDS[kind]]
    return all(isinstance(value, str) and _BASE64URL.fullmatch(value) for value in values)
