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
    *,
    join: Annotated[
        bool, typer.Option("--join", help="Good for one certificate, to be renewed with itself.")
    ] = False,
) -> None:
    """Print a token for a service account, signed with the CA's own token key.

    The CA must have been started once on the directory: that makes the key.
    Whoever holds the token is that account until it expires, or with --join
    until somebody has used it: keep it secret.
    """
    from ca.config import parse_account, parse_audience, parse_token_ttl
    from ca.join_tokens import JoinTokens
    from ca.material import load_token_key
    from ca.tokens import create_join_token, create_token
    from mesh.clock import system_now

    account = parse_account(service_account)
    chosen, life = parse_audience(audience), parse_token_ttl(ttl)
    key = load_token_key(state_dir)
    now = system_now()
    if not join:
        typer.echo(create_token(key, account, audience=chosen, ttl=life, now=now))
        return
    token_id = JoinTokens(state_dir).add(now + life)
    token = create_join_token(key, account, token_id=token_id, audience=chosen, ttl=life, now=now)
    typer.echo(token)
