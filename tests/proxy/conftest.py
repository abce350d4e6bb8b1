"""What the relay's tests share: every one of them is for both relays."""

from __future__ import annotations

import pytest

from proxy.engine.loops import host
from tests.pki import Authority, make_root


@pytest.fixture(params=["nested", "hosted", "plain"])
async def relay_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Use the engine inside trio, the engine with trio as its guest, or the plain twin."""
    kind: str = request.param
    monkeypatch.setattr("proxy.relay.uses_plain", lambda: kind == "plain")
    if kind == "hosted":
        await host()
    return kind


@pytest.fixture(scope="session")
def relay_root() -> Authority:
    """Make the root under which both ends of a relay's TLS leg have their certificates."""
    return make_root()


@pytest.fixture(params=["tls", "plain"])
def security(request: pytest.FixtureRequest, relay_root: Authority) -> Authority | None:
    """Use TLS towards the peer, or a bare socket."""
    return relay_root if request.param == "tls" else None
