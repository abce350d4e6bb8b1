"""Unix sockets whose callers the kernel identifies."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from mesh.errors import ConfigError
from mesh.files import PRIVATE_DIRECTORY, PRIVATE_FILE, private_directory

MAX_PATH_BYTES = 107
"""sun_path in unix(7) has 108 bytes, the last of them zero."""

BACKLOG = 128

SO_PEERPIDFD = 77
"""asm-generic/socket.h; the socket module has no name for it."""

_UCRED = struct.Struct("3i")
_INT = struct.Struct("i")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCredentials:
    """Who opened a connection, as the kernel recorded it at connect time (SO_PEERCRED).

    `pid` is 0 when the process lives in a PID namespace that this one cannot see.
    """

    pid: int
    uid: int
    gid: int


def peer_credentials(stream: trio.SocketStream) -> PeerCredentials:
    """Return the credentials of the process at the other end of a unix socket."""
    packed = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(packed)
    return PeerCredentials(pid=pid, uid=uid, gid=gid)


def open_peer_handle(stream: trio.SocketStream, credentials: PeerCredentials) -> int:
    """Return a handle (pidfd) on the process that connected; the caller closes it.

    Raises OSError if the process is gone. Kernels before 6.5 have no SO_PEERPIDFD: there the
    handle is opened by process id, right after accepting, as SPIRE does.
    """
    try:
        packed = stream.socket.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, _INT.size)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return os.pidfd_open(credentials.pid)
    handle: int = _INT.unpack(packed)[0]
    return handle


@asynccontextmanager
async def unix_listener(
    path: Path, mode: int = PRIVATE_FILE, directory_mode: int = PRIVATE_DIRECTORY
) -> AsyncGenerator[trio.SocketListener]:
    """Listen at `path`, and remove the socket at the end.

    Its directory must be one that only its owner may write to; a missing one is made with
    `directory_mode`. A socket that nobody listens on is replaced. Raises ConfigError if somebody
    does, or if the path cannot be used.
    """
    _check_path(path)
    private_directory(path.parent, directory_mode)
    await _remove_stale(path)
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        await _bind(sock, path, mode)
        inode = path.stat().st_ino
        try:
            yield trio.SocketListener(sock)
        finally:
            _unlink_own(path, inode)


async def open_unix_stream(path: Path) -> trio.SocketStream:
    """Connect to the unix socket at `path`. Raises OSError, ConfigError."""
    _check_path(path)
    return await trio.open_unix_socket(os.fspath(path))


def _check_path(path: Path) -> None:
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigError(
            f"socket path {path} has more than {MAX_PATH_BYTES} bytes, which the kernel refuses: "
            "choose a shorter one"
        )


async def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"{path} is there already and is not a socket: remove it first")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"cannot use socket path {path}: {error.strerror}") from error
    try:
        stream = await open_unix_stream(path)
    except (ConnectionRefusedError, FileNotFoundError):
        path.unlink(missing_ok=True)
        return
    except OSError as error:
        raise ConfigError(
            f"cannot tell whether socket {path} is in use: {error.strerror}; remove it, if not"
        ) from error
    await stream.aclose()
    raise ConfigError(f"another process is listening on {path}: stop it, or choose another path")


async def _bind(sock: trio.socket.SocketType, path: Path, mode: int) -> None:
    # Nobody can connect before listen, so nobody can before chmod.
    try:
        await sock.bind(os.fspath(path))
        path.chmod(mode)
        sock.listen(BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {path}: {error.strerror}") from error


def _unlink_own(path: Path, inode: int) -> None:
    """Remove the socket unless another process has put its own there meanwhile."""
    try:
        if path.lstat().st_ino == inode:
            path.unlink()
    except OSError:
        return
