"""`remora proxy`: the sidecar."""

from __future__ import annotations

import functools
import socket
from pathlib import Path
from typing import Annotated

import typer

from mesh.log import LogFormat, LogLevel, configure_logging
from remora.options import LogFormatOption, LogLevelOption

app = typer.Typer(no_args_is_help=True, help="The sidecar: mutual TLS for one workload.")


@app.command()
def run(  # noqa: PLR0913 - one parameter per flag
    *,
    agent_socket: Annotated[Path, typer.Option(help="Unix socket of the agent.")],
    inbound: Annotated[
        list[str] | None,
        typer.Option(metavar="LISTEN=APP", help="A way in to the app. Repeatable."),
    ] = None,
    outbound: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LISTEN=DEST[@ID,..]",
            help="A way out: as the registry says; or to a peer that must prove one of the SPIFFE "
            "IDs, or @plaintext. Repeatable.",
        ),
    ] = None,
    mtls_mode: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="Instead of a control plane: STRICT, PERMISSIVE or DISABLE.",
        ),
    ] = None,
    port_mtls: Annotated[
        list[str] | None,
        typer.Option(metavar="PORT=MODE", help="Likewise, for one port of the app. Repeatable."),
    ] = None,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="This workload's name, else the host's.")
    ] = "",
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A label that policies select by. Repeatable."),
    ] = None,
    workload_group: Annotated[
        str, typer.Option(metavar="NAME", help="WorkloadGroup to register under.")
    ] = "",
    address: Annotated[
        list[str] | None,
        typer.Option(metavar="IP", help="Where others reach this workload. Repeatable."),
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Keep the last good policies here.")
    ] = None,
    capture: Annotated[
        str | None,
        typer.Option(metavar="MODE", help="Serve captured traffic: REDIRECT or TPROXY."),
    ] = None,
    destination: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IP:PORT@ID[,ID]",
            help="Captured: who a peer must be. Repeatable.",
        ),
    ] = None,
    outbound_policy: Annotated[
        str, typer.Option(metavar="POLICY", help="Captured: ALLOW_ANY or REGISTRY_ONLY.")
    ] = "ALLOW_ANY",
    server_first_port: Annotated[
        list[int] | None,
        typer.Option(metavar="PORT", help="Captured: the server speaks first. Repeatable."),
    ] = None,
    app_proxy_protocol: Annotated[
        list[int] | None,
        typer.Option(metavar="PORT", help="Captured: where the app wants PROXY v2. Repeatable."),
    ] = None,
    trust_proxy_protocol: Annotated[
        list[str] | None,
        typer.Option(metavar="CIDR", help="Captured: load balancers that send it. Repeatable."),
    ] = None,
    trust_domain_alias: Annotated[
        list[str] | None,
        typer.Option(metavar="TD", help="One more trust domain to admit. Repeatable."),
    ] = None,
    federated_trust_domain: Annotated[
        list[str] | None,
        typer.Option(metavar="TD", help="The same, with roots of its own. Repeatable."),
    ] = None,
    detect_timeout: Annotated[
        str, typer.Option(metavar="TIME", help="Wait for a client's first bytes.")
    ] = "5s",
    connect_timeout: Annotated[
        str, typer.Option(metavar="TIME", help="TCP and TLS to a peer, TCP to the app.")
    ] = "10s",
    idle_timeout: Annotated[
        str, typer.Option(metavar="TIME", help="End connections that carry nothing for so long.")
    ] = "1h",
    max_connection_age: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="End connections about that old.", show_default="no end"),
    ] = None,
    metrics_listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve /metrics for Prometheus there.")
    ] = None,
    workers: Annotated[
        int, typer.Option(metavar="N", min=1, max=64, help="Processes that share the ports.")
    ] = 1,
    plain_relay: Annotated[
        bool, typer.Option("--plain-relay", help="Relay by public API only, several times slower.")
    ] = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_level: LogLevelOption = LogLevel.INFO,
) -> None:
    """Stand beside an app: take mutual TLS in for it, and make mutual TLS of what it sends.

    Policy comes from the control plane through the agent, unless modes are given as flags.
    Addresses are HOST:PORT or [V6]:PORT. Ports open when certificate and policy are there.
    Whatever fails is reset.
    """
    from mesh.address import Address
    from mesh.duration import parse_duration
    from proxy.captured_flags import parse_captured
    from proxy.config import (
        ProxyConfig,
        parse_discovery,
        parse_inbound,
        parse_limits,
        parse_mode,
        parse_outbound,
        parse_port_modes,
        parse_trust_domains,
    )
    from proxy.relay import prepare
    from proxy.server import serve
    from remora.program import run_program
    from remora.supervisor import supervise, until_orphaned

    modes = parse_port_modes(port_mtls or ())
    mode = parse_mode(mtls_mode or "PERMISSIVE") if mtls_mode or modes else None
    captured = parse_captured(
        capture,
        mode=mode,
        port_modes=modes,
        destinations=destination or (),
        outbound_policy=outbound_policy,
        server_first_ports=server_first_port or (),
        proxy_protocol_ports=app_proxy_protocol or (),
        balancers=trust_proxy_protocol or (),
    )
    ways_in = parse_inbound(inbound or (), mode, modes, elsewhere=captured is not None)
    ways_out = parse_outbound(outbound or ())
    discovery = parse_discovery(
        needed=bool(ways_in or captured) or any(way.identities is None for way in ways_out),
        standalone=mode is not None,
        name=name,
        labels=label or (),
        group=workload_group,
        addresses=address or (),
        state_dir=state_dir,
        default_name=socket.gethostname(),
    )
    config = ProxyConfig(
        agent_socket=agent_socket,
        inbound=ways_in,
        outbound=ways_out,
        captured=captured,
        discovery=discovery,
        trust_domain_aliases=parse_trust_domains(trust_domain_alias or ()),
        federated_trust_domains=parse_trust_domains(federated_trust_domain or ()),
        detect_timeout=parse_duration(detect_timeout).total_seconds(),
        connect_timeout=parse_duration(connect_timeout).total_seconds(),
        metrics_listen=None if metrics_listen is None else Address.parse(metrics_listen),
        shared_ports=workers > 1,
    )
    configure_logging(log_format, log_level)

    limits = parse_limits(idle_timeout, max_connection_age)

    async def main() -> None:
        await prepare(plain=plain_relay, limits=limits)
        await serve(config)

    if workers == 1:
        run_program(main)
        return
    supervise(
        workers,
        lambda _, lifeline: run_program(functools.partial(until_orphaned, main, lifeline)),
    )
