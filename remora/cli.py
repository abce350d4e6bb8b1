"""The `remora` command: one app, whose commands live in `remora.commands`."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from mesh.errors import ConfigError, RemoraError
from remora.commands import (
    agent,
    analyze,
    ca,
    capture,
    check,
    demo,
    describe,
    proxy,
    proxy_status,
    resources,
    run,
    token,
)
from remora.program import EXIT_BAD_CONFIG, EXIT_FAILURE, complain

app = typer.Typer(
    name="remora",
    help="SPIFFE identity, mutual TLS and zero-trust policy for apps that know nothing of it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.add_typer(ca.app, name="ca")
app.add_typer(token.app, name="token")
app.add_typer(agent.app, name="agent")
app.add_typer(proxy.app, name="proxy")
app.add_typer(capture.app, name="capture")
app.command(name="run", context_settings={"allow_interspersed_args": False})(run.run)
app.command(name="demo")(demo.demo)
app.command(name="describe")(describe.describe)
app.command(name="check")(check.check)
app.command(name="analyze")(analyze.analyze)
app.command(name="apply")(resources.apply)
app.command(name="get")(resources.get)
app.command(name="delete")(resources.delete)
app.command(name="proxy-status")(proxy_status.proxy_status)


@app.callback(invoke_without_command=True)
def root(
    *,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""
    if show_version:
        typer.echo(f"remora {version('remora')}")
        raise typer.Exit


def main() -> None:
    """Run the command line; foreseen errors become one line, never a traceback."""
    try:
        app()
    except ConfigError as error:
        complain(error)
        sys.exit(EXIT_BAD_CONFIG)
    except RemoraError as error:
        complain(error)
        sys.exit(EXIT_FAILURE)
