"""Following the control plane's resources through the agent, for as long as the proxy runs.

A control plane that is away is waited for. Meanwhile what came last stays in force; a proxy that
starts meanwhile begins with what an earlier run kept, and without that its ports stay closed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from mesh.api import DELTA_AGGREGATED_RESOURCES
from mesh.errors import ConfigError
from mesh.files import private_directory
from mesh.grpc import GrpcError, Limits, open_channel
from mesh.log import get_logger
from mesh.unix_socket import open_unix_stream
from proxy.backoff import pauses
from proxy.discovery_state import DiscoveryState
from proxy.last_good import LastGoodRefused, encode_last_good, read_last_good, write_last_good
from proxy.received import Received
from proxy.sds import complaint_about_agent

log = get_logger("proxy.discovery")

LIMITS = Limits(idle_timeout=None, message_bytes=64 * 1024 * 1024)
"""The stream is silent while nothing changes. The first answer holds the whole registry: ten
thousand endpoints take about ten MiB."""

Publish = Callable[[Received], None]
"""Puts what was received into force."""


async def follow_policy(
    socket_path: Path, state: DiscoveryState, publish: Publish, state_dir: Path | None = None
) -> None:
    """Keep `publish` told of what the control plane says; never ends by itself.

    Nothing is published before it is complete. Raises ConfigError for a socket path or directory
    that can never work.
    """
    async with trio.open_nursery() as nursery:
        follower = _Follower(socket_path, state, publish)
        if state_dir is not None:
            private_directory(state_dir)
            _begin_with_last_good(state_dir, state, publish)
            nursery.start_soon(_keep, state_dir, state, follower)
        nursery.start_soon(follower.follow)


def _begin_with_last_good(state_dir: Path, state: DiscoveryState, publish: Publish) -> None:
    try:
        if read_last_good(state_dir, state):
            log.info("begun with the last good policies", version=state.received.version)
            publish(state.received)
    except LastGoodRefused as refusal:
        log.warning("last good policies refused", reason=refusal.reason, detail=str(refusal))


class _Follower:
    """Follows one stream after the other."""

    def __init__(self, socket_path: Path, state: DiscoveryState, publish: Publish) -> None:
        self._path = socket_path
        self._state = state
        self._publish = publish
        self._heard = False
        self._warned = False
        self.changed = trio.Event()

    async def follow(self) -> None:
        waits, complaint = pauses(), ""
        while True:
            self._heard = False
            try:
                await self._follow_once()
                said = "the stream ended"
            except (OSError, GrpcError) as error:
                said = self._complaint(error)
            if self._heard:
                waits, complaint = pauses(), ""
            if said != complaint:
                complaint = said
                log.warning(
                    "no connection to the control plane",
                    reason="control_plane_unreachable",
                    detail=f"{said}; {self._meanwhile()}",
                )
            await trio.sleep(next(waits))

    async def _follow_once(self) -> None:
        """Follow one stream to its end. Raises OSError, GrpcError."""
        async with (
            open_channel(lambda: open_unix_stream(self._path), limits=LIMITS) as channel,
            channel.stream(DELTA_AGGREGATED_RESOURCES) as call,
        ):
            for request in self._state.subscribe():
                await call.send(request)
            async for response in call:
                self._heard = True
                before = self._state.received
                answer = self._state.take(response)
                if answer.HasField("error_detail"):
                    log.warning(
                        "policy not understood",
                        reason="resource_not_understood",
                        detail=answer.error_detail.message,
                    )
                if self._state.complete and self._state.received is not before:
                    self._apply()
                await call.send(answer)

    def _apply(self) -> None:
        received = self._state.received
        self._publish(received)
        self.changed.set()
        log.info(
            "policies in force",
            version=received.version,
            peer_authentications=len(received.peer_authentications),
            authorization_policies=len(received.authorization_policies),
            services=len(received.service_entries),
        )

        if received.request_authentications and not self._warned:
            self._warned = True
            log.warning(
                "tokens in requests are not looked at by this version",
                reason="request_authentication_not_enforced",
                policies=[policy.key for policy in received.request_authentications],
            )

    def _complaint(self, error: OSError | GrpcError) -> str:
        if isinstance(error, GrpcError):
            return f"the agent at {self._path} ended the stream of policies ({error})"
        return complaint_about_agent(self._path, error)

    def _meanwhile(self) -> str:
        if self._state.complete:
            return "what came last stays in force"
        return "until it is back there is no policy, so the ports stay closed"


async def _keep(state_dir: Path, state: DiscoveryState, follower: _Follower) -> None:
    """Write what is in force to disk after each change, never two writes at once."""
    while True:
        await follower.changed.wait()
        follower.changed = trio.Event()
        content = encode_last_good(state)
        try:
            await trio.to_thread.run_sync(write_last_good, state_dir, content)
        except ConfigError as error:
            log.warning("last good policies not kept", reason=error.reason, detail=str(error))
