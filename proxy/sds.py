"""Following the agent's secrets over SDS, for as long as the proxy runs.

An agent that is away is waited for. Meanwhile the proxy goes on with the last good identity, and
without one its ports stay closed.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import trio

from mesh.api import STREAM_SECRETS
from mesh.clock import Now
from mesh.grpc import GrpcError, Limits, Status, open_channel
from mesh.log import get_logger
from mesh.unix_socket import open_unix_stream
from proxy.backoff import pauses
from proxy.identity import Identity, IdentityStore
from proxy.sds_state import SecretRefused, SecretsState

log = get_logger("proxy.sds")

LIMITS = Limits(idle_timeout=None)
"""The stream is silent for half a certificate's life; PINGs tell a dead agent from a quiet one."""


async def follow_identity(
    socket_path: Path, state: SecretsState, store: IdentityStore, now: Now
) -> None:
    """Keep `store` at the newest identity the agent has; never ends by itself.

    Raises ConfigError for a socket path that can never work.
    """
    waits, complaint = pauses(), ""
    while True:
        before = store.current
        try:
            await _follow_once(socket_path, state, store, now)
        except (OSError, GrpcError) as error:
            if store.current is not before:  # it was a good stream while it lasted
                waits, complaint = pauses(), ""
            if (said := complaint_about_agent(socket_path, error)) != complaint:
                complaint = said
                log.warning("no connection to the agent", reason="agent_unreachable", detail=said)
        await trio.sleep(next(waits))


async def _follow_once(
    socket_path: Path, state: SecretsState, store: IdentityStore, now: Now
) -> None:
    """Follow one stream to its end. Raises OSError, GrpcError."""
    async with (
        open_channel(lambda: open_unix_stream(socket_path), limits=LIMITS) as channel,
        channel.stream(STREAM_SECRETS) as call,
    ):
        await call.send(state.subscribe())
        async for response in call:
            answer = state.take(response)
            await call.send(answer)
            if answer.HasField("error_detail"):
                log.warning(
                    "secret refused",
                    reason=SecretRefused.reason,
                    detail=answer.error_detail.message,
                )
            else:
                _publish(state, store, now)


def _publish(state: SecretsState, store: IdentityStore, now: Now) -> None:
    try:
        identity = state.identity(now())
    except SecretRefused as refusal:
        log.warning("identity not usable yet", reason=refusal.reason, detail=str(refusal))
        return
    if identity is not None:
        store.publish(identity)
        _log_identity(identity)


def _log_identity(identity: Identity) -> None:
    log.info(
        "identity received",
        identity=str(identity.svid.id),
        serial=f"{identity.svid.serial:x}",
        not_after=identity.svid.not_after.isoformat(),
    )


def node_id() -> str:
    """Name this proxy to the agent, in the form of Istio's node IDs."""
    return f"sidecar~{socket.gethostname()}~{os.getpid()}"


def complaint_about_agent(path: Path, error: OSError | GrpcError) -> str:
    """Say why the agent cannot be reached, and what to do."""
    match error:
        case GrpcError(code=Status.PERMISSION_DENIED):
            return (
                f"the agent at {path} does not serve this user (uid {os.geteuid()}): "
                f"start it with --allow-uid {os.geteuid()}"
            )
        case GrpcError():
            return f"the agent at {path} ended the stream ({error}): see its log"
        case PermissionError():
            return f"no permission to connect to {path}: run as the agent's user"
        case _:
            why = error.strerror
            return f"nothing answers on {path} ({why}): start the agent, or correct the path"
