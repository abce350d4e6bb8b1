"""`remora run`: an app with a sidecar attached."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mesh.log import LogFormat, LogLevel, configure_logging
from remora.attach.plan import Capture, Port, RunOptions


def run(  # noqa: PLR0913 - one parameter per flag
    command: Annotated[list[str], typer.Argument(metavar="CMD...", help="The app.")],
    *,
    ca_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the CA listens.")
    ] = None,
    ca_root_cert: Annotated[
        Path | None, typer.Option(help="Roots that vouch for the CA's server.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="Service-account token.")] = None,
    agent_socket: Annotated[
        Path | None, typer.Option(help="Of an agent that runs already, instead of these three.")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(metavar="NS", help="Whom to be.", show_default="as the token says")
    ] = None,
    service_account: Annotated[str | None, typer.Option(metavar="SA", help="Likewise.")] = None,
    port: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LISTEN:]PORT", help="A port of the app, and where peers connect. Repeatable."
        ),
    ] = None,
    capture: Annotated[Capture, typer.Option(help="See above.")] = Capture.AUTO,
    mtls_mode: Annotated[str | None, typer.Option(metavar="MODE", help="As of proxy run.")] = None,
    outbound: Annotated[
        list[str] | None, typer.Option(metavar="LISTEN=DEST[@ID,..]", help="As of proxy run.")
    ] = None,
    destination: Annotated[
        list[str] | None, typer.Option(metavar="IP:PORT@ID[,ID]", help="As of proxy run.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="As of proxy run.")
    ] = None,
) -> None:
    """Run an app with agent and sidecar beside it, and end with the app and its exit code.

    The app starts when the sidecar is ready, and gets the signals. --capture own makes a network
    namespace for it in which all its TCP goes through the sidecar; here does that in this
    namespace, such as a container's; none uses explicit ports. auto is own for root, else none.
    """
    import trio

    from remora.attach.supervise import decide, run_app
    from remora.program import complaints

    options = RunOptions(
        command=tuple(command),
        capture=decide(capture),
        ports=tuple(map(Port.parse, port or ())),
        agent_socket=agent_socket,
        agent_flags=_agent_flags(
            agent_socket, ca_address, ca_root_cert, token_file, namespace, service_account
        ),
        proxy_flags=(
            *([f"--mtls-mode={mtls_mode}"] if mtls_mode else []),
            *(f"--outbound={way}" for way in outbound or ()),
            *(f"--destination={one}" for one in destination or ()),
            *(f"--label={one}" for one in label or ()),
        ),
    )
    configure_logging(LogFormat.TEXT, LogLevel.INFO)
    with complaints():
        code = trio.run(run_app, options)
    sys.exit(code)


def _agent_flags(
    agent_socket: Path | None,
    ca_address: str | None,
    ca_root_cert: Path | None,
    token_file: Path | None,
    namespace: str | None,
    service_account: str | None,
) -> tuple[str, ...]:
    from mesh.errors import ConfigError

    if agent_socket is not None:
        return ()
    if ca_address is None or ca_root_cert is None or token_file is None:
        raise ConfigError(
            "give --ca-address, --ca-root-cert and --token-file, or --agent-socket of an agent"
        )
    if (namespace is None) != (service_account is None):
        raise ConfigError("--namespace and --service-account belong together")
    who = [f"--service-account={namespace}/{service_account}"] if namespace else []
    return (
        f"--ca-address={ca_address}",
        f"--ca-root-cert={ca_root_cert}",
        f"--token-file={token_file}",
        *who,
    )
