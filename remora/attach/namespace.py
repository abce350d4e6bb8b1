"""A network namespace for one app, joined by a cable to the one around it.

It is kept by a process of its own and goes with its last process, and the cable with it. Nothing
of the machine's own settings is changed but one table of packet rules, which is removed.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from mesh.log import get_logger
from remora.attach.errors import AttachError
from remora.attach.plan import Cable, Port

log = get_logger("run")

NAP = 0.01
"""Seconds between looks whether the holder is in its namespace; the kernel tells nobody."""


@asynccontextmanager
async def open_namespace(ports: Sequence[Port]) -> AsyncGenerator[Cable]:
    """Make a namespace; at the end it is gone. Raises AttachError."""
    holder = await trio.lowlevel.open_process(
        ["unshare", "--net", "--", "sleep", "infinity"], process_group=0
    )
    cable = Cable(number=holder.pid, holder=holder.pid)
    try:
        await _await_namespace(holder)
        for command in cable.commands():
            await run_tool(command)
        await run_tool(["nft", "-f", "-"], cable.rules(ports))
        if _forwarding() == "0":
            log.warning(
                "the app reaches this machine only: IP forwarding is off",
                hint="sysctl net.ipv4.ip_forward=1",
            )
        yield cable
    finally:
        with trio.CancelScope(shield=True):
            holder.kill()
            await holder.wait()
            await run_tool(["nft", "-f", "-"], cable.removal())


async def _await_namespace(holder: trio.Process) -> None:
    own, its = Path("/proc/self/ns/net"), Path(f"/proc/{holder.pid}/ns/net")
    while own.readlink() == its.readlink():
        if holder.poll() is not None:
            raise AttachError(
                "no network namespace could be made: run as root, or with --capture none"
            )
        await trio.sleep(NAP)


async def run_tool(command: Sequence[str], text: str = "") -> None:
    """Run a tool to its end. Raises AttachError with its own words."""
    try:
        done = await trio.run_process(
            command, stdin=text.encode(), capture_stdout=True, capture_stderr=True, check=False
        )
    except FileNotFoundError as error:
        raise AttachError(
            f"{command[0]} is not installed: install it, or --capture none"
        ) from error
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).decode("utf-8", "replace").split())
        raise AttachError(f"{subprocess.list2cmdline(command)} failed: {words}")


def _forwarding() -> str:
    try:
        return Path("/proc/sys/net/ipv4/ip_forward").read_text(encoding="ascii").strip()
    except OSError:
        return ""
