"""`remora proxy-status`: which proxy has which configuration."""

from __future__ import annotations

import enum
import json
import sys
from pathlib import Path
from typing import Annotated

import typer


class Output(enum.StrEnum):
    """How it prints."""

    TABLE = "table"
    JSON = "json"


def proxy_status(
    name: Annotated[str | None, typer.Argument(metavar="[NAME[.NAMESPACE]]")] = None,
    *,
    output: Annotated[Output, typer.Option("-o", "--output")] = Output.TABLE,
    state_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="The control plane's state directory.")
    ] = Path("state/ca"),
) -> None:
    """Print each connected proxy, and how far it has what the control plane holds.

    SYNCED: it has acknowledged the newest. STALE: sent, not acknowledged yet.
    ERROR: it refused something; the reason follows. NOT SENT: nothing to send
    yet. Exit code 1 if a proxy that was named is not connected.
    """
    import trio

    from remora.resources.status import fetch_status, select, status_json, status_table

    report = trio.run(fetch_status, state_dir)
    chosen = select(report, name)
    if output is Output.JSON:
        typer.echo(json.dumps(status_json(chosen), indent=2))
        return
    if not chosen.proxies:
        print("No proxies are connected.", file=sys.stderr)  # noqa: T201
    else:
        typer.echo(status_table(chosen))
    for line in chosen.complaints():
        print(line, file=sys.stderr)  # noqa: T201
