"""One piece of advice: a code, a level, the resource it is about, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

from mesh.policy import analysis


class Level(StrEnum):
    """How bad it is: the order is that of `--fail-on`."""

    INFO = "Info"
    WARNING = "Warning"
    ERROR = "Error"

    def reaches(self, other: Level) -> bool:
        """Tell whether this level is at least as bad as another."""
        order = list(Level)
        return order.index(self) >= order.index(other)


class Code(Enum):
    """Our own messages, for what Istio does not look at: code, name, level.

    docs/analysis.md explains each.
    """

    PERMISSIVE = ("REM0001", "PermissiveMode", Level.INFO)
    SHADOWED = ("REM0002", "ShadowedPeerAuthentication", Level.WARNING)
    OVERLAPPING = ("REM0003", "OverlappingSelectors", Level.WARNING)
    ROOT_SELECTOR = ("REM0004", "IgnoredRootSelector", Level.WARNING)
    UNSELECTED = ("REM0005", "SelectsNothing", Level.WARNING)
    CLIENT_CONFLICT = ("REM0006", "ConflictingDestinationRule", Level.ERROR)
    UNNOTICED_STRICT = ("REM0007", "UnnoticedStrict", Level.WARNING)
    NEVER_MATCHES = ("REM0008", "NeverMatches", Level.WARNING)
    UNVERIFIED_TOKEN = ("REM0009", "UnverifiedToken", Level.WARNING)
    OPEN_TO_PLAINTEXT = ("REM0010", "OpenToPlaintext", Level.WARNING)
    UNKNOWN_PROVIDER = ("REM0011", "UnknownProvider", Level.ERROR)
    PLAINTEXT_REFUSED = ("REM0012", "PlaintextRefused", Level.WARNING)
    PLAINTEXT_ACCEPTED = ("REM0013", "PlaintextAccepted", Level.INFO)
    UNKNOWN_KIND = ("REM0014", "UnknownKind", Level.ERROR)
    NOT_ENFORCED = ("REM0015", "NotEnforcedYet", Level.WARNING)


@dataclass(frozen=True, slots=True)
class Advice:
    """One message; `resource` is `Kind NAMESPACE/NAME`, or what else it is about."""

    code: str
    name: str
    level: Level
    resource: str
    text: str

    def __str__(self) -> str:
        return f"{self.level} [{self.code}] ({self.resource}) {self.text}"


def advice(code: Code, resource: str, text: str) -> Advice:
    """Write a message of our own."""
    number, name, level = code.value
    return Advice(number, name, level, resource, text)


def of_istio(message: analysis.Message) -> Advice:
    """Take over a message of Istio's analysis."""
    kind = message.kind
    return Advice(kind.code, kind.istio_name, Level(kind.level), message.resource, message.text)
