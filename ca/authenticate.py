"""Who is calling? Ways to prove it, tried in order; the first that succeeds decides.

Why the others failed is gathered for the log. The caller never learns it: a precise refusal
would help only somebody who is guessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ca.errors import AuthenticationError, CallerUnknown, NoCredential
from ca.tokens import TrustedIssuer, verify_token
from mesh.spiffe import SpiffeId, TrustDomain, service_account_id

BEARER = "Bearer "
"""Istio: this prefix, exactly so written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A caller who proved an identity, and the authenticator that believed it.

    Only authenticators make these, and only from these are certificates made.
    """

    identity: SpiffeId
    authenticator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """What a caller shows of itself: every `authorization` value, in the order they came."""

    authorization: Sequence[str] = ()


class Authenticator(Protocol):
    """One way of proving an identity."""

    @property
    def name(self) -> str:
        """What the log calls it."""
        ...

    async def authenticate(self, presented: Presented, now: datetime) -> Caller:
        """Return who the caller is. Raises AuthenticationError leaves."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAuthenticator:
    """Believes bearer tokens of one issuer, as service accounts of one trust domain."""

    name: str
    issuer: TrustedIssuer
    trust_domain: TrustDomain

    async def authenticate(self, presented: Presented, now: datetime) -> Caller:
        """Return the service account that the bearer token names."""
        account = verify_token(bearer_token(presented.authorization), self.issuer, now)
        return Caller(
            identity=service_account_id(self.trust_domain, account), authenticator=self.name
        )


async def identify(
    authenticators: Sequence[Authenticator], presented: Presented, now: datetime
) -> Caller:
    """Return who the caller is by the first authenticator that knows. Raises CallerUnknown."""
    failures: list[tuple[str, AuthenticationError]] = []
    for authenticator in authenticators:
        try:
            return await authenticator.authenticate(presented, now)
        except AuthenticationError as error:
            failures.append((authenticator.name, error))
    raise CallerUnknown(failures)


def bearer_token(authorization: Sequence[str]) -> str:
    """Return the token of the first value that starts with `Bearer `. Raises NoCredential."""
    for value in authorization:
        if value.startswith(BEARER):
            token = value.removeprefix(BEARER)
            if not token:
                raise NoCredential("the bearer token is empty")
            return token
    if authorization:
        raise NoCredential("the authorization metadata holds no bearer token")
    raise NoCredential("no authorization metadata was sent")
