"""`remora ca`: the certificate authority."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from mesh.log import LogFormat, LogLevel, configure_logging
from remora.commands import ca_root
from remora.options import LogFormatOption, LogLevelOption

app = typer.Typer(no_args_is_help=True, help="The control plane and its CA.")
app.add_typer(ca_root.app, name="root")


@app.command()
def serve(  # noqa: PLR0913 - one parameter per flag
    *,
    state_dir: Annotated[Path, typer.Option(metavar="DIR", help="Its keys and its root.")],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT")] = "127.0.0.1:15012",
    trust_domain: Annotated[
        str, typer.Option(metavar="NAME", help="What its SPIFFE IDs begin with.")
    ] = "cluster.local",
    ca_certs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Istio's cacerts, for its own root.")
    ] = None,
    dns_name: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Of this server too. Repeatable.")
    ] = None,
    workload_cert_ttl: Annotated[
        str, typer.Option(metavar="TTL", help="Life of certificates.")
    ] = "24h",
    max_workload_cert_ttl: Annotated[
        str, typer.Option(metavar="TTL", help="What may be asked for.")
    ] = "2160h",
    jwks: Annotated[
        str | None, typer.Option(metavar="FILE|URL", help="Keys of one more token issuer.")
    ] = None,
    jwks_issuer: Annotated[
        str | None, typer.Option(metavar="ISS", help="What its tokens must name as iss.")
    ] = None,
    oidc_issuer: Annotated[
        str | None, typer.Option(metavar="URL", help="One more, by OIDC discovery.")
    ] = None,
    issuer_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Roots of the issuers' own servers.")
    ] = None,
    token_audience: Annotated[
        list[str] | None, typer.Option(metavar="AUD", help="Instead of istio-ca. Repeatable.")
    ] = None,
    rate_limit: Annotated[
        float, typer.Option(metavar="N", help="Certificates a second; 0: any.")
    ] = 5000,
    identity_rate_limit: Annotated[
        float, typer.Option(metavar="N", help="The same, for one identity.")
    ] = 20,
    metrics_listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve /metrics there.")
    ] = None,
    resources: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Instead of DIR/resources."),
    ] = None,
    federation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Trust domains to federate with.")
    ] = None,
    trusted_node_account: Annotated[
        list[str] | None,
        typer.Option(metavar="NS/SA", help="Acts for others. Repeatable."),
    ] = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_level: LogLevelOption = LogLevel.INFO,
) -> None:
    """Sign certificates for workloads, and send their proxies policy.

    Agents need DIR/root-cert.pem, made at the first start, and a token: of `remora token create`,
    or of --jwks and --oidc-issuer. Policies and services are YAML files, read as they change.
    """
    from ca.config import (
        NO_FEDERATION,
        CaConfig,
        parse_node_accounts,
        parse_rate,
        parse_trust_domain,
        read_federation,
        split_jwks,
    )
    from ca.rate_limit import DEFAULT_PER_IDENTITY, DEFAULT_TOTAL
    from ca.server import serve as serve_ca
    from mesh.address import Address
    from mesh.api import TOKEN_AUDIENCE
    from mesh.duration import parse_duration
    from remora.program import run_program

    domain = parse_trust_domain(trust_domain)
    jwks_file, jwks_url = split_jwks(jwks)
    config = CaConfig(
        state_dir=state_dir,
        listen=Address.parse(listen),
        trust_domain=domain,
        ca_certs=ca_certs,
        dns_names=tuple(dns_name or ()),
        default_ttl=parse_duration(workload_cert_ttl),
        max_ttl=parse_duration(max_workload_cert_ttl),
        jwks=jwks_file,
        jwks_url=jwks_url,
        jwks_issuer=jwks_issuer,
        oidc_issuer=oidc_issuer,
        issuer_ca=issuer_ca,
        token_audiences=tuple(token_audience or (TOKEN_AUDIENCE,)),
        metrics_listen=None if metrics_listen is None else Address.parse(metrics_listen),
        rate_limit=parse_rate("--rate-limit", rate_limit, DEFAULT_TOTAL),
        identity_rate_limit=parse_rate(
            "--identity-rate-limit", identity_rate_limit, DEFAULT_PER_IDENTITY
        ),
        resources=resources,
        federation=NO_FEDERATION if federation is None else read_federation(federation, domain),
        trusted_nodes=parse_node_accounts(trusted_node_account or ()),
    )
    configure_logging(log_format, log_level)
    run_program(functools.partial(serve_ca, config))


@app.command()
def revoke(
    *,
    state_dir: Annotated[Path, typer.Option(metavar="DIR", help="The CA's state directory.")],
    serial: Annotated[
        str | None, typer.Option(metavar="HEX", help="Of the certificate to revoke.")
    ] = None,
    identity: Annotated[
        str | None, typer.Option(metavar="ID", help="Revoke all it has; it gets nothing more.")
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Let the identity have certificates again.")
    ] = False,
) -> None:
    """Revoke a certificate, or an identity with all its certificates.

    Running CAs publish it within seconds; workloads refuse new connections
    and close open ones once their agents have it. What is revoked stays so
    until it ends. The audit log has the serial numbers.
    """
    from ca.operations import restore_identity, revoke_identity, revoke_serial
    from ca.revocations import parse_serial
    from mesh.clock import system_now
    from mesh.errors import ConfigError
    from mesh.spiffe import InvalidSpiffeId, SpiffeId

    if (serial is None) == (identity is None) or (undo and identity is None):
        raise ConfigError("give either --serial or --identity; --undo goes with --identity")
    now = system_now()
    if serial is not None:
        found = revoke_serial(state_dir, parse_serial(serial), now)
    else:
        try:
            revoked = SpiffeId.parse(identity or "")
        except InvalidSpiffeId as error:
            raise ConfigError(f"--identity: {error}") from error
        if undo:
            restore_identity(state_dir, revoked, now)
            typer.echo(f"{revoked} may have certificates again")
            return
        found = revoke_identity(state_dir, revoked, now)
    for record in found:
        typer.echo(f"revoked {record.serial:x} of {record.identity}")
    if not found:
        typer.echo("no certificate of it is in use; it gets none from now on")
