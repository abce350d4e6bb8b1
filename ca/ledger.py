"""Which certificates are out there: the record from which the CA knows when it is safe to go on.

One line for each certificate issued: whose, until when, signed by which root, handed out together
with which roots, and in place of which earlier certificate. From these facts alone follows who has
which roots. Whoever uses a certificate got it in one answer with the roots named in its line.
Whoever holds a certificate that was replaced does not use it any more, unless the answer was lost
on the way. Then it asks again, soon; so a certificate counts as replaced once nobody has asked to
replace it for a while. The certificates that are neither ended nor replaced nor revoked show what
workloads have.

Pure: lines in, values out.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SETTLING = timedelta(minutes=3)
"""After the last answer that replaces a certificate. Whoever did not get that answer asks again:
our agents after 90 s at most, with up to 50 s of attempts before that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedRecord:
    """One certificate. `signer` and `roots` are anchor IDs."""

    serial: int
    identity: str
    issued_at: datetime
    not_after: datetime
    signer: str
    roots: frozenset[str]
    replaces: int | None = None


@functools.lru_cache(maxsize=64)
def anchor_id(root: x509.Certificate) -> str:
    """Name a root by what verifies: its subject and its key. A new life does not change it."""
    key = root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(root.subject.public_bytes() + key).hexdigest()[:32]


def write_record(record: IssuedRecord) -> bytes:
    """Return the line of a record."""
    entry: dict[str, Any] = {
        "serial": f"{record.serial:x}",
        "identity": record.identity,
        "issued_at": int(record.issued_at.timestamp()),
        "not_after": int(record.not_after.timestamp()),
        "signer": record.signer,
        "roots": sorted(record.roots),
    }
    if record.replaces is not None:
        entry["replaces"] = f"{record.replaces:x}"
    return json.dumps(entry, separators=(",", ":")).encode("ascii") + b"\n"


def read_records(data: bytes) -> Iterator[IssuedRecord]:
    """Return the records in `data`. A line that was torn, as by a full disk, is left out.

    The certificate of such a line never left: issuing waits for its line.
    """
    for line in data.splitlines():
        record = _read(line)
        if record is not None:
            yield record


def in_use(
    records: Iterable[IssuedRecord], now: datetime, revoked: Collection[int] = ()
) -> list[IssuedRecord]:
    """Return the certificates that workloads may be using: not ended, replaced, or revoked.

    A certificate is replaced only by one of the same identity: nobody can speak for another.
    """
    known = list(records)
    asked_again = {
        (record.replaces, record.identity)
        for record in known
        if record.replaces is not None and now - record.issued_at < SETTLING
    }
    replaced = {
        (record.replaces, record.identity) for record in known if record.replaces is not None
    } - asked_again
    return [
        record
        for record in known
        if now < record.not_after
        and (record.serial, record.identity) not in replaced
        and record.serial not in revoked
    ]


def compact(data: bytes, now: datetime) -> bytes:
    """Return the lines that still matter: those of certificates that have not ended."""
    return b"".join(write_record(record) for record in read_records(data) if now < record.not_after)


def _read(line: bytes) -> IssuedRecord | None:
    try:
        entry = cast("dict[str, Any]", json.loads(line))
        replaces = entry.get("replaces")
        return IssuedRecord(
            serial=int(entry["serial"], 16),
            identity=entry["identity"],
            issued_at=datetime.fromtimestamp(entry["issued_at"], UTC),
            not_after=datetime.fromtimestamp(entry["not_after"], UTC),
            signer=entry["signer"],
            roots=frozenset(entry["roots"]),
            replaces=None if replaces is None else int(replaces, 16),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
