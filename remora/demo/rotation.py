"""A certificate that is replaced in the middle of a long upload, and whether the upload notices."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import trio

from mesh.clock import Now
from remora.demo.errors import CommandFailed
from remora.demo.handshakes import serial_shown
from remora.demo.logbook import Line
from remora.demo.stage import FOO_SERVER_AGENT, Stage
from remora.demo.story import Row, Transfer

CLIENT = "remora.demo.http_client"

LOOK_EVERY = 0.05
"""Seconds between looks at which certificate the server shows, once its agent has a new one."""

MORE_AFTER = 256 * 1024
"""Bytes that must still go through the old connection once new ones see the new certificate."""


async def watch_rotation(stage: Stage, row: Row, now: Now) -> tuple[Transfer, str]:
    """Upload until new connections see a new certificate, and a little longer.

    Returns what was seen and a sentence about it. Raises DemoError leaves.
    """
    tap, door = stage.taps[row.name], stage.addresses.doors[row.door]
    url = f"http://{stage.entrance(row)}/"
    async with stage.crew.spawn(
        [CLIENT, "upload", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        assert client.stdin is not None  # noqa: S101 - asked for pipes above
        assert client.stdout is not None  # noqa: S101
        await tap.forwards(1)
        before = await serial_shown(door, stage.ca_directory, now)
        after = await _next_serial(stage, door, before, now)
        at_rotation = tap.forwarded
        await tap.forwards(at_rotation + MORE_AFTER)
        await client.stdin.aclose()  # which tells it to finish
        report = await _report(client.stdout)
    received = _received(report)
    transfer = Transfer(
        status=report["status"],
        sent=(report["sent"], report["sha256"]),
        received=received,
        connections=len(tap.sources),
        serials=(before, after),
    )
    return transfer, (
        f"{received[0] / 1e6:.1f} MB arrived, SHA-256 {received[1][:16]}, "
        f"{(tap.forwarded - at_rotation) / 1e6:.1f} MB of it after the change of "
        f"serial {before:x} to {after:x}"
    )


async def _next_serial(stage: Stage, door: str, before: int, now: Now) -> int:
    """Wait for another certificate than `before`: first at the agent, then at the sidecar."""
    log = stage.parts[FOO_SERVER_AGENT].log
    known = {_serial(line) for line in log.all(_obtained)} | {f"{before:x}"}
    await log.find(lambda line: _obtained(line) and _serial(line) not in known)
    while (shown := await serial_shown(door, stage.ca_directory, now)) == before:  # noqa: ASYNC110
        await trio.sleep(LOOK_EVERY)
    return shown


def _obtained(line: Line) -> bool:
    return line.event == "certificate obtained"


def _serial(line: Line) -> str:
    return str(line.facts.get("serial"))


async def _report(stdout: trio.abc.ReceiveStream) -> dict[str, Any]:
    output = bytearray()
    while piece := await stdout.receive_some():
        output += piece
    try:
        report: dict[str, Any] = json.loads(output)
    except ValueError as error:
        raise CommandFailed(
            "the upload", 1, output.decode("utf-8", "replace").splitlines()
        ) from error
    return report


def _received(report: dict[str, Any]) -> tuple[int, str]:
    """Return what the server says it got."""
    if report["status"] != "200":
        return 0, report["error"]
    answer = json.loads(report["body"])
    return int(answer["bytes"]), str(answer["sha256"])
