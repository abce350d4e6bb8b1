"""Who is calling? Ways to prove it, tried in order; the first that succeeds decides.

Why the others failed is gathered for the log. The caller never learns it: a precise refusal
would help only somebody who is guessing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from cryptography import x509

from ca.errors import (
    AuthenticationError,
    CallerUnknown,
    CertificateExpired,
    CertificateForeign,
    CertificateRevoked,
    KeysUnavailable,
    NoCredential,
    TokenKeyUnknown,
)
from ca.join_tokens import JoinTokens
from ca.key_cache import KeyCache
from ca.tokens import TrustedIssuer, verify_join_token, verify_token
from mesh.spiffe import ServiceAccount, SpiffeId, TrustDomain, service_account_id
from mesh.svid import InvalidSvid, leaf_id

BEARER = "Bearer "
"""Istio: this prefix, exactly so written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A caller who proved an identity, and the authenticator that believed it.

    Only authenticators make these, and only from these are certificates made.
    """

    identity: SpiffeId
    authenticator: str
    spend: Callable[[], Awaitable[None]] | None = field(default=None, compare=False)
    """Uses up a credential that works once. Due before a certificate leaves; may refuse by
    raising AuthenticationError. Not part of the proof itself, so that a caller whose request is
    refused for another fault can correct it and come again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """What a caller shows of itself.

    `authorization` has every value of that metadata, in the order they came. `chain` is the client
    certificate's path as TLS verified it, leaf first; empty without one.
    """

    authorization: Sequence[str] = ()
    chain: Sequence[x509.Certificate] = ()


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTokenAuthenticator:
    """Believes bearer tokens of an issuer whose keys may change while we run.

    A key we do not know makes us ask again for the issuer's keys, at a bounded rate. Not for a
    token that could not be believed with any key.
    """

    name: str
    keys: KeyCache
    issuer: str | None
    audiences: frozenset[str]
    trust_domain: TrustDomain

    async def authenticate(self, presented: Presented, now: datetime) -> Caller:
        """Return the service account that the bearer token names."""
        token = bearer_token(presented.authorization)
        if self._needs_other_keys(token, now):
            await self.keys.refresh(now)
        else:
            await self.keys.keep_fresh(now)
        if not self.keys.usable(now) and self.keys.failure is not None:
            raise KeysUnavailable(f"the issuer's keys could not be fetched: {self.keys.failure}")
        account = self._verify(token, now)
        return Caller(
            identity=service_account_id(self.trust_domain, account), authenticator=self.name
        )

    def _needs_other_keys(self, token: str, now: datetime) -> bool:
        try:
            self._verify(token, now)
        except TokenKeyUnknown:
            return True
        return False

    def _verify(self, token: str, now: datetime) -> ServiceAccount:
        issuer = TrustedIssuer(
            keys=self.keys.usable(now), issuer=self.issuer, audiences=self.audiences
        )
        return verify_token(token, issuer, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinTokenAuthenticator:
    """Believes the CA's own one-time tokens, for machines without an identity of another kind."""

    name: str
    issuer: TrustedIssuer
    tokens: JoinTokens
    trust_domain: TrustDomain

    async def authenticate(self, presented: Presented, now: datetime) -> Caller:
        """Return the service account of a token not used yet; `Caller.spend` uses it up."""
        account, token_id = verify_join_token(
            bearer_token(presented.authorization), self.issuer, now
        )
        await self.tokens.check_unused(token_id)

        async def spend() -> None:
            await self.tokens.spend(token_id)

        return Caller(
            identity=service_account_id(self.trust_domain, account),
            authenticator=self.name,
            spend=spend,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateAuthenticator:
    """Believes the certificate that TLS verified: how a workload renews without a token.

    Istio takes every SAN of the certificate for an identity; here it must hold exactly one URI,
    a SPIFFE ID of the CA's own trust domain.
    """

    trust_domain: TrustDomain
    revoked: Callable[[], Collection[int]] = frozenset[int]
    name: str = "client-certificate"

    async def authenticate(self, presented: Presented, now: datetime) -> Caller:
        """Return whom the client certificate names."""
        if not presented.chain:
            raise NoCredential("no client certificate was shown")
        leaf = presented.chain[0]
        try:
            identity = leaf_id(leaf)
        except InvalidSvid as error:
            raise CertificateForeign(f"the client certificate is no X.509-SVID: {error}") from error
        if not identity.member_of(self.trust_domain):
            raise CertificateForeign(
                f"the client certificate names {identity}, not of trust domain {self.trust_domain}"
            )
        # TLS checked both when the connection began, which may be long ago.
        if leaf.serial_number in self.revoked():
            raise CertificateRevoked(
                f"the client certificate of {identity} with serial number {leaf.serial_number:x} "
                "was revoked"
            )
        if now > leaf.not_valid_after_utc:
            raise CertificateExpired(
                f"the client certificate of {identity} ended at {leaf.not_valid_after_utc}, after "
                "its connection was opened: reconnect with a valid one, or with a token"
            )
        return Caller(identity=identity, authenticator=self.name)


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
