"""One proxy's stream as the control plane sees it: what it asked for, and what is due to it."""

from __future__ import annotations

from datetime import datetime

import trio

from ca.discovery.errors import SubscriptionRefused
from ca.discovery.held import (
    DESTINATION_RULE,
    SERVED,
    SERVICE_ENTRY,
    WORKLOAD_ENTRY,
    WORKLOAD_GROUP,
)
from ca.discovery.subscription import Ask, Meaning, Sending, Subscription
from ca.discovery.viewer import Viewer
from ca.discovery.world import ON_SERVICES, World
from mesh.discovery.node import ProxyNode
from mesh.protos.discovery_pb2 import DeltaDiscoveryRequest, Node

SERVICES_LAST: tuple[str, ...] = SERVED
SERVICES_FIRST: tuple[str, ...] = (
    *(url for url in SERVED if url not in {WORKLOAD_ENTRY, DESTINATION_RULE, SERVICE_ENTRY}),
    SERVICE_ENTRY,
    WORKLOAD_ENTRY,
    DESTINATION_RULE,
)
"""The order when services go: a service goes before its workloads and the rules for it."""


class Client:
    """A connected proxy. `wake` is set when something may be due."""

    def __init__(self, node: ProxyNode, raw: Node, *, own: str, peer: str, since: datetime) -> None:
        self.node = node
        self.raw_node = raw
        self.peer = peer
        self.since = since
        self.subscriptions = {url: Subscription(url) for url in (*SERVED, WORKLOAD_GROUP)}
        self.viewer = Viewer.of(node, frozenset(), own)
        self.wake = trio.Event()

    def take(self, request: DeltaDiscoveryRequest, now: datetime) -> Meaning:
        """Take a request. Raises SubscriptionRefused."""
        subscription = self.subscriptions.get(request.type_url)
        if subscription is None:
            raise SubscriptionRefused(
                f"the type {request.type_url[:120]!r} is not served here, only {', '.join(SERVED)}"
            )
        has_error = request.HasField("error_detail")
        ask = Ask(
            subscribe=tuple(request.resource_names_subscribe),
            unsubscribe=tuple(request.resource_names_unsubscribe),
            versions=request.initial_resource_versions,
            nonce=request.response_nonce,
            error=request.error_detail.message if has_error else None,
        )
        meaning = subscription.take(ask, now)
        if subscription.url == SERVICE_ENTRY:
            self._look_anew(subscription)
        if any(one.pending for one in self.subscriptions.values()):
            self.wake.set()
        return meaning

    def touch(self, url: str, name: str) -> None:
        """Note that a resource may have changed for this proxy."""
        self.subscriptions[url].touch(name)
        self.wake.set()

    def touch_everything(self, url: str) -> None:
        """Note that anything of a type may have changed for this proxy."""
        self.subscriptions[url].touch_everything()
        self.wake.set()

    def next(self, world: World) -> tuple[Subscription, Sending] | None:
        """Return the next response that is due. What comes later in the order waits for it.

        It waits also while an earlier type has changed again behind a response that the client
        has not acknowledged yet.
        """
        services = self.subscriptions[SERVICE_ENTRY]
        order = SERVICES_LAST
        if services.only_loses(world, self.viewer):
            order = SERVICES_FIRST
        for url in (*order, WORKLOAD_GROUP):
            subscription = self.subscriptions[url]
            sending = subscription.due(world, self.viewer)
            if sending is not None:
                return subscription, sending
            if subscription.waits:
                return None
        return None

    def _look_anew(self, services: Subscription) -> None:
        """Follow a change of the services that the proxy asks for."""
        hosts = None if services.wildcard else frozenset(name.lower() for name in services.names)
        if hosts == self.viewer.hosts:
            return
        self.viewer = Viewer.of(self.node, hosts, self.viewer.own)
        for url in ON_SERVICES:
            if self.subscriptions[url].asked:
                self.touch_everything(url)
