from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from mesh.grpc import GrpcError, Status
from proxy import sds
from proxy.backoff import FIRST_PAUSE
from proxy.identity import Identity, IdentityStore
from proxy.sds import follow_identity
from proxy.sds_state import SecretsState
from tests.pki import NOW, make_root

ROOT = make_root()


def identity() -> Identity:
    return Identity(
        svid=ROOT.issue("spiffe://cluster.local/ns/foo/sa/httpbin"), bundles=ROOT.bundle()
    )


async def test_after_a_good_stream_the_agent_is_asked_again_soon(
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An agent that restarts now and then is not met with ever longer pauses."""
    attempts: list[float] = []

    async def follow_once(_path: Path, _state: Any, store: IdentityStore, _now: Any) -> None:
        attempts.append(trio.current_time())
        if len(attempts) % 4 == 0:
            store.publish(identity())
            await trio.sleep(60)
        await trio.lowlevel.checkpoint()
        raise GrpcError(Status.UNAVAILABLE, "gone")

    monkeypatch.setattr(sds, "_follow_once", follow_once)
    nursery.start_soon(
        follow_identity, Path("x"), SecretsState("node"), IdentityStore(), lambda: NOW
    )
    await trio.sleep(200)
    nursery.cancel_scope.cancel()

    failing = [later - earlier for earlier, later in pairwise(attempts[:4])]
    assert failing == pytest.approx([FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE])
    assert attempts[4] - attempts[3] == pytest.approx(60 + FIRST_PAUSE)
    assert attempts[8] - attempts[7] == pytest.approx(60 + FIRST_PAUSE)
