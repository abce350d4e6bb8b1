"""Command-line options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from mesh.log import LogFormat, LogLevel

LogFormatOption = Annotated[
    LogFormat, typer.Option("--log-format", help="text, or one JSON object a line.")
]
LogLevelOption = Annotated[LogLevel, typer.Option("--log-level", help="Least severe lines shown.")]
