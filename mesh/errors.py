"""The root of every error that Remora raises on purpose.

One small hierarchy per package grows from here; each leaf is named for the fact it states and
carries a short stable `reason`, the same word in logs, metrics and command-line output.
"""

from __future__ import annotations

from typing import ClassVar


class RemoraError(Exception):
    """Something went wrong in a way that was foreseen; the message is written for an operator.

    The message says what happened, to whom, and what to do next.
    """

    reason: ClassVar[str] = "error"


class ConfigError(RemoraError):
    """The operator gave a flag, file or environment value that cannot be used."""

    reason = "bad_config"
