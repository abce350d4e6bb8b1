"""The story that the demo tells: what is tried, what must come of it, and whether it did.

Nothing here starts or connects anything. `Answer` and its sisters hold what was observed, and
`describe` puts it into the same words that the rows expect, so a row holds when the two are equal
and a refusal for the wrong reason is a failure too.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

TRUST_DOMAIN = "cluster.local"
CLIENT_ACCOUNT = "foo/client"
SERVER_ACCOUNT = "foo/server"
CLIENT_ID = f"spiffe://{TRUST_DOMAIN}/ns/foo/sa/client"
SERVER_ID = f"spiffe://{TRUST_DOMAIN}/ns/foo/sa/server"
PAYMENTS_ID = f"spiffe://{TRUST_DOMAIN}/ns/foo/sa/payments"
STRAY_ID = "spiffe://other.domain/ns/foo/sa/client"

REFUSED = "000"
"""What curl prints for the status when there was no HTTP answer at all."""


class Caller(enum.Enum):
    """Who makes the request."""

    FOO = "foo's client, through its sidecar"
    BAR = "bar's client, which has no sidecar"
    IMPOSTOR = "an impostor's client, through a sidecar with a certificate from another CA"
    STRAY = "a TLS client with a certificate of our CA's key for another trust domain"


class Door(enum.Enum):
    """Which way into the server: one of its sidecars, and a port there."""

    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"
    MIXED = "STRICT, with the metrics port PERMISSIVE"
    MIXED_METRICS = "the metrics port of MIXED"


class Question(enum.Enum):
    """What the row asks about its request."""

    ANSWER = enum.auto()
    """Was it answered, and over what?"""
    SECRECY = enum.auto()
    """Could it be read on the way?"""
    ROTATION = enum.auto()
    """Did it live through a change of certificate?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the story. `wants` is the identity that a sidecar must find at the other end."""

    name: str
    act: str
    tried: str
    expected: str
    caller: Caller
    door: Door
    question: Question = Question.ANSWER
    wants: str = SERVER_ID


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a row, with the evidence for it, and the logs to read if it is wrong."""

    row: Row
    got: str
    evidence: str = ""
    logs: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the mesh did what it must."""
        return self.got == self.row.expected


class Wire(enum.StrEnum):
    """What the bytes between the two sidecars were, as seen by somebody in the middle."""

    MESH_TLS = "TLS with ALPN istio"
    OTHER_TLS = "TLS, but not the mesh's"
    PLAINTEXT = "plaintext"
    SILENCE = "not a byte"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A sidecar's decision against a connection, from its log: whose, and for which reason."""

    side: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one request met. `client_id` is the identity that the server's sidecar logged."""

    status: str
    wire: Wire
    client_id: str | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """Everything that went over the wire for one request, both ways, and what to look for."""

    status: str
    data: bytes
    secret: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A long upload: sent and received as (bytes, SHA-256), and what was seen meanwhile."""

    status: str
    sent: tuple[int, str]
    received: tuple[int, str]
    connections: int
    serials: tuple[int, int]


def describe_answer(answer: Answer) -> str:
    """Say what a request met, in the words of the rows."""
    if answer.status == REFUSED:
        if answer.refusal is None:
            return f"{REFUSED}, and no sidecar says why"
        return f"{REFUSED}, {answer.refusal.side}: {answer.refusal.reason}"
    return f"{answer.status} {_manner(answer)}"


def _manner(answer: Answer) -> str:
    if answer.wire is Wire.PLAINTEXT:
        return "in plaintext"
    if answer.wire is Wire.MESH_TLS and answer.client_id == CLIENT_ID:
        return "over mTLS"
    who = answer.client_id or "nobody we know"
    return f"over {answer.wire}, client {who}"


def describe_capture(capture: Capture) -> str:
    """Say whether the secret could be read on the wire."""
    if capture.status == REFUSED or not capture.data:
        return f"{capture.status}, {len(capture.data)} bytes seen"
    return "readable" if traces(capture) else "not readable"


def traces(capture: Capture) -> int:
    """Count the places where the request can be read: the secret itself, and HTTP's own words.

    The words are long enough that random bytes do not form them.
    """
    return sum(capture.data.count(word) for word in (capture.secret, b"HTTP/1.1", b"User-Agent"))


def describe_transfer(transfer: Transfer) -> str:
    """Say what a change of certificate did to a transfer."""
    whole = transfer.sent == transfer.received and transfer.sent[0] > 0
    before, after = transfer.serials
    return ", ".join(
        (
            "whole" if transfer.status == "200" and whole else f"{transfer.status}, bytes lost",
            f"{transfer.connections} connection",
            "new cert" if before != after else "same cert",
        )
    )


ECHOES = frozenset({"refused_by_peer", "peer_closed", "peer_reset", "app_reset", "tls_truncated"})
"""Reasons with which a sidecar logs that the other side gave up: not decisions of its own."""


def decision(found: Iterable[tuple[str, str]]) -> Refusal | None:
    """Pick, from (side, reason) pairs, the refusal that was a decision and not its echo."""
    decided = [Refusal(side=side, reason=reason) for side, reason in found if reason not in ECHOES]
    return decided[0] if decided else None


def complete(results: Iterable[Result], rows: Iterable[Row]) -> tuple[Result, ...]:
    """Put results in the rows' order; a row without one was not tried, and so does not hold."""
    known: Mapping[str, Result] = {result.row.name: result for result in results}
    return tuple(known.get(row.name) or Result(row=row, got="not tried") for row in rows)


def all_hold(results: Iterable[Result]) -> bool:
    """Tell whether the story came out as it must; an empty one did not."""
    verdicts = [result.holds for result in results]
    return bool(verdicts) and all(verdicts)


_OVER_MTLS = "200 over mTLS"
_PLAINTEXT = "200 in plaintext"
_NO_PLAINTEXT = f"{REFUSED}, server: plaintext_on_strict"

_PERMISSIVE = "PERMISSIVE: mutual TLS, and plaintext too"
_STRICT = "STRICT: mutual TLS or nothing"
_MIXED = "STRICT, but PERMISSIVE on the metrics port"
_FRAUD = "STRICT, and somebody is not who they should be"
_WIRE = "Somebody listens between the sidecars"
_ROTATION = "The server's certificate lives 10 s, and is replaced after 5 s"

ROWS = (
    Row(
        name="permissive-foo",
        act=_PERMISSIVE,
        tried="foo calls, through its sidecar",
        expected=_OVER_MTLS,
        caller=Caller.FOO,
        door=Door.PERMISSIVE,
    ),
    Row(
        name="permissive-bar",
        act=_PERMISSIVE,
        tried="bar calls, without a sidecar",
        expected=_PLAINTEXT,
        caller=Caller.BAR,
        door=Door.PERMISSIVE,
    ),
    Row(
        name="strict-foo",
        act=_STRICT,
        tried="foo calls, through its sidecar",
        expected=_OVER_MTLS,
        caller=Caller.FOO,
        door=Door.STRICT,
    ),
    Row(
        name="strict-bar",
        act=_STRICT,
        tried="bar calls, without a sidecar",
        expected=_NO_PLAINTEXT,
        caller=Caller.BAR,
        door=Door.STRICT,
    ),
    Row(
        name="mixed-foo",
        act=_MIXED,
        tried="foo calls the main port",
        expected=_OVER_MTLS,
        caller=Caller.FOO,
        door=Door.MIXED,
    ),
    Row(
        name="mixed-bar",
        act=_MIXED,
        tried="bar calls the main port",
        expected=_NO_PLAINTEXT,
        caller=Caller.BAR,
        door=Door.MIXED,
    ),
    Row(
        name="mixed-metrics-foo",
        act=_MIXED,
        tried="foo calls the metrics port",
        expected=_OVER_MTLS,
        caller=Caller.FOO,
        door=Door.MIXED_METRICS,
    ),
    Row(
        name="mixed-metrics-bar",
        act=_MIXED,
        tried="bar calls the metrics port",
        expected=_PLAINTEXT,
        caller=Caller.BAR,
        door=Door.MIXED_METRICS,
    ),
    Row(
        name="impostor",
        act=_FRAUD,
        tried="an impostor calls, with a CA of its own",
        expected=f"{REFUSED}, server: peer_not_trusted",
        caller=Caller.IMPOSTOR,
        door=Door.STRICT,
    ),
    Row(
        name="wrong-trust-domain",
        act=_FRAUD,
        tried="a client of another trust domain calls",
        expected=f"{REFUSED}, server: peer_not_trusted",
        caller=Caller.STRAY,
        door=Door.STRICT,
    ),
    Row(
        name="wrong-server",
        act=_FRAUD,
        tried="foo calls foo/payments, foo/server answers",
        expected=f"{REFUSED}, client: wrong_identity",
        caller=Caller.FOO,
        door=Door.STRICT,
        wants=PAYMENTS_ID,
    ),
    Row(
        name="wire-mtls",
        act=_WIRE,
        tried="is a secret readable that foo sends?",
        expected="not readable",
        caller=Caller.FOO,
        door=Door.PERMISSIVE,
        question=Question.SECRECY,
    ),
    Row(
        name="wire-plaintext",
        act=_WIRE,
        tried="is it, if bar sends it without a sidecar?",
        expected="readable",
        caller=Caller.BAR,
        door=Door.PERMISSIVE,
        question=Question.SECRECY,
    ),
    Row(
        name="rotation",
        act=_ROTATION,
        tried="foo uploads meanwhile; nothing may get lost",
        expected="whole, 1 connection, new cert",
        caller=Caller.FOO,
        door=Door.STRICT,
        question=Question.ROTATION,
    ),
)
"""The whole story, in the order in which it is told."""
