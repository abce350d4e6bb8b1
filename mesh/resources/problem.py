"""What the reader of a resource file is told: one sentence, with the place it is about."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.resources.tree import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong, or worth a warning, in one resource of a text.

    `line` is 1 or more, or 0 if the resource did not come from text; `resource` is `Kind ns/name`
    as far as it could be read; `field` is a path such as `spec.rules[0].from`, or empty.
    """

    file: str
    line: int
    resource: str
    field: str
    message: str

    def __str__(self) -> str:
        """Write `FILE:LINE: RESOURCE: FIELD: message`, leaving out what is not known."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        parts = (place, self.resource, self.field, self.message)
        return ": ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True, order=True)
class Refused:
    """The name of a resource that could not be taken, as far as it could be read.

    Whoever enforces policy must not act as if it had never been there.
    """

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found in a value: where in it, and the sentence."""

    path: Path
    message: str
    warning: bool = False
