"""Who has which configuration, as Envoy's client status discovery service (CSDS) tells it."""

from __future__ import annotations

from datetime import datetime

import trio

from ca.discovery.client import Client
from ca.discovery.fleet import Fleet
from ca.discovery.held import SERVED
from ca.discovery.subscription import Status, Subscription
from ca.store.store import ResourceStore
from mesh.api import FETCH_CLIENT_STATUS
from mesh.grpc import ServerCall, Service
from mesh.protos.status_pb2 import (
    ACKED,
    ERROR,
    NACKED,
    NOT_SENT,
    REQUESTED,
    STALE,
    SYNCED,
    ClientConfig,
    ClientStatusRequest,
    ClientStatusResponse,
    ConfigStatus,
)

PROBLEMS_METADATA = "remora-resource-problem-bin"
"""Trailing metadata, repeated: what is wrong in the directory of resources, a sentence each."""

MAX_PROBLEMS = 50
"""Sentences in the metadata, which HTTP/2 peers bound to some 16 KiB."""

MAX_SENTENCE = 200


class StatusService:
    """Answers FetchClientStatus from what the streams know."""

    def __init__(self, fleet: Fleet, store: ResourceStore) -> None:
        self._fleet = fleet
        self._store = store

    def register(self, service: Service) -> None:
        """Add the method to a gRPC service."""
        service.unary(FETCH_CLIENT_STATUS, self.fetch)

    async def fetch(self, _request: ClientStatusRequest, call: ServerCall) -> ClientStatusResponse:
        """Return every connected proxy, and the state of each type that it asked for."""
        await trio.lowlevel.checkpoint()
        call.trailing_metadata += [
            (PROBLEMS_METADATA, str(problem)[:MAX_SENTENCE].encode())
            for problem in self._store.problems[:MAX_PROBLEMS]
        ]
        return ClientStatusResponse(
            config=[_client_config(client) for client in self._fleet.clients.values()]
        )


def _client_config(client: Client) -> ClientConfig:
    config = ClientConfig(node=client.raw_node, client_scope=client.since.isoformat())
    for url in SERVED:
        subscription = client.subscriptions[url]
        if subscription.asked:
            config.generic_xds_configs.append(_type_config(subscription))
    return config


def _type_config(subscription: Subscription) -> ClientConfig.GenericXdsConfig:
    status = subscription.status
    config = ClientConfig.GenericXdsConfig(
        type_url=subscription.url,
        version_info=status.acked_version,
        config_status=_state(subscription, status),
        client_status=REQUESTED,
    )
    if status.sent_at is not None:
        config.last_updated.FromDatetime(status.sent_at)
    if status.acked_version:
        config.client_status = ACKED
    if status.complaint and status.nacked_at is not None:
        config.client_status = NACKED
        _put_time(config, status.nacked_at)
        config.error_state.details = status.complaint
        config.error_state.version_info = status.nacked_version
    return config


def _put_time(config: ClientConfig.GenericXdsConfig, when: datetime) -> None:
    config.error_state.last_update_attempt.FromDatetime(when)


def _state(subscription: Subscription, status: Status) -> ConfigStatus:
    """Return Envoy's word: sent and acknowledged, sent and not yet, refused, or never sent."""
    if status.complaint:
        return ERROR
    if status.sent_at is None:
        return NOT_SENT
    return STALE if subscription.on_its_way else SYNCED
