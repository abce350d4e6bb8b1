"""The last good configuration on disk, for a start while the control plane is away.

Resources are kept as they came, so that a newer version may understand what this one could not.
The file is for one workload with one set of labels: others are sent other policies. A file that
is damaged, or somebody else's, is as good as none: the proxy then waits for its control plane.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from google.protobuf.message import DecodeError

from mesh.discovery.node import ProxyNode
from mesh.errors import ConfigError, RemoraError
from mesh.files import private_directory, read_file, write_private
from mesh.protos.discovery_pb2 import Resource as Enveloped
from proxy.discovery_state import DiscoveryState

FILE_NAME = "last-good.json"

FORMAT = "remora-last-good/1"
"""Written into the file. A change of meaning gets another number; older files are refused."""

MAX_FILE = 256 * 1024 * 1024
"""Bytes. Ten thousand endpoints take about ten MiB."""


class LastGoodRefused(RemoraError):
    """The kept configuration cannot be used."""

    reason = "last_good_refused"


class _Owner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose configuration it is: what the control plane chooses resources by."""

    namespace: str
    service_account: str
    labels: dict[str, str]
    hosts: tuple[str, ...]


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    owner: _Owner
    version: str
    resources: dict[str, list[bytes]]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    sha256: str
    content: msgspec.Raw


def write_last_good(directory: Path, content: bytes) -> None:
    """Keep what `encode_last_good` returned. Raises ConfigError if the directory cannot be used."""
    write_private(private_directory(directory) / FILE_NAME, content)


def read_last_good(directory: Path, state: DiscoveryState) -> bool:
    """Begin `state` with what was kept; False if nothing was. Raises LastGoodRefused."""
    path = directory / FILE_NAME
    if not path.exists():
        return False
    try:
        decode_last_good(read_file(path, "the last good configuration", MAX_FILE), state)
    except (ConfigError, LastGoodRefused) as error:
        raise LastGoodRefused(
            f"the configuration kept in {path} is not used: {error}; "
            "waiting for the control plane instead"
        ) from error
    return True


def encode_last_good(state: DiscoveryState) -> bytes:
    """Write what `state` holds as the content of the file."""
    content = msgspec.json.encode(
        _Content(
            owner=_owner(state.node, state.hosts),
            version=state.received.version,
            resources={
                url: [envelope.SerializeToString(deterministic=True) for envelope in envelopes]
                for url, envelopes in state.envelopes().items()
            },
        )
    )
    digest = hashlib.sha256(content).hexdigest()
    return msgspec.json.encode(_File(format=FORMAT, sha256=digest, content=msgspec.Raw(content)))


def decode_last_good(untrusted: bytes, state: DiscoveryState) -> None:
    """Begin `state` with the content of a file. Raises LastGoodRefused, and then changed nothing.

    The digest finds damage, which could turn a policy into a weaker one; it proves no author: the
    directory is private to the proxy's user for that.
    """
    try:
        file = msgspec.json.decode(untrusted, type=_File)
        if file.format != FORMAT:
            raise LastGoodRefused(f"its format is {file.format[:40]!r}, not {FORMAT!r}")
        raw = bytes(file.content)
        if hashlib.sha256(raw).hexdigest() != file.sha256:
            raise LastGoodRefused("it is damaged: its digest does not fit its content")
        content = msgspec.json.decode(raw, type=_Content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LastGoodRefused(f"it is damaged: {error}") from error
    if content.owner != _owner(state.node, state.hosts):
        raise LastGoodRefused(
            "it was sent to another workload, or to this one under other labels or destinations"
        )
    state.restore(content.version, _envelopes(content.resources, set(state.envelopes())))


def _envelopes(
    resources: Mapping[str, Sequence[bytes]], needed: set[str]
) -> Mapping[str, list[Enveloped]]:
    if set(resources) != needed:
        raise LastGoodRefused("it does not hold exactly the types of resources that are needed")
    try:
        return {
            url: [Enveloped.FromString(one) for one in encoded]
            for url, encoded in resources.items()
        }
    except DecodeError as error:
        raise LastGoodRefused("it holds a resource that cannot be decoded") from error


def _owner(node: ProxyNode, hosts: tuple[str, ...]) -> _Owner:
    return _Owner(
        namespace=node.namespace,
        service_account=node.service_account,
        labels=dict(node.labels),
        hosts=hosts,
    )
