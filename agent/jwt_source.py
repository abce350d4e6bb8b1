"""JWT-SVIDs from the CA, kept for the first half of their lives."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime

from agent.bundles import BundleFollower
from agent.ca_client import CaClient
from agent.errors import CaLacksMethod, JwtUnavailable, RequestFailed
from agent.store import SecretStore
from mesh.clock import Now
from mesh.grpc import Status
from mesh.jwt_svid import InvalidJwtSvid, JwtSvid, verify_jwt_svid
from mesh.spiffe import SpiffeId

MAX_KEPT = 1000
"""Tokens in memory. A caller that asks for ever new audiences pushes out the oldest."""

_Key = tuple[SpiffeId, tuple[str, ...]]


class JwtSource:
    """Asks the CA for tokens and checks what it gets as their receivers will.

    `client_of` returns the client that asks in an identity's name, None if the agent has it not.
    """

    def __init__(
        self,
        client_of: Callable[[SpiffeId], CaClient | None],
        follower: BundleFollower,
        store: SecretStore,
        now: Now,
    ) -> None:
        self._client_of = client_of
        self._follower = follower
        self._store = store
        self._now = now
        self._kept: OrderedDict[_Key, tuple[datetime, JwtSvid]] = OrderedDict()

    async def fetch(self, identity: SpiffeId, audiences: tuple[str, ...]) -> JwtSvid:
        """Return a token that is good for half its life yet. Raises JwtUnavailable."""
        key = (identity, tuple(sorted(audiences)))
        kept = self._kept.get(key)
        if kept is not None and self._fresh(*kept):
            return kept[1]
        try:
            svid = await self._obtain(identity, audiences)
        except CaLacksMethod as error:
            raise JwtUnavailable(Status.UNIMPLEMENTED, str(error)) from error
        except RequestFailed as error:
            raise JwtUnavailable(Status.UNAVAILABLE, str(error)) from error
        self._keep(key, svid)
        return svid

    def _fresh(self, obtained: datetime, svid: JwtSvid) -> bool:
        return self._now() - obtained < (svid.expires - obtained) / 2

    def _keep(self, key: _Key, svid: JwtSvid) -> None:
        self._kept[key] = (self._now(), svid)
        self._kept.move_to_end(key)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    async def _obtain(self, identity: SpiffeId, audiences: tuple[str, ...]) -> JwtSvid:
        client = self._client_of(identity)
        if client is None:
            raise JwtUnavailable(Status.PERMISSION_DENIED, f"nobody here is {identity}")
        token = await client.mint_jwt_svid(identity, audiences)
        try:
            svid = self._check(token, audiences)
        except InvalidJwtSvid:
            # The CA may have begun to sign with a key that we have not heard of yet.
            await self._follower.refresh()
            try:
                svid = self._check(token, audiences)
            except InvalidJwtSvid as error:
                raise JwtUnavailable(Status.UNAVAILABLE, f"the CA's token: {error}") from error
        if svid.id != identity:
            raise JwtUnavailable(
                Status.UNAVAILABLE,
                f"the CA issued a token for {svid.id} where {identity} was asked for",
            )
        return svid

    def _check(self, token: str, audiences: tuple[str, ...]) -> JwtSvid:
        return verify_jwt_svid(token, self._store.holdings.jwt_keys, audiences, self._now())
