"""An agent without a token: it renews, and starts again, by the certificate it has."""

from __future__ import annotations

import stat
from collections.abc import Callable
from datetime import timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509

from agent.config import MountedConfig
from agent.server import Running
from agent.server import serve as serve_agent
from mesh.address import Address
from tests.interop.mesh import ANY, LocalMesh

pytestmark = pytest.mark.e2e

SHORT = timedelta(seconds=4)


def serial_in(directory: Path) -> int | None:
    path = directory / "cert-chain.pem"
    return (
        x509.load_pem_x509_certificate(path.read_bytes()).serial_number if path.exists() else None
    )


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - files have no events
            await trio.sleep(0.05)


async def test_renewal_and_restart_without_a_token(mesh: LocalMesh) -> None:
    certs = mesh.folder / "certs"
    files: dict[str, Any] = {"output_certs": certs, "prov_cert": certs, "secret_ttl": SHORT}
    async with trio.open_nursery() as nursery:
        await mesh.start_agent("foo/httpbin", nursery=nursery, **files)
        await until(lambda: serial_in(certs) is not None)
        first = serial_in(certs)
        (mesh.folder / "foo-httpbin.token").unlink()
        await until(lambda: serial_in(certs) != first)
        nursery.cancel_scope.cancel()
    second = serial_in(certs)
    async with trio.open_nursery() as nursery:
        await mesh.start_agent("foo/httpbin", nursery=nursery, token=False, **files)
        await until(lambda: serial_in(certs) != second)
        nursery.cancel_scope.cancel()
    assert stat.S_IMODE((certs / "key.pem").stat().st_mode) == 0o600


async def get(address: Address, path: str) -> tuple[int, str]:
    def fetch() -> tuple[int, str]:
        connection = HTTPConnection(address.host, address.port, timeout=10)
        connection.request("GET", path)
        response = connection.getresponse()
        answer = response.status, response.read().decode()
        connection.close()
        return answer

    return await trio.to_thread.run_sync(fetch)


async def test_readiness_and_metrics(mesh: LocalMesh, nursery: trio.Nursery) -> None:
    directory = mesh.folder / "certs"
    config = MountedConfig(
        directory=directory,
        socket=mesh.folder / "run" / "agent.sock",
        trust_domain=mesh.trust_domain,
        status_listen=ANY,
    )

    async def run(task_status: trio.TaskStatus[Running]) -> None:
        await serve_agent(config, task_status=task_status)

    running: Running = await nursery.start(run)
    assert running.status is not None
    status, text = await get(running.status, "/healthz/ready")
    assert status == 503
    assert "the identity is not known yet" in text
    await mesh.start_agent("foo/httpbin", output_certs=directory)
    with trio.fail_after(20):
        while (await get(running.status, "/healthz/ready"))[0] != 200:  # noqa: ASYNC110
            await trio.sleep(0.1)
    status, text = await get(running.status, "/metrics")
    assert status == 200
    assert 'cert_expiry_seconds{resource_name="default"} 86' in text
