"""What the CA has revoked: single certificates, and identities with all they had. Pure.

A revoked identity gets no certificate any more, until that is undone; the certificates it had stay
revoked until they end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, cast

from ca.ledger import IssuedRecord
from mesh.errors import ConfigError
from mesh.spiffe import SpiffeId

_SERIAL = re.compile("[0-9a-fA-F]{1,40}")
"""RFC 5280, 4.1.2.2: a serial number has at most 20 octets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedCertificate:
    """A certificate that must not be believed any more. `signer` is an anchor ID."""

    serial: int
    identity: str
    signer: str
    not_after: datetime
    revoked_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocations:
    """Certificates by serial number, and identities with the time they were revoked."""

    certificates: Mapping[int, RevokedCertificate] = field(
        default_factory=dict[int, RevokedCertificate]
    )
    identities: Mapping[str, datetime] = field(default_factory=dict[str, datetime])

    @property
    def serials(self) -> AbstractSet[int]:
        """The serial numbers that are revoked."""
        return self.certificates.keys()

    def is_revoked(self, identity: SpiffeId) -> bool:
        """Tell whether an identity may have no certificate."""
        return str(identity) in self.identities

    def revoke(self, records: Iterable[IssuedRecord], now: datetime) -> Revocations:
        """Revoke certificates; those that are revoked already keep their time."""
        added = {
            record.serial: RevokedCertificate(
                serial=record.serial,
                identity=record.identity,
                signer=record.signer,
                not_after=record.not_after,
                revoked_at=now,
            )
            for record in records
        }
        return replace(self, certificates={**added, **self.certificates})

    def revoke_identity(self, identity: SpiffeId, now: datetime) -> Revocations:
        """Let an identity have no certificate any more."""
        return replace(self, identities={str(identity): now, **self.identities})

    def restore_identity(self, identity: SpiffeId) -> Revocations:
        """Let an identity have certificates again. Those it had stay revoked."""
        left = {name: when for name, when in self.identities.items() if name != str(identity)}
        return replace(self, identities=left)

    def without_ended(self, now: datetime) -> Revocations:
        """Forget the certificates that have ended, as a revocation list may (RFC 5280, 5)."""
        left = {serial: one for serial, one in self.certificates.items() if now < one.not_after}
        return replace(self, certificates=left)


def write_revocations(revocations: Revocations) -> bytes:
    """Return the revocations as JSON."""
    document = {
        "certificates": [
            {
                "serial": f"{one.serial:x}",
                "identity": one.identity,
                "signer": one.signer,
                "not_after": one.not_after.isoformat(),
                "revoked_at": one.revoked_at.isoformat(),
            }
            for one in revocations.certificates.values()
        ],
        "identities": {name: when.isoformat() for name, when in revocations.identities.items()},
    }
    return json.dumps(document, indent=1).encode("ascii") + b"\n"


def read_revocations(data: bytes, source: str) -> Revocations:
    """Read what `write_revocations` wrote.

    Raises ConfigError: a list that cannot be read must never pass for an empty one.
    """
    try:
        document = cast("dict[str, Any]", json.loads(data))
        certificates = [_certificate(entry) for entry in document["certificates"]]
        identities = {name: _time(when) for name, when in document["identities"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{source} is no record of revocations ({error}): restore it from a backup"
        ) from error
    return Revocations(
        certificates={one.serial: one for one in certificates}, identities=identities
    )


def parse_serial(text: str) -> int:
    """Parse a serial number in hexadecimal, as logs have it. Raises ConfigError."""
    digits = text.replace(":", "").removeprefix("0x")
    if not _SERIAL.fullmatch(digits):
        raise ConfigError(f"--serial {text[:60]!r} is not a serial number in hexadecimal")
    return int(digits, 16)


def _certificate(entry: dict[str, Any]) -> RevokedCertificate:
    return RevokedCertificate(
        serial=int(entry["serial"], 16),
        identity=entry["identity"],
        signer=entry["signer"],
        not_after=_time(entry["not_after"]),
        revoked_at=_time(entry["revoked_at"]),
    )


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
