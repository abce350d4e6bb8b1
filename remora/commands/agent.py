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
    socket: Annotated[Path, typer.Option(help="Unix socket to serve secrets on.")],
    ca_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the CA listens.")
    ] = None,
    ca_root_cert: Annotated[
        Path | None, typer.Option(help="Roots that vouch for the CA's server.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Service-account token; read every time.")
    ] = None,
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
    output_certs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write certificate, key and roots there too.")
    ] = None,
    prov_cert: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Certificate to show the CA at first.")
    ] = None,
    file_mounted_certs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Serve the files there, and ask no CA.")
    ] = None,
    status_listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Readiness and metrics, by HTTP.")
    ] = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_level: LogLevelOption = LogLevel.INFO,
) -> None:
    """Get certificates from the CA, keep them fresh, and serve them to local workloads.

    On the socket: Envoy's SDS and the SPIFFE Workload API. Keys stay in memory. Only the
    agent's own user and root may connect; with --registration every process may, and is
    what the entries for it say.
    """
    from agent.config import (
        AgentConfig,
        CaAddress,
        MountedConfig,
        parse_account,
        parse_ca_name,
        parse_trust_domain,
        required,
    )
    from agent.server import serve
    from mesh.address import Address
    from mesh.duration import parse_duration
    from remora.program import run_program

    domain = parse_trust_domain(trust_domain)
    status = None if status_listen is None else Address.parse(status_listen)
    uids = tuple(allow_uid or ())
    config: AgentConfig | MountedConfig
    if file_mounted_certs is not None:
        config = MountedConfig(
            directory=file_mounted_certs,
            socket=socket,
            trust_domain=domain,
            allow_uids=uids,
            status_listen=status,
        )
    else:
        config = AgentConfig(
            ca_address=CaAddress.parse(required("--ca-address", ca_address)),
            ca_name=parse_ca_name(ca_name, domain),
            ca_root_cert=required("--ca-root-cert", ca_root_cert),
            token_file=required("--token-file", token_file),
            socket=socket,
            trust_domain=domain,
            account=parse_account(service_account),
            secret_ttl=parse_duration(secret_ttl),
            allow_uids=uids,
            registration=registration,
            output_certs=output_certs,
            prov_cert=prov_cert,
            status_listen=status,
        )
    configure_logging(log_format, log_level)
    run_program(functools.partial(serve, config))
