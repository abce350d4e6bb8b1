"""The service-account token as its bearer sees it: opaque, but good for an explanation.

Nothing read from a token here is trusted: the CA alone decides. The claims help to name the
identity to ask for, and to tell an operator why the CA may have said no.
"""

from __future__ import annotations

import base64
import binascii
import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import cast

from agent.errors import TokenMissing, TokenUnusable
from mesh.api import TOKEN_AUDIENCE
from mesh.spiffe import InvalidSpiffeId, ServiceAccount

MAX_TOKEN_BYTES = 16 * 1024
"""More than any issuer writes, and all that a gRPC peer takes as headers."""

TOKEN_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-._~+/=")
"""RFC 6750, section 2.1: what may stand after `Bearer `."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token says of itself, unverified; None for what it does not say, or not properly."""

    subject: str | None = None
    audiences: tuple[str, ...] = ()
    expires: float | None = None


def parse_token(data: bytes, path: Path) -> str | None:
    """Return the trimmed token in a token file's bytes, None if there is none (as Istio).

    Raises TokenUnusable for what cannot be sent as a bearer token.
    """
    token = data.strip().decode("ascii", "replace")
    if len(token) > MAX_TOKEN_BYTES or not set(token) <= TOKEN_CHARACTERS:
        raise TokenUnusable(
            f"token file {path} does not hold a token: it must be one word of at most "
            f"{MAX_TOKEN_BYTES} bytes, such as a JWT"
        )
    return token or None


def read_claims(token: str) -> Claims:
    """Decode what a JWT claims, without checking anything. Never raises."""
    try:
        _, payload, _ = token.split(".")
        padded = payload + "=" * (-len(payload) % 4)
        decoded: object = json.loads(base64.urlsafe_b64decode(padded))
    except (ValueError, binascii.Error, RecursionError):
        return Claims()
    if not isinstance(decoded, dict):
        return Claims()
    claims = cast("Mapping[str, object]", decoded)
    subject = claims.get("sub")
    return Claims(
        subject=subject if isinstance(subject, str) else None,
        audiences=_audiences(claims.get("aud")),
        expires=_number(claims.get("exp")),
    )


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _audiences(value: object) -> tuple[str, ...]:
    listed = cast("list[object]", value) if isinstance(value, list) else [value]
    return tuple(entry for entry in listed if isinstance(entry, str))


def account_of(token: str | None, path: Path) -> ServiceAccount:
    """Return the account that a token speaks for: `system:serviceaccount:NS:SA` in its `sub`.

    Raises TokenMissing, TokenUnusable.
    """
    if token is None:
        raise TokenMissing(
            f"token file {path} is missing or empty, and without --service-account the token is "
            "where the identity is read from: create it, for example with `remora token create`"
        )
    subject = read_claims(token).subject
    match (subject or "").split(":"):
        case ["system", "serviceaccount", namespace, name]:
            try:
                return ServiceAccount.parse(f"{namespace}/{name}")
            except InvalidSpiffeId as error:
                raise TokenUnusable(f"token file {path}: its subject {error}") from error
        case _:
            raise TokenUnusable(
                f"token file {path} is not a service-account token (its subject is {subject!r}): "
                "give --service-account NS/SA, or another token"
            )


def explain_rejection(token: str | None, path: Path, now: datetime) -> str:
    """Guess why the CA said UNAUTHENTICATED, from what the token claims."""
    if token is None:
        return f"no token was sent, since token file {path} is missing or empty: create it"
    claims = read_claims(token)
    if claims.expires is not None and claims.expires <= now.timestamp():
        return (
            f"the token in {path} expired {now.timestamp() - claims.expires:.0f} s ago by this "
            "machine's clock: renew it, or check the clock"
        )
    if claims.audiences and TOKEN_AUDIENCE not in claims.audiences:
        return (
            f"the token in {path} is for audience {', '.join(claims.audiences)}, where CAs expect "
            f"{TOKEN_AUDIENCE}: create one for this CA"
        )
    return (
        f"check the token in {path}: its audience, its expiry, that this CA knows its issuer; "
        "and the CA's clock. The CA's log says which it was"
    )
