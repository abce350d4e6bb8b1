"""A mesh for each test, and a folder for it whose path is short enough for unix sockets."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.interop.mesh import LocalMesh


@pytest.fixture
async def mesh(nursery: trio.Nursery) -> AsyncIterator[LocalMesh]:
    with tempfile.TemporaryDirectory(prefix="remora-") as folder:
        made = LocalMesh(nursery, Path(folder))
        await made.start_ca()
        yield made
        nursery.cancel_scope.cancel()
