"""Playing the rows on the stage: make the request, and find out what became of it.

What is reported is observed: the status by the client, the protocol by a tap on the wire, the
client's identity and the reason of a refusal in the sidecars' own logs.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

import trio

from mesh.clock import Now
from remora.demo.errors import DemoError
from remora.demo.handshakes import call_as
from remora.demo.logbook import Line
from remora.demo.rotation import CLIENT, watch_rotation
from remora.demo.stage import CLIENT_PROXIES, SERVER_PROXIES, Stage
from remora.demo.story import (
    STRAY_ID,
    Answer,
    Caller,
    Capture,
    Question,
    Result,
    Row,
    decision,
    describe_answer,
    describe_capture,
    describe_transfer,
    traces,
)
from remora.demo.wire import first_words, wire_of

ROW_TIMEOUT = 40.0
"""Seconds a row may take; the longest waits for half of a certificate's life."""

LOG_TIMEOUT = 5.0
"""Seconds in which a sidecar must have logged a connection that is over."""

Logged = Mapping[str, Line]
"""What each side's sidecar, "client" and "server", logged about one connection."""


class Player:
    """Plays rows on a stage; they may be played at the same time."""

    def __init__(self, stage: Stage, now: Now) -> None:
        self._stage = stage
        self._now = now

    async def play(self, row: Row) -> Result:
        """Play one row to its result, whatever that is."""
        acts = {
            Question.ANSWER: self._ask,
            Question.SECRECY: self._listen_in,
            Question.ROTATION: self._rotate,
        }
        got, evidence = f"nothing for {ROW_TIMEOUT:g} s", ""
        try:
            with trio.move_on_after(ROW_TIMEOUT):
                got, evidence = await acts[row.question](row)
        except DemoError as error:
            got, evidence = error.reason, str(error)
        sides = [SERVER_PROXIES[row.door]]
        if row.caller in CLIENT_PROXIES:
            sides.append(CLIENT_PROXIES[row.caller])
        return Result(row=row, got=got, evidence=evidence, logs=tuple(sides))

    async def _ask(self, row: Row) -> tuple[str, str]:
        status, error = await self._call(row, "/")
        sent = bytes(self._stage.taps[row.name].upstream)
        logged = await self._logged(row)
        server = logged.get("server")
        answer = Answer(
            status=status,
            wire=wire_of(sent),
            client_id=None if server is None else server.facts.get("peer_id"),
            refusal=decision(
                (side, str(line.facts["reason"]))
                for side, line in logged.items()
                if "reason" in line.facts
            ),
        )
        return describe_answer(answer), _evidence(answer, logged, error, sent)

    async def _call(self, row: Row, path: str) -> tuple[str, str]:
        """Make the row's request; return the status, and the client's words if it got none."""
        entrance = self._stage.entrance(row)
        if row.caller is Caller.STRAY:
            directory = self._stage.ca_directory
            return await call_as(STRAY_ID, entrance, directory, self._now), "connection reset"
        output = await self._stage.crew.run("client", CLIENT, "get", f"http://{entrance}{path}")
        report: dict[str, Any] = json.loads(output)
        return report["status"], f"{report['error']} (curl: {report['exit_code']})"

    async def _logged(self, row: Row) -> Logged:
        """Collect what the sidecars say of the row's connection, which is over."""
        tap, parts = self._stage.taps[row.name], self._stage.parts
        logged: dict[str, Line] = {}
        with trio.move_on_after(LOG_TIMEOUT):
            if row.caller in CLIENT_PROXIES:
                log = parts[CLIENT_PROXIES[row.caller]].log
                logged["client"] = await log.find(
                    lambda line: line.facts.get("target") == tap.address
                )
            log = parts[SERVER_PROXIES[row.door]].log
            logged["server"] = await log.find(lambda line: line.facts.get("source") in tap.sources)
        return logged

    async def _listen_in(self, row: Row) -> tuple[str, str]:
        secret = secrets.token_hex(16)
        status, _ = await self._call(row, f"/?secret={secret}")
        data = self._stage.taps[row.name].captured
        capture = Capture(status=status, data=data, secret=secret.encode())
        evidence = f"{len(data)} bytes captured, {traces(capture)} traces of the request in them"
        return describe_capture(capture), evidence

    async def _rotate(self, row: Row) -> tuple[str, str]:
        transfer, evidence = await watch_rotation(self._stage, row, self._now)
        return describe_transfer(transfer), evidence


def _evidence(answer: Answer, logged: Logged, error: str, sent: bytes) -> str:
    if answer.refusal is not None:
        said = logged[answer.refusal.side].facts.get("detail", "")
        return f"client: {error}; {answer.refusal.side}'s sidecar: {said}"
    seen = f"on the wire: {answer.wire}"
    if answer.client_id is None:
        return f"{seen}, beginning {first_words(sent)!r}"
    return f"{seen}; server's sidecar: the client proved {answer.client_id}"
