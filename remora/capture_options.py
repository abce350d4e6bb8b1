"""The flags that the commands of `remora capture` share, and the file that they overrule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mesh.errors import ConfigError
from proxy.capture.options import CaptureOptions
from proxy.capture.settings import from_document, parse_options
from proxy.capture.system import Backend

FileOption = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="Settings as YAML, or an object with Istio's annotations."),
]
BackendOption = Annotated[Backend, typer.Option(help="What installs the rules.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SETTING=VALUE", help="Any setting of the file. Repeatable."),
]
IncludeRanges = Annotated[
    str | None, typer.Option("--include-ranges", "-i", metavar="CIDRS", help="Captured outbound.")
]
ExcludeRanges = Annotated[
    str | None, typer.Option("--exclude-ranges", "-x", metavar="CIDRS", help="Never captured.")
]
IncludeInbound = Annotated[
    str | None,
    typer.Option("--include-inbound", "-b", metavar="PORTS", help="Captured inbound; '' for none."),
]
ExcludeInbound = Annotated[
    str | None, typer.Option("--exclude-inbound", "-d", metavar="PORTS", help="Not, although '*'.")
]
IncludePorts = Annotated[
    str | None,
    typer.Option("--include-ports", "-q", metavar="PORTS", help="Captured outbound anywhere."),
]
ExcludePorts = Annotated[
    str | None, typer.Option("--exclude-ports", "-o", metavar="PORTS", help="Never outbound.")
]
ExcludeInterfaces = Annotated[
    str | None, typer.Option("--exclude-interfaces", "-c", metavar="NAMES", help="Left alone.")
]
ProxyUid = Annotated[
    str | None, typer.Option("--proxy-uid", "-u", metavar="UIDS", help="Who the proxy runs as.")
]
Mode = Annotated[
    str | None, typer.Option("--mode", "-m", metavar="MODE", help="REDIRECT, TPROXY or NONE.")
]


def capture_options(  # noqa: PLR0913 - one parameter per flag
    file: Path | None,
    assignments: list[str] | None,
    *,
    mode: str | None = None,
    include_ranges: str | None = None,
    exclude_ranges: str | None = None,
    include_inbound: str | None = None,
    exclude_inbound: str | None = None,
    include_ports: str | None = None,
    exclude_ports: str | None = None,
    exclude_interfaces: str | None = None,
    proxy_uid: str | None = None,
) -> CaptureOptions:
    """Put together what the file says and what the flags say, which count more.

    Raises ConfigError.
    """
    flags = {
        "interceptionMode": mode,
        "includeOutboundIPRanges": include_ranges,
        "excludeOutboundIPRanges": exclude_ranges,
        "includeInboundPorts": include_inbound,
        "excludeInboundPorts": exclude_inbound,
        "includeOutboundPorts": include_ports,
        "excludeOutboundPorts": exclude_ports,
        "excludeInterfaces": exclude_interfaces,
        "proxyUID": proxy_uid,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    return parse_options({**_from_file(file), **_assigned(assignments or []), **given})


def _assigned(assignments: list[str]) -> dict[str, str]:
    for assignment in assignments:
        if "=" not in assignment:
            raise ConfigError(
                f"--set {assignment!r}: write SETTING=VALUE, such as dropInvalid=true"
            )
    settings = dict(assignment.split("=", 1) for assignment in assignments)
    return from_document(settings, "--set")


def _from_file(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    from mesh.files import read_file
    from mesh.resources.errors import ResourceError, UnreadableDocument
    from mesh.resources.tree import Node, plain
    from mesh.resources.yaml_text import read_documents

    try:
        documents = list(read_documents(read_file(path, "capture settings").decode("utf-8")))
    except (UnicodeDecodeError, ResourceError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    match documents:
        case [Node() as document]:
            return from_document(plain(document), str(path))
        case [UnreadableDocument() as problem]:
            raise ConfigError(f"{path} is not YAML: {problem}")
        case _:
            raise ConfigError(f"{path} holds {len(documents)} documents: one is expected")
