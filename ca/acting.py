"""Who may ask in another's name: nodes that are trusted, for the workloads that run on them."""

from __future__ import annotations

from collections.abc import Collection

from mesh.api import CA_ACCOUNT
from mesh.spiffe import ServiceAccount, SpiffeId


def may_act_for(
    caller: SpiffeId, identity: SpiffeId, trusted_nodes: Collection[ServiceAccount]
) -> bool:
    """Tell whether `caller` may ask in the name of `identity`.

    A node that is trusted may, for any workload of its own trust domain (Istio:
    CA_TRUSTED_NODE_ACCOUNTS, which compares no trust domains). Not for the control plane's own
    namespace, whose names others rely on.
    """
    account = caller.service_account
    return (
        account is not None
        and account in trusted_nodes
        and identity.member_of(caller.trust_domain)
        and bool(identity.path)
        and not _is_control_plane(identity)
    )


def _is_control_plane(identity: SpiffeId) -> bool:
    account, own = identity.service_account, ServiceAccount.parse(CA_ACCOUNT)
    return account is not None and account.namespace == own.namespace
