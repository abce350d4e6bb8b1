"""`remora agent`: keys and certificates for the workloads of one machine."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from mesh.log import LogFormat, LogLevel, configure_logging
from remora.options import LogFormatOption, LogLevelOption

app = typer.Typer(no_args_is_help=True, help="Keys and certificates for local workloads.")


@app.command()
def run(  # noqa: PLR0913 - one parameter per flag
    *,
    ca_address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the CA listens.")],
    ca_root_cert: Annotated[Path, typer.Option(help="Roots that vouch for the CA's server.")],
    token_file: Annotated[Path, typer.Option(help="Service-account token; read every time.")],
    socket: Annotated[Path, typer.Option(help="Unix socket to serve secrets on.")],
    trust_domain: Annotated[str, typer.Option(help="Of the workload's SPIFFE ID.")] = (
        "cluster.local"
    ),
    service_account: Annotated[
        str | None,
        typer.Option(metavar="NS/SA", help="Whom to be.", show_default="the token's subject"),
    ] = None,
    secret_ttl: Annotated[str, typer.Option(help="Life of certificates to ask for.")] = (
        "24h"  # noqa: S107 - a duration
    ),
    ca_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="SPIFFE ID or DNS name the CA must prove.",
            show_default="account istio-system/istiod",
        ),
    ] = None,
    allow_uid: Annotated[
        list[int] | None,
        typer.Option(metavar="UID", help="One more user that may connect. Repeatable."),
    ] = None,
    registration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Serve a whole node: who of its callers is whom."),
    ] = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_level: LogLevelOption = LogLevel.INFO,
) -> None:
    """Get certificates from the CA, keep them fresh, and serve them to local proxies.

    Speaks Istio's CreateCertificate to the CA, and Envoy's SDS on the socket. Keys stay
    in memory. Only the agent's own user and root may connect; with --registration every
    process may, and is what the entries for it say.
    """
    from agent.config import (
        AgentConfig,
        CaAddress,
        parse_account,
        parse_ca_name,
        parse_trust_domain,
    )
    from agent.server import serve
    from mesh.duration import parse_duration
    from remora.program import run_program

    domain = parse_trust_domain(trust_domain)
    config = AgentConfig(
        ca_address=CaAddress.parse(ca_address),
        ca_name=parse_ca_name(ca_name, domain),
        ca_root_cert=ca_root_cert,
        token_file=token_file,
        socket=socket,
        trust_domain=domain,
        account=parse_account(service_account),
        secret_ttl=parse_duration(secret_ttl),
        allow_uids=tuple(allow_uid or ()),
        registration=registration,
    )
    configure_logging(log_format, log_level)
    run_program(functools.partial(serve, config))
