"""`remora token`: service-account tokens, for workloads without a platform that gives them one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Tokens that prove to the CA who a workload is.")


@app.command()
def create(
    state_dir: Annotated[Path, typer.Option(metavar="DIR", help="The CA's state directory.")],
    service_account: Annotated[str, typer.Option(metavar="NS/SA", help="Whom it speaks for.")],
    ttl: Annotated[str, typer.Option(metavar="TTL", help="How long it is good for.")] = "1h",
    audience: Annotated[str, typer.Option(metavar="AUD", help="What it is good for.")] = "istio-ca",
) -> None:
    """Print a token for a service account, signed with the CA's own token key.

    The CA must have been started once on the directory: that makes the key.
    Whoever holds the token is that account until it expires: keep it secret.
    """
    from ca.config import parse_account, parse_audience, parse_token_ttl
    from ca.material import load_token_key
    from ca.tokens import create_token
    from mesh.clock import system_now

    account = parse_account(service_account)
    chosen, life = parse_audience(audience), parse_token_ttl(ttl)
    key = load_token_key(state_dir)
    typer.echo(create_token(key, account, audience=chosen, ttl=life, now=system_now()))
