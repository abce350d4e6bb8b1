"""Which processes of this machine may have the secrets."""

from __future__ import annotations

from collections.abc import Collection

from agent.errors import CallerRefused
from mesh.unix_socket import PeerCredentials

ROOT_UID = 0


def allowed_uids(own: int, more: Collection[int]) -> frozenset[int]:
    """Return who is served: the agent's own user, root, and `more`.

    Root could read the agent's memory anyway, and a sidecar that captures traffic runs as root.
    """
    return frozenset({own, ROOT_UID, *more})


def check_visible(caller: PeerCredentials) -> None:
    """Raise CallerRefused for a process that the kernel cannot show us."""
    if caller.pid == 0:
        raise CallerRefused(
            "a caller from another PID namespace was refused: it cannot be identified; run the "
            "agent in the same PID namespace as its workloads, or in the host's"
        )


def check_caller(caller: PeerCredentials, allowed: Collection[int]) -> None:
    """Raise CallerRefused unless the kernel vouches for a user that may have the secrets."""
    check_visible(caller)
    if caller.uid not in allowed:
        raise CallerRefused(
            f"process {caller.pid} of user {caller.uid} was refused: "
            f"give --allow-uid {caller.uid} if it is a workload of this identity"
        )
