from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import trio

from ca.authenticate import Presented, RemoteTokenAuthenticator
from ca.errors import AuthenticationError, KeysUnavailable, TokenAlgorithmRefused, TokenKeyUnknown
from ca.jwks import TokenKey, token_key
from ca.key_cache import MAX_AGE, MAX_STALE, MIN_INTERVAL, KeyCache
from mesh.errors import RemoraError
from tests.ca.workshop import CLUSTER, WEB, claims, rsa_key, sign_token
from tests.pki import NOW

OLD, NEW = (token_key(rsa_key(exponent=e).public_key(), k) for e, k in [(65537, "k1"), (3, "k2")])


class Issuer:
    """An issuer whose keys and health a test decides; counts how often it is asked."""

    def __init__(self, *keys: TokenKey) -> None:
        self.keys = keys
        self.down = False
        self.asked = 0

    async def fetch(self) -> tuple[TokenKey, ...]:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.down:
            raise RemoraError("the issuer is down")
        return self.keys


class Caller:
    def __init__(self, issuer: Issuer) -> None:
        self.authenticator = RemoteTokenAuthenticator(
            name="oidc",
            keys=KeyCache(issuer.fetch, "test"),
            issuer="https://issuer.test",
            audiences=frozenset({"istio-ca"}),
            trust_domain=CLUSTER,
        )

    async def __call__(self, kid: str, at: datetime = NOW) -> None:
        """Come with a good token of key `kid`."""
        key = rsa_key(exponent=65537 if kid == "k1" else 3)
        expires = int(at.timestamp()) + 60
        await self.show(sign_token(claims(exp=expires), key, kid=kid), at)

    async def show(self, token: str, at: datetime = NOW) -> None:
        presented = Presented(authorization=[f"Bearer {token}"])
        caller = await self.authenticator.authenticate(presented, at)
        assert caller.identity == WEB


async def test_keys_are_fetched_when_first_needed_and_kept() -> None:
    issuer = Issuer(OLD)
    come = Caller(issuer)
    for _ in range(3):
        await come("k1")
    assert issuer.asked == 1


async def test_a_new_key_is_fetched_when_a_token_names_it() -> None:
    issuer = Issuer(OLD)
    come = Caller(issuer)
    await come("k1")
    issuer.keys = (OLD, NEW)
    await come("k2", NOW + MIN_INTERVAL)
    assert issuer.asked == 2


async def test_made_up_keys_do_not_make_us_ask_more_often_than_the_limit() -> None:
    issuer = Issuer(OLD)
    come = Caller(issuer)
    for second in range(100):
        with pytest.raises(TokenKeyUnknown):
            await come("k2", NOW + timedelta(seconds=second))
    assert issuer.asked == 10


async def test_a_token_that_no_key_could_save_fetches_nothing() -> None:
    issuer = Issuer(OLD)
    come = Caller(issuer)
    for junk in ("junk", "", "a.b.c"):
        with pytest.raises(AuthenticationError):
            await come.show(junk)
    with pytest.raises(TokenAlgorithmRefused):
        await come.show("eyJhbGciOiJub25lIn0.e30.")
    assert issuer.asked == 0


async def test_callers_at_once_share_one_fetch() -> None:
    issuer = Issuer(OLD)
    come = Caller(issuer)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(come, "k1")
    assert issuer.asked == 1


async def test_a_withdrawn_key_is_not_believed_once_the_keys_are_due() -> None:
    issuer = Issuer(OLD)
    come = Caller(issuer)
    await come("k1")
    issuer.keys = (NEW,)
    await come("k1", NOW + MAX_AGE)
    with pytest.raises(TokenKeyUnknown):
        await come("k1", NOW + MAX_AGE + timedelta(seconds=1))


async def test_an_outage_is_lived_through_on_the_keys_we_have_but_not_for_ever() -> None:
    issuer = Issuer(OLD)
    come = Caller(issuer)
    await come("k1")
    issuer.down = True
    await come("k1", NOW + MAX_STALE)
    with pytest.raises(KeysUnavailable, match="the issuer is down"):
        await come("k1", NOW + MAX_STALE + MIN_INTERVAL)
    issuer.down = False
    await come("k1", NOW + MAX_STALE + 2 * MIN_INTERVAL)


async def test_an_issuer_that_is_down_from_the_start_is_asked_again_later() -> None:
    issuer = Issuer(OLD)
    issuer.down = True
    come = Caller(issuer)
    for _ in range(5):
        with pytest.raises(KeysUnavailable):
            await come("k1")
    assert issuer.asked == 1
    issuer.down = False
    await come("k1", NOW + MIN_INTERVAL)
