"""A mesh's whole configuration, ready for questions."""

from __future__ import annotations

from collections.abc import Iterable

from mesh.policy.authorization import Authorization, providers_of
from mesh.policy.destination import DestinationRules
from mesh.policy.outbound import OutboundPolicies
from mesh.policy.peer_authentication import EffectiveModes, PeerAuthentications
from mesh.policy.rules import CompiledPolicy, compile_policy
from mesh.policy.selection import Attachments, Workload
from mesh.policy.trust_domains import TrustDomains
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.networking import DestinationRule, ServiceEntry, WorkloadEntry, WorkloadGroup
from mesh.resources.problem import Refused
from mesh.resources.security import AuthorizationPolicy, PeerAuthentication, RequestAuthentication
from mesh.resources.values import Resource, age_order
from remora.policy_tools.registry import Registry

POLICIES = frozenset(
    one.__name__ for one in (AuthorizationPolicy, PeerAuthentication, RequestAuthentication)
)
"""Kinds that may deny: a proxy that has one it does not understand lets nobody in."""


class World:
    """What decides about connections: the resources sorted by kind, and the mesh settings."""

    def __init__(
        self,
        resources: Iterable[Resource],
        config: MeshConfig,
        unread: Iterable[Refused] = (),
    ) -> None:
        """Take valid resources of any kind, in any order, and the names of those never good."""
        found = sorted(resources, key=age_order)
        root = config.root_namespace
        self.config = config
        self.trust_domains = TrustDomains.of(config)
        self.authorizations = [one for one in found if isinstance(one, AuthorizationPolicy)]
        self.requests = [one for one in found if isinstance(one, RequestAuthentication)]
        self.peers = [one for one in found if isinstance(one, PeerAuthentication)]
        self.rules = [one for one in found if isinstance(one, DestinationRule)]
        self.outbound = OutboundPolicies(
            config=config,
            rules=DestinationRules(self.rules, root_namespace=root),
            modes=PeerAuthentications(self.peers, root_namespace=root),
        )
        self.registry = Registry(
            (one for one in found if isinstance(one, ServiceEntry)),
            (one for one in found if isinstance(one, WorkloadEntry)),
            (one for one in found if isinstance(one, WorkloadGroup)),
            trust_domain=config.trust_domain,
        )
        self._unread = [one for one in unread if one.kind in POLICIES]
        self._authorizations = Attachments(self.authorizations, root_namespace=root)
        self._requests = Attachments(self.requests, root_namespace=root)
        self._compiled: dict[str, CompiledPolicy] = {}

    def modes(self, workload: Workload) -> EffectiveModes:
        """Return the mutual TLS mode of each port of a workload."""
        return self.outbound.modes.effective(workload)

    def not_understood(self, workload: Workload) -> list[Refused]:
        """Return the policies that never were good: a proxy that may be meant lets nobody in."""
        places = {workload.namespace, self.config.root_namespace}
        return [one for one in self._unread if one.namespace in places]

    def policies_for(self, workload: Workload) -> list[AuthorizationPolicy]:
        """Return the AuthorizationPolicies that apply to a workload."""
        return self._authorizations.for_workload(workload)

    def token_rules_for(self, workload: Workload) -> list[RequestAuthentication]:
        """Return the RequestAuthentications that apply to a workload."""
        return self._requests.for_workload(workload)

    def authorization(self, workload: Workload) -> Authorization:
        """Return what decides about connections to a workload."""
        policies = [self._compile(policy) for policy in self.policies_for(workload)]
        return Authorization(policies, providers=providers_of(self.config))

    def _compile(self, policy: AuthorizationPolicy) -> CompiledPolicy:
        if policy.key not in self._compiled:
            self._compiled[policy.key] = compile_policy(policy, self.trust_domains)
        return self._compiled[policy.key]
