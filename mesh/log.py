"""Structured logs on standard error: a short sentence, and facts as keys."""

from __future__ import annotations

import enum
import logging
import sys
from typing import Any, cast

import structlog
from structlog.typing import EventDict


class LogFormat(enum.StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


class LogLevel(enum.StrEnum):
    """The least severe lines that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


Logger = structlog.typing.FilteringBoundLogger


def get_logger(name: str) -> Logger:
    """Return a logger whose lines carry `component=name`."""
    return cast("Logger", structlog.get_logger(component=name))


def configure_logging(form: LogFormat = LogFormat.TEXT, level: LogLevel = LogLevel.INFO) -> None:
    """Set the process's log format and level; call it once, in the composition root."""
    renderers: list[Any] = [structlog.processors.JSONRenderer()]
    if form is LogFormat.TEXT:
        console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
        renderers = [_printable, console]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _printable(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Escape control characters: some values are a peer's words, and a terminal obeys those."""
    for key, value in event.items():
        if key != "exception" and isinstance(value, str) and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode("ascii")
    return event
