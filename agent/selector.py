"""Selectors: what can be said of a process, in the words of SPIRE's workload attestors.

A selector is `ATTESTOR:WHAT:VALUE`, such as `unix:uid:1000`. A registration entry lists some; a
caller has all that the kernel's facts about it allow; the entry is the caller's when each of its
selectors is among the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from mesh.errors import RemoraError

MAX_VALUE = 4096
"""Characters: PATH_MAX, and no other value is longer than a path."""

MAX_ID = 2**32 - 2
"""The kernel's uid_t and gid_t have 32 bits, and all of them set means "nobody in particular"."""

_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_ACCOUNT = re.compile(r"[^\s:/]{1,256}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,250}\.(service|scope)")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class InvalidSelector(RemoraError):
    """A text is not a selector."""

    reason: ClassVar[str] = "registration_invalid"


def _is_id(value: str) -> bool:
    return _NUMBER.fullmatch(value) is not None and int(value) <= MAX_ID


def _is_path(value: str) -> bool:
    return value.startswith("/") and "\0" not in value


def _matches(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda value: pattern.fullmatch(value) is not None


UID, GID, USER, GROUP = "unix:uid", "unix:gid", "unix:user", "unix:group"
SUPPLEMENTARY_GID, SUPPLEMENTARY_GROUP = "unix:supplementary_gid", "unix:supplementary_group"
PATH, SHA256 = "unix:path", "unix:sha256"
SYSTEMD_UNIT = "systemd:id"
CONTAINER = "container:id"
POD_UID = "k8s:pod-uid"

KINDS: dict[str, tuple[Callable[[str], bool], str]] = {
    UID: (_is_id, "a user id"),
    GID: (_is_id, "a group id"),
    USER: (_matches(_ACCOUNT), "a user's name"),
    GROUP: (_matches(_ACCOUNT), "a group's name"),
    SUPPLEMENTARY_GID: (_is_id, "a group id"),
    SUPPLEMENTARY_GROUP: (_matches(_ACCOUNT), "a group's name"),
    PATH: (_is_path, "the absolute path of an executable"),
    SHA256: (_matches(_DIGEST), "64 hexadecimal digits in lower case"),
    SYSTEMD_UNIT: (_matches(_UNIT), "a systemd service or scope, such as httpbin.service"),
    CONTAINER: (_matches(_DIGEST), "a container's whole id, 64 hexadecimal digits"),
    POD_UID: (_matches(_UUID), "a pod's UID"),
}
"""Every kind of selector, what its value must be, and how a message calls that."""


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """One thing said of a process: `kind` is one of KINDS."""

    kind: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `ATTESTOR:WHAT:VALUE`. Raises InvalidSelector."""
        attestor, _, rest = text.partition(":")
        what, colon, value = rest.partition(":")
        kind = f"{attestor}:{what}"
        if not colon or kind not in KINDS:
            raise InvalidSelector(
                f"{text[:80]!r} is not a selector: write KIND:VALUE with one of the kinds "
                f"{', '.join(KINDS)}"
            )
        fits, expected = KINDS[kind]
        if len(value) > MAX_VALUE or not fits(value):
            raise InvalidSelector(f"the selector {text[:80]!r} must end with {expected}")
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"
