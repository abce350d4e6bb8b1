from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import trio

from ca.authenticate import JoinTokenAuthenticator, Presented, TokenAuthenticator
from ca.errors import (
    AuthenticationError,
    JoinTokenStuck,
    JoinTokenUsed,
    TokenExpired,
    TokenWrongIssuer,
)
from ca.join_tokens import JOIN_TOKENS, JoinTokens
from ca.tokens import JOIN_ISSUER, create_join_token, create_token, own_issuer
from mesh.spiffe import ServiceAccount
from tests.ca.workshop import CLUSTER, WEB
from tests.pki import NOW, new_key

KEY = new_key()
HOUR = timedelta(hours=1)
ACCOUNT = ServiceAccount("foo", "web")


def make_token(state: Path, ttl: timedelta = HOUR) -> str:
    return create_join_token(
        KEY,
        ACCOUNT,
        token_id=JoinTokens(state).add(NOW + ttl),
        audience="istio-ca",
        ttl=ttl,
        now=NOW,
    )


def authenticator(state: Path) -> JoinTokenAuthenticator:
    """A CA that was just started on the directory."""
    return JoinTokenAuthenticator(
        name="join-token",
        issuer=own_issuer(KEY.public_key(), ["istio-ca"], JOIN_ISSUER),
        tokens=JoinTokens(state),
        trust_domain=CLUSTER,
    )


def bearer(token: str) -> Presented:
    return Presented(authorization=[f"Bearer {token}"])


async def use(state: Path, token: str) -> None:
    caller = await authenticator(state).authenticate(bearer(token), NOW)
    assert caller.identity == WEB
    assert caller.spend is not None
    await caller.spend()


async def test_a_join_token_works_once_and_also_after_a_restart_not_again(tmp_path: Path) -> None:
    token = make_token(tmp_path)
    await use(tmp_path, token)
    with pytest.raises(JoinTokenUsed):
        await use(tmp_path, token)


async def test_looking_at_it_does_not_use_it_up(tmp_path: Path) -> None:
    token = make_token(tmp_path)
    for _ in range(3):
        await authenticator(tmp_path).authenticate(bearer(token), NOW)
    await use(tmp_path, token)


async def test_of_two_who_come_at_once_one_wins(tmp_path: Path) -> None:
    token = make_token(tmp_path)
    callers = [await authenticator(tmp_path).authenticate(bearer(token), NOW) for _ in range(8)]
    outcomes: list[bool] = []

    async def spend(number: int) -> None:
        spender = callers[number].spend
        assert spender is not None
        try:
            await spender()
        except JoinTokenUsed:
            outcomes.append(False)
        else:
            outcomes.append(True)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(spend, number)
    assert sorted(outcomes) == [False] * 7 + [True]


async def test_an_expired_one_is_refused_unused(tmp_path: Path) -> None:
    token = make_token(tmp_path)
    with pytest.raises(TokenExpired):
        await authenticator(tmp_path).authenticate(bearer(token), NOW + HOUR)


async def test_neither_kind_of_token_passes_for_the_other(tmp_path: Path) -> None:
    reusable = TokenAuthenticator(
        name="own-token", issuer=own_issuer(KEY.public_key(), ["istio-ca"]), trust_domain=CLUSTER
    )
    with pytest.raises(TokenWrongIssuer):
        await reusable.authenticate(bearer(make_token(tmp_path)), NOW)
    token = create_token(KEY, ACCOUNT, audience="istio-ca", ttl=HOUR, now=NOW)
    with pytest.raises(TokenWrongIssuer):
        await authenticator(tmp_path).authenticate(bearer(token), NOW)


@pytest.mark.parametrize("token_id", ["", "../secret", "a" * 31, "A" * 32, "a" * 32])
async def test_a_signed_token_of_an_id_never_made_is_refused(tmp_path: Path, token_id: str) -> None:
    (tmp_path / "secret").write_text("precious")
    (tmp_path / JOIN_TOKENS).mkdir()
    token = create_join_token(
        KEY, ACCOUNT, token_id=token_id, audience="istio-ca", ttl=HOUR, now=NOW
    )
    with pytest.raises(AuthenticationError):
        await authenticator(tmp_path).authenticate(bearer(token), NOW)
    assert (tmp_path / "secret").exists()


async def test_a_token_that_cannot_be_used_up_is_not_used(tmp_path: Path) -> None:
    token = make_token(tmp_path)
    caller = await authenticator(tmp_path).authenticate(bearer(token), NOW)
    tokens = tmp_path / JOIN_TOKENS
    (path,) = tokens.iterdir()
    path.unlink()
    path.mkdir()  # what unlink refuses
    assert caller.spend is not None
    with pytest.raises(JoinTokenStuck, match="cannot use up join token"):
        await caller.spend()


def test_only_expired_ones_are_swept(tmp_path: Path) -> None:
    tokens = JoinTokens(tmp_path)
    assert tokens.sweep(NOW) == 0, "no directory yet"
    tokens.add(NOW)
    later = tokens.add(NOW + HOUR)
    (tmp_path / JOIN_TOKENS / "README").write_text("not a token")
    assert tokens.sweep(NOW) == 1
    assert {path.name for path in (tmp_path / JOIN_TOKENS).iterdir()} == {later, "README"}


def test_commands_at_once_make_different_tokens(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: JoinTokens(tmp_path).add(NOW), range(50)))
    assert len(made) == 50
