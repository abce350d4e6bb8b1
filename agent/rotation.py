"""Keeping one fresh certificate in the store, for ever and whatever the CA does."""

from __future__ import annotations

from datetime import datetime, timedelta
from random import Random

import trio

from agent.answer import Issued, check_answer
from agent.bearer import account_of
from agent.ca_client import CaClient, Credential
from agent.config import AgentConfig
from agent.csr import new_request
from agent.errors import RequestCrashed, RequestFailed
from agent.readiness import Wanted
from agent.schedule import OUTER_BACKOFF, SHORTEST_DELAY, Floor, rotation_delay
from agent.store import SecretStore, Wakeup
from mesh.clock import Now, sleep_until
from mesh.log import get_logger
from mesh.spiffe import SpiffeId, service_account_id

log = get_logger("agent.rotation")

ALARM_PART = 0.25
"""What is left of a certificate's life when failing renewals become errors in the log: half of
the time between the first attempt and the end has passed."""

ROOTS_CHANGED_SPREAD = 5.0
"""Seconds over which agents that learn of new roots together spread their renewals: ten thousand
of them are then two thousand a second."""


class Rotation:
    """Obtains certificates one after the other; the old one is served until the new one is there.

    Istio's agent clears its cache before it asks; ours does not (ztunnel learnt it the hard way).
    """

    def __init__(
        self,
        config: AgentConfig,
        client: CaClient,
        store: SecretStore,
        *,
        now: Now,
        random: Random,
        identity: SpiffeId | None = None,
    ) -> None:
        self._config = config
        self._client = client
        self._store = store
        self._now = now
        self._random = random
        self._identity = identity
        self._failure: str | None = None
        self._held = False

    @property
    def identity(self) -> SpiffeId | None:
        """Whose certificate this is about; None until it has been read from the token."""
        return self._identity

    @property
    def wanted(self) -> Wanted:
        """What this is to bring, and why the last attempt did not."""
        return Wanted(identity=self._identity, failure=self._failure)

    def credential_of(self, identity: SpiffeId) -> Credential | None:
        """Return by what the CA is asked in the name of `identity`, if that is ours."""
        return self._client.credential if identity == self._identity else None

    async def run(self) -> None:
        """Renew until cancelled. A CA that is down, or answers nonsense, is no reason to end."""
        floor = Floor()
        while True:
            issued = await self._obtain_patiently()
            delay = rotation_delay(
                created=issued.created,
                not_after=issued.svid.not_after,
                now=self._now(),
                random=self._random,
            )
            if delay < SHORTEST_DELAY:
                log.warning(
                    "the CA issues certificates too short to be of use",
                    identity=str(issued.svid.id),
                    not_after=issued.svid.not_after.isoformat(),
                )
            delay, floor = floor.apply(delay)
            self._serve(issued, delay)
            await self._wait(issued, delay)

    async def _wait(self, issued: Issued, delay: timedelta) -> None:
        """Sleep until renewal is due: by time, or because the mesh's roots have changed.

        Istio renews then too. From the renewal the CA learns that the new roots are here, which it
        must know before it signs with one of them.
        """
        due = self._now() + delay
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_due, due, nursery.cancel_scope)
            await self._roots_changed(issued)
            spread = self._random.uniform(0, ROOTS_CHANGED_SPREAD)
            log.info("the roots have changed: renewing", renewal_in=f"{spread:.1f} s")
            await trio.sleep(spread)
            nursery.cancel_scope.cancel()

    async def _cancel_when_due(self, due: datetime, scope: trio.CancelScope) -> None:
        await sleep_until(due, self._now)
        scope.cancel()

    async def _roots_changed(self, issued: Issued) -> None:
        """Wait until the store has other roots than those that came with a certificate."""
        wakeup = Wakeup()
        with self._store.subscribed(wakeup):
            while True:
                held = self._store.holdings.roots.get(issued.bundle.trust_domain)
                known = frozenset(issued.bundle.authorities)
                if held is not None and frozenset(held.bundle.authorities) != known:
                    return
                await wakeup.wait()

    def _serve(self, issued: Issued, delay: timedelta) -> None:
        self._identity, self._failure = issued.svid.id, None
        self._held = True
        self._store.put(issued)
        log.info(
            "certificate obtained",
            identity=str(issued.svid.id),
            serial=f"{issued.svid.serial:x}",
            not_after=issued.svid.not_after.isoformat(),
            renewal_in=_seconds(delay),
        )

    async def _obtain_patiently(self) -> Issued:
        for pause in OUTER_BACKOFF.pauses(self._random):
            try:
                return await self._obtain()
            except RequestFailed as error:
                self._complain(error, pause)
            except Exception as error:  # the CA may have provoked it, and the certificate lives on
                log.exception("asking the CA failed in an unforeseen way")
                self._complain(RequestCrashed(f"an error of the agent's own: {error!r}"), pause)
            await trio.sleep(pause)
        raise AssertionError("pauses never end")

    async def _obtain(self) -> Issued:
        request = new_request(self._wanted())
        created = self._now()
        before = None if self._identity is None else self._store.issued(self._identity)
        elements = await self._client.create_certificate(
            request.csr_pem, replaces=None if before is None else before.svid.serial
        )
        return check_answer(elements, request, created=created, now=self._now())

    def _wanted(self) -> SpiffeId:
        """Return whose certificate to ask for.

        Once there has been one it stays the same: a token file that is swapped for another
        account's must not change the identity of a running workload.
        """
        if self._identity is not None:
            return self._identity
        account = self._config.account
        svid = self._client.svid()
        if account is None and svid is not None and self._client.read_token() is None:
            return svid.id
        if account is None:
            account = account_of(self._client.read_token(), self._client.credential.token_file)
        return service_account_id(self._config.trust_domain, account)

    def _complain(self, error: RequestFailed, pause: float) -> None:
        now = self._now()
        self._failure = str(error)
        identity = self._identity
        expired = None if identity is None else self._store.drop_expired(identity, now)
        if expired is not None:
            log.error(
                "certificate expired: new callers get none until the CA answers",
                identity=str(expired.svid.id),
                not_after=expired.svid.not_after.isoformat(),
            )
        facts = {"reason": error.reason, "error": str(error), "next_try_in": f"{pause:.1f} s"}
        issued = None if identity is None else self._store.issued(identity)
        if issued is None:
            event = "the certificate has expired" if self._held else "no certificate yet"
            log.warning(event, identity=str(identity or "not known"), **facts)
            return
        left = issued.svid.not_after - now
        facts |= {"identity": str(issued.svid.id), "expires_in": _seconds(left)}
        if left < (issued.svid.not_after - issued.created) * ALARM_PART:
            log.error("renewal failed, and the certificate expires soon", **facts)
        else:
            log.warning("renewal failed", **facts)


def _seconds(span: timedelta) -> str:
    return f"{span.total_seconds():.0f} s"
