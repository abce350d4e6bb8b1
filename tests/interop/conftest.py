"""A mesh for each test, and a folder for it whose path is short enough for unix sockets."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import trio

import agent.bundles
import agent.rotation
import ca.bundle_publisher
import ca.keeper
import ca.ledger
from tests.interop.mesh import LocalMesh


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let CA and agents look for changes once a second, where they look once in minutes.

    To be named in `usefixtures`, so that it comes before the mesh.
    """
    monkeypatch.setattr(ca.keeper, "POLL_INTERVAL", 0.05)
    monkeypatch.setattr(ca.bundle_publisher, "REFRESH_HINT", timedelta(seconds=1))
    monkeypatch.setattr(agent.bundles, "SHORTEST_INTERVAL", timedelta(seconds=0.2))
    monkeypatch.setattr(agent.rotation, "ROOTS_CHANGED_SPREAD", 0.2)
    monkeypatch.setattr(ca.ledger, "SETTLING", timedelta(seconds=1))


@pytest.fixture
async def mesh(nursery: trio.Nursery) -> AsyncIterator[LocalMesh]:
    with tempfile.TemporaryDirectory(prefix="remora-") as folder:
        made = LocalMesh(nursery, Path(folder))
        await made.start_ca()
        yield made
        nursery.cancel_scope.cancel()
