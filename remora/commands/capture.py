"""`remora capture`: the kernel's rules that lead an app's connections through the proxy."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
from typing import Annotated

import typer

from proxy.capture.system import Backend
from remora.capture_options import (
    BackendOption,
    ExcludeInbound,
    ExcludeInterfaces,
    ExcludePorts,
    ExcludeRanges,
    FileOption,
    IncludeInbound,
    IncludePorts,
    IncludeRanges,
    Mode,
    ProxyUid,
    SetOption,
    capture_options,
)

app = typer.Typer(no_args_is_help=True, help="Lead an app's connections through the proxy.")

EXIT_NOT_CAPTURED = 3
"""Of `check`: it ran, and capture does not work. Scripts tell it from not having been able to."""


class Output(enum.StrEnum):
    """How findings are printed."""

    TEXT = "text"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print.")]


@app.command()
def apply(  # noqa: PLR0913 - one parameter per flag
    *,
    file: FileOption = None,
    mode: Mode = None,
    include_ranges: IncludeRanges = None,
    exclude_ranges: ExcludeRanges = None,
    include_inbound: IncludeInbound = None,
    exclude_inbound: ExcludeInbound = None,
    include_ports: IncludePorts = None,
    exclude_ports: ExcludePorts = None,
    exclude_interfaces: ExcludeInterfaces = None,
    proxy_uid: ProxyUid = None,
    settings: SetOption = None,
    backend: BackendOption = Backend.AUTO,
) -> None:
    """Put the rules in force in this network namespace; needs CAP_NET_ADMIN.

    The rules, defaults and short flags are istio-iptables'. Lists are comma-separated, '*' is
    everything. Repeating it changes nothing; other options replace the rules in one step.
    """
    from proxy.capture import system

    options = capture_options(
        file,
        settings,
        mode=mode,
        include_ranges=include_ranges,
        exclude_ranges=exclude_ranges,
        include_inbound=include_inbound,
        exclude_inbound=exclude_inbound,
        include_ports=include_ports,
        exclude_ports=exclude_ports,
        exclude_interfaces=exclude_interfaces,
        proxy_uid=proxy_uid,
    )
    changed = system.apply(options, backend)
    typer.echo("capture rules are in force" if changed else "capture rules were in force already")


@app.command(name="print")
def print_rules(  # noqa: PLR0913 - one parameter per flag
    *,
    file: FileOption = None,
    mode: Mode = None,
    include_ranges: IncludeRanges = None,
    exclude_ranges: ExcludeRanges = None,
    include_inbound: IncludeInbound = None,
    exclude_inbound: ExcludeInbound = None,
    include_ports: IncludePorts = None,
    exclude_ports: ExcludePorts = None,
    exclude_interfaces: ExcludeInterfaces = None,
    proxy_uid: ProxyUid = None,
    settings: SetOption = None,
    backend: BackendOption = Backend.NFT,
) -> None:
    """Show the rules that `apply` would put in force, and change nothing.

    The output is what nft -f or, with --backend iptables, iptables-restore reads.
    """
    from proxy.capture.text import rules_text

    options = capture_options(
        file,
        settings,
        mode=mode,
        include_ranges=include_ranges,
        exclude_ranges=exclude_ranges,
        include_inbound=include_inbound,
        exclude_inbound=exclude_inbound,
        include_ports=include_ports,
        exclude_ports=exclude_ports,
        exclude_interfaces=exclude_interfaces,
        proxy_uid=proxy_uid,
    )
    typer.echo(rules_text(options, for_iptables=backend is Backend.IPTABLES), nl=False)


@app.command()
def clean() -> None:
    """Remove the rules, and all that came with them; what is gone already is no error."""
    from proxy.capture import system

    removed = system.clean()
    typer.echo("capture rules removed" if removed else "there were no capture rules")


@app.command()
def check(
    *,
    file: FileOption = None,
    settings: SetOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Prove by probe connections that capture works; needs root.

    Dials addresses where nobody listens, as the app and as the proxy would. Give the options that
    the rules were made with. Exits with 0 if capture works, and with 3 if it does not.
    """
    from proxy.capture.probe import Finding
    from proxy.capture.probe import check as run_check

    findings = run_check(capture_options(file, settings))
    if all(finding.works is None for finding in findings):
        nothing = "nothing could be proven: no probe could be sent, so capture is not known to work"
        findings.append(Finding(probe="overall", works=False, detail=nothing))
    if output is Output.JSON:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        words = {True: "captured", False: "NOT CAPTURED", None: "not tried"}
        for finding in findings:
            typer.echo(f"{finding.probe}: {words[finding.works]}: {finding.detail}")
    if any(finding.works is False for finding in findings):
        sys.exit(EXIT_NOT_CAPTURED)
