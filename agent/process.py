"""A caller's process, held so that no other can take its place.

A process id means whoever has it now, and ids are given out again. So the id is used once, to open
two handles: the kernel's handle on the process (pidfd), and its directory under /proc. Both stay
with that process for ever. Every fact is read through the directory, and counts only if the
process is still alive afterwards and has the user and the group that the kernel recorded when it
connected.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import select
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from typing import Self

import trio

from agent.caller import Facts, ProcessStatus, parse_status
from agent.cgroup import NOWHERE, Place, parse_cgroup
from agent.errors import AttestationFailed
from agent.selector import (
    CONTAINER,
    GROUP,
    PATH,
    POD_UID,
    SHA256,
    SUPPLEMENTARY_GROUP,
    SYSTEMD_UNIT,
    USER,
)
from mesh.unix_socket import PeerCredentials, open_peer_handle

MAX_EXECUTABLE = 512 * 1024 * 1024
"""Bytes that are hashed for `unix:sha256`; a larger executable gets no such selector."""

MAX_PROC_FILE = 64 * 1024
"""Bytes. A status or cgroup file has a few thousand."""

HASH_CHUNK = 1024 * 1024

PLACES = frozenset({SYSTEMD_UNIT, CONTAINER, POD_UID})


class Process:
    """One process that has connected. Close it when the connection is over."""

    def __init__(self, credentials: PeerCredentials, handle: int, directory: int) -> None:
        self.credentials = credentials
        self._handle = handle
        self._directory = directory
        self._users = 1

    @classmethod
    def of(cls, stream: trio.SocketStream, credentials: PeerCredentials) -> Self:
        """Take hold of the process at the other end of `stream`. Raises AttestationFailed."""
        try:
            handle = open_peer_handle(stream, credentials)
        except OSError as error:
            raise AttestationFailed(_gone(credentials, error)) from error
        try:
            directory = os.open(f"/proc/{credentials.pid}", os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            os.close(handle)
            raise AttestationFailed(_gone(credentials, error)) from error
        process = cls(credentials, handle, directory)
        # Alive now, so the id was still its own when the directory was opened.
        if not process.alive():
            process.close()
            raise AttestationFailed(_gone(credentials))
        return process

    def alive(self) -> bool:
        """Tell whether the process still runs; its handle becomes readable when it ends."""
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        return not poll.poll(0)

    async def wait_end(self) -> None:
        """Wait until the process has ended."""
        with self._used():
            await trio.lowlevel.wait_readable(self._handle)

    async def facts(self, kinds: Collection[str]) -> Facts:
        """Find out what selectors of `kinds` need.

        What the kernel does not let us see is left out, and so matches nothing. Raises
        AttestationFailed if the process has ended or has become another user's.
        """
        with self._used():
            return await trio.to_thread.run_sync(self._facts, kinds)

    def close(self) -> None:
        """Let go of the process. The handles are kept as long as somebody still uses them."""
        self._users -= 1
        if not self._users:
            for descriptor in (self._handle, self._directory):
                os.close(descriptor)

    @contextmanager
    def _used(self) -> Generator[None]:
        if not self._users:
            raise AttestationFailed(_gone(self.credentials))
        self._users += 1
        try:
            yield
        finally:
            self.close()

    def _facts(self, kinds: Collection[str]) -> Facts:
        try:
            status = parse_status(self._read("status").decode("utf-8", "replace"))
        except (OSError, ValueError) as error:
            raise AttestationFailed(_gone(self.credentials, error)) from error
        facts = Facts(
            pid=self.credentials.pid,
            uid=status.uid,
            gid=status.gid,
            supplementary_gids=status.groups,
            user=_user(status.uid) if USER in kinds else None,
            group=_group(status.gid) if GROUP in kinds else None,
            supplementary_groups=_groups(status) if SUPPLEMENTARY_GROUP in kinds else (),
            path=self._path() if PATH in kinds else None,
            sha256=self._sha256() if SHA256 in kinds else None,
            place=self._place() if not PLACES.isdisjoint(kinds) else NOWHERE,
        )
        self._check_same(status)
        return facts

    def _check_same(self, status: ProcessStatus) -> None:
        known = self.credentials
        if not self.alive():
            raise AttestationFailed(_gone(known))
        if (status.uid, status.gid) != (known.uid, known.gid):
            raise AttestationFailed(
                f"process {known.pid} connected as user {known.uid}, group {known.gid}, and runs "
                f"as user {status.uid}, group {status.gid} now: it must connect again"
            )

    def _path(self) -> str | None:
        """Return the executable's path, if it is this very file by that path for us too.

        In a mount namespace of its own, which any user can make, a process may put whatever it
        likes at any path.
        """
        with suppress(OSError):
            path = os.readlink("exe", dir_fd=self._directory)
            running = os.stat("exe", dir_fd=self._directory)
            seen = os.stat(path)  # noqa: PTH116 - beside the one above
            if (running.st_dev, running.st_ino) == (seen.st_dev, seen.st_ino):
                return path
        return None

    def _sha256(self) -> str | None:
        with suppress(OSError), os.fdopen(self._open("exe"), "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_EXECUTABLE:
                return None
            digest = hashlib.sha256()
            while chunk := file.read(HASH_CHUNK):
                digest.update(chunk)
            return digest.hexdigest()
        return None

    def _place(self) -> Place:
        with suppress(OSError):
            return parse_cgroup(self._read("cgroup").decode("utf-8", "replace"))
        return NOWHERE

    def _read(self, name: str) -> bytes:
        with os.fdopen(self._open(name), "rb") as file:
            return file.read(MAX_PROC_FILE)

    def _open(self, name: str) -> int:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)


def _gone(credentials: PeerCredentials, error: Exception | None = None) -> str:
    why = f" ({error})" if error else ""
    return f"process {credentials.pid} of user {credentials.uid} is gone, or out of sight{why}"


def _user(uid: int) -> str | None:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return None


def _group(gid: int) -> str | None:
    with suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return None


def _groups(status: ProcessStatus) -> tuple[str, ...]:
    return tuple(name for gid in status.groups if (name := _group(gid)) is not None)
