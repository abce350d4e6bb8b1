"""Carrying bytes between the app and the peer until both have said that they are done.

How a connection ends is as much its content as its bytes are. What a relay promises:

- Half-close: the end of one direction is passed on (FIN to FIN, FIN to close_notify and back) and
  the other direction goes on for as long as it likes.
- A reset on one side becomes a reset on the other, never a FIN: an app must be able to tell an
  answer that was cut from one that was complete. Bytes that arrived before the reset are delivered
  first: what the broken side still holds is read, and the RST to the healthy side waits until
  its kernel has acknowledged everything (SO_LINGER 0 would destroy the send queue).
- TLS that ends without close_notify is cut, not complete, and is treated like a reset: anybody on
  the path can forge a FIN.
- Backpressure: a direction holds at most one chunk and reads no more until it is sent.
- Both streams belong to the relay from the call on: closed when it returns, reset when it is
  cancelled.

There are two that keep these promises: the engine (proxy.engine), which is as fast as it can be
made, and its plain twin (proxy.plain_relay) on nothing but public API, for when pyOpenSSL has
changed under us or somebody doubts the engine.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from random import Random

import trio

from mesh import openssl
from mesh.log import get_logger
from proxy import plain_relay
from proxy.engine import relay as engine_relay
from proxy.engine.loops import host
from proxy.relayed import DRAIN_TIMEOUT, IDLE_TIMEOUT, Leg, Limits, Relayed, Traffic

__all__ = [
    "DRAIN_TIMEOUT",
    "IDLE_TIMEOUT",
    "Leg",
    "Limits",
    "Relayed",
    "Traffic",
    "prepare",
    "relay",
    "uses_plain",
]

log = get_logger("proxy.relay")

GC_THRESHOLD = 20000
"""New container objects between two collections. What a connection leaves behind is freed by
counting; the default of 700 makes a collection of every dozen connections for nothing."""

DEFAULT_LIMITS = Limits()

AGE_JITTER = 0.1
"""The part of the greatest age by which it varies, so that connections which began together, after
a restart perhaps, do not all end together (gRPC's value for its own MAX_CONNECTION_AGE)."""

_chance = Random()  # noqa: S311 - nothing is kept secret by it

_limits: trio.lowlevel.RunVar[Limits] = trio.lowlevel.RunVar("limits")
_plain: trio.lowlevel.RunVar[bool] = trio.lowlevel.RunVar("plain")


async def prepare(*, plain: bool = False, limits: Limits = DEFAULT_LIMITS) -> None:
    """Make this process and its trio run one that relays, before the first connection.

    `limits` are those of every connection that is not given its own; ages vary by AGE_JITTER.

    Without this the engine is used too, nested; with it trio becomes the engine's guest.
    """
    settle_memory()
    _limits.set(limits)
    if not plain and not openssl.available():
        log.warning(
            "the plain relay is used: this pyOpenSSL lacks what the engine needs",
            missing=openssl.missing_names(),
        )
    plain = plain or not openssl.available()
    _plain.set(plain)
    if not plain:
        await host()


def settle_memory() -> None:
    """Spare the garbage collector what lives as long as the process, and half-hearted looks."""
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])


async def relay(
    plain: trio.SocketStream,
    tls: Leg,
    *,
    limits: Limits | None = None,
    traffic: Traffic | None = None,
) -> Relayed:
    """Join the app's connection `plain` with the peer's, until both directions have ended.

    `tls` is a bare socket where the proxy does no TLS of its own. `traffic` is counted while the
    relay runs, and is right even if it is cancelled. Network failures are in the result; nothing
    foreseen is raised.
    """
    run = plain_relay.relay if uses_plain() else engine_relay.relay
    return await run(plain, tls, limits or _usual_limits(), traffic or Traffic())


def _usual_limits() -> Limits:
    try:
        limits = _limits.get()
    except LookupError:
        return DEFAULT_LIMITS
    if limits.age is None:
        return limits
    return replace(limits, age=limits.age * _chance.uniform(1 - AGE_JITTER, 1 + AGE_JITTER))


def uses_plain() -> bool:
    """Tell whether connections of this trio run are carried by the plain twin."""
    try:
        return _plain.get()
    except LookupError:
        return not openssl.available()
