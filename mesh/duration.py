"""Durations as Istio and Go write them: `30s`, `10m`, `24h`, `1h30m`, `250ms`."""

from __future__ import annotations

import re
from datetime import timedelta

from mesh.errors import ConfigError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_WHOLE = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+")


def parse_duration(text: str) -> timedelta:
    """Parse a Go-style duration, never negative. Raises ConfigError."""
    if not _WHOLE.fullmatch(text):
        raise ConfigError(f"{text!r} is not a duration: write it like 30s, 10m, 24h or 1h30m")
    try:
        return timedelta(seconds=sum(float(n) * _UNITS[unit] for n, unit in _PART.findall(text)))
    except OverflowError as error:
        raise ConfigError(f"{text!r} is a longer duration than can be used") from error


def format_duration(duration: timedelta) -> str:
    """Write a duration as `parse_duration` reads it, to the millisecond."""
    left = round(duration.total_seconds() * 1000)
    parts: list[str] = []
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
