"""What to try by hand while `remora demo --keep` keeps the mesh up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from remora.demo.story import Caller, Question, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """A command to type, and what will come of it."""

    why: str
    command: str


def hints(
    rows: Iterable[Row], entrances: Mapping[str, str], door: str, directory: str
) -> list[Hint]:
    """Return the commands to try, given where each row's caller connects to, by row.

    `door` is where foo's STRICT sidecar listens, `directory` where the CA's files and logs are.
    """
    openssl = f"openssl s_client -connect {door} -alpn istio"
    return [
        *(_request(row, entrances[row.name]) for row in rows if _by_hand(row)),
        Hint(
            why="STRICT: the server shows its certificate, and asks for ours in vain",
            command=f"{openssl} -CAfile {directory}/ca/root-cert.pem </dev/null",
        ),
        Hint(why="what the processes say", command=f"tail -n 3 {directory}/*.log"),
    ]


def _by_hand(row: Row) -> bool:
    """Tell whether curl can do it: it cannot play the client with the stolen key."""
    return row.question is Question.ANSWER and row.caller is not Caller.STRAY


def _request(row: Row, entrance: str) -> Hint:
    return Hint(
        why=f"{row.tried}: {row.expected}",
        command=f"curl -sS -o /dev/null -w '%{{http_code}}\\n' http://{entrance}/",
    )
