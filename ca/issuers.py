"""Whom the CA believes: the authenticators that its configuration asks for, in their order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import trio
from cryptography.hazmat.primitives.asymmetric import ec

from ca.authenticate import (
    Authenticator,
    CertificateAuthenticator,
    JoinTokenAuthenticator,
    RemoteTokenAuthenticator,
    TokenAuthenticator,
)
from ca.config import CaConfig
from ca.join_tokens import JoinTokens
from ca.jwks import TokenKey, parse_jwks
from ca.key_cache import KeyCache
from ca.oidc import KeyFetcher
from ca.tokens import JOIN_ISSUER, own_issuer
from mesh.files import read_file


async def remote_issuers(config: CaConfig, now: datetime) -> tuple[RemoteTokenAuthenticator, ...]:
    """Return the authenticators of issuers besides the CA itself.

    A key file must be usable now. An issuer that is out of reach now may be back later.
    Raises ConfigError.
    """
    found: list[RemoteTokenAuthenticator] = []
    if config.jwks is not None:
        fetch = partial(_read_key_set, config.jwks)
        cache = KeyCache(fetch, str(config.jwks), keys=await fetch(), fetched=now)
        found.append(_authenticator(config, "jwks", cache, config.jwks_issuer))
    if config.jwks_url is not None or config.oidc_issuer is not None:
        fetcher = KeyFetcher(config.issuer_ca)
        if (url := config.jwks_url) is not None:
            cache = KeyCache(partial(fetcher.key_set, url), url)
            found.append(_authenticator(config, "jwks", cache, config.jwks_issuer))
        if (issuer := config.oidc_issuer) is not None:
            cache = KeyCache(partial(fetcher.discovered_key_set, issuer), issuer)
            found.append(_authenticator(config, "oidc", cache, issuer))
    return tuple(found)


def authenticator_chain(
    config: CaConfig,
    token_key: ec.EllipticCurvePrivateKey,
    remote: Sequence[RemoteTokenAuthenticator],
    revoked: Callable[[], Collection[int]],
) -> tuple[Authenticator, ...]:
    """Return every way to prove an identity, in the order they are tried.

    The certificate comes first, as in Istio: a workload that renews with it may still send the
    token that it joined with. What needs the network comes last. `revoked` returns the serial
    numbers that are no good any more.
    """
    audiences = frozenset(config.token_audiences)
    key = token_key.public_key()
    return (
        CertificateAuthenticator(trust_domain=config.trust_domain, revoked=revoked),
        TokenAuthenticator(
            name="own-token",
            issuer=own_issuer(key, audiences),
            trust_domain=config.trust_domain,
        ),
        JoinTokenAuthenticator(
            name="join-token",
            issuer=own_issuer(key, audiences, JOIN_ISSUER),
            tokens=JoinTokens(config.state_dir),
            trust_domain=config.trust_domain,
        ),
        *remote,
    )


def _authenticator(
    config: CaConfig, name: str, keys: KeyCache, issuer: str | None
) -> RemoteTokenAuthenticator:
    return RemoteTokenAuthenticator(
        name=name,
        keys=keys,
        issuer=issuer,
        audiences=frozenset(config.token_audiences),
        trust_domain=config.trust_domain,
    )


async def _read_key_set(path: Path) -> tuple[TokenKey, ...]:
    data = await trio.to_thread.run_sync(read_file, path, "key set")
    return parse_jwks(data, str(path))
