"""The status of proxies: asked of the control plane, and put into words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ca.control_plane import ADMIN_SOCKET
from ca.discovery.held import SERVED, kind_name
from ca.discovery.status import PROBLEMS_METADATA
from mesh.api import DISCOVERY_MESSAGE_BYTES, FETCH_CLIENT_STATUS
from mesh.discovery.errors import BadNode
from mesh.discovery.node import decode_node
from mesh.errors import RemoraError
from mesh.grpc import GrpcError, Limits, open_channel
from mesh.protos.status_pb2 import (
    NACKED,
    ClientConfig,
    ClientStatusRequest,
    ConfigStatus,
)
from mesh.unix_socket import open_unix_stream
from remora.resources.columns import table
from remora.resources.kinds import SHORT_NAMES

DEADLINE = 10.0
"""Seconds for the control plane's answer; it takes milliseconds."""

_LIMITS = Limits(message_bytes=DISCOVERY_MESSAGE_BYTES)
_HEADS = {url: SHORT_NAMES.get(kind_name(url), "mesh").upper() for url in SERVED}


class StatusUnavailable(RemoraError):
    """The control plane cannot be asked, or the proxy is not there."""

    reason: ClassVar[str] = "status_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeStatus:
    """How far a proxy has one type of resource."""

    state: str
    version: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyStatus:
    """One connected proxy; `types` are by type URL."""

    name: str
    namespace: str
    node: str
    version: str
    since: str
    types: Mapping[str, TypeStatus]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All proxies, and what is wrong in the directory of resources."""

    proxies: tuple[ProxyStatus, ...]
    problems: tuple[str, ...] = ()

    def complaints(self) -> Iterator[str]:
        """Yield a line for each thing that is wrong."""
        for proxy in self.proxies:
            for url, status in proxy.types.items():
                if status.error:
                    yield f"{proxy.name}.{proxy.namespace}: {kind_name(url)}: {status.error}"
        for problem in self.problems:
            yield f"refused: {problem}"


async def fetch_status(state_dir: Path) -> Report:
    """Ask the control plane that runs on a state directory. Raises StatusUnavailable."""
    path = state_dir / ADMIN_SOCKET
    try:
        async with (
            open_channel(lambda: open_unix_stream(path), limits=_LIMITS) as channel,
            channel.stream(FETCH_CLIENT_STATUS, timeout=DEADLINE) as call,
        ):
            await call.send(ClientStatusRequest())
            await call.done_sending()
            configs = [config async for response in call for config in response.config]
    except (OSError, GrpcError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise StatusUnavailable(
            f"cannot ask the control plane at {path}: {why}. Is it running, with this state "
            "directory, as this user?"
        ) from error
    problems = tuple(
        one.decode(errors="replace") for one in call.trailing_metadata.get_binary(PROBLEMS_METADATA)
    )
    proxies = sorted(map(_proxy, configs), key=lambda one: (one.namespace, one.name))
    return Report(proxies=tuple(proxies), problems=problems)


def select(report: Report, name: str | None) -> Report:
    """Leave one proxy, by NAME or NAME.NAMESPACE. Raises StatusUnavailable if it is not there."""
    if name is None:
        return report
    chosen = tuple(
        one for one in report.proxies if name in {one.name, f"{one.name}.{one.namespace}"}
    )
    if not chosen:
        raise StatusUnavailable(f"the proxy {name} is not connected to this control plane")
    return replace(report, proxies=chosen)


def status_table(report: Report) -> str:
    """Write the report as a table shaped like istioctl's: a line each proxy, a column each type."""
    head = ("NAME", *_HEADS.values(), "VERSION")
    rows = [
        (
            f"{one.name}.{one.namespace}",
            *(one.types[url].state if url in one.types else "IGNORED" for url in _HEADS),
            one.version,
        )
        for one in report.proxies
    ]
    return table([head, *rows])


def status_json(report: Report) -> dict[str, Any]:
    """Return the report as plain data."""
    return {
        "proxies": [
            {
                "name": one.name,
                "namespace": one.namespace,
                "node": one.node,
                "version": one.version,
                "connectedSince": one.since,
                "types": {
                    kind_name(url): {
                        "state": status.state,
                        "ackedVersion": status.version,
                        **({"error": status.error} if status.error else {}),
                    }
                    for url, status in one.types.items()
                },
            }
            for one in report.proxies
        ],
        "problems": list(report.problems),
    }


def _proxy(config: ClientConfig) -> ProxyStatus:
    try:
        node = decode_node(config.node)
    except BadNode as error:
        raise StatusUnavailable(f"the control plane answered with a bad node: {error}") from error
    return ProxyStatus(
        name=node.name,
        namespace=node.namespace,
        node=node.id,
        version=node.version,
        since=config.client_scope,
        types={one.type_url: _type(one) for one in config.generic_xds_configs},
    )


def _type(config: ClientConfig.GenericXdsConfig) -> TypeStatus:
    return TypeStatus(
        state=ConfigStatus.Name(config.config_status).replace("_", " "),
        version=config.version_info,
        error=config.error_state.details if config.client_status == NACKED else "",
    )
