"""The relay on the engine: what happens before and after bytes are pumped."""

from __future__ import annotations

import trio

from mesh.openssl import NativeTls
from proxy.engine.ends import End, PlainEnd
from proxy.engine.joint import Joint
from proxy.engine.loops import current_pump
from proxy.engine.pump import Pump
from proxy.errors import ConnectionFailed, app_broken, peer_broken
from proxy.relayed import DRAIN_TIMEOUT, Leg, Limits, Relayed, Traffic, socket_beneath
from proxy.socket_options import peer_address, reset, wait_delivered


async def relay(plain: trio.SocketStream, tls: Leg, limits: Limits, traffic: Traffic) -> Relayed:
    """Join two connections (see proxy.relay)."""
    below = socket_beneath(tls)
    pump = current_pump()
    app = PlainEnd(plain, pump.scratch)
    peer = _peer_end(tls, below, pump)
    joint = Joint(app, peer, traffic=traffic, limits=limits, pump=pump, now=trio.current_time())
    names = peer_address(plain), peer_address(below)
    try:
        pump.add(joint)
        failure = await _see_through(joint, plain, below)
    finally:
        pump.remove(joint)
        # Cancelled or cut: neither side may take this for a clean end.
        reset(plain)
        reset(below)
    return Relayed(
        sent=traffic.sent, received=traffic.received, failure=failure or _failure(joint, *names)
    )


def _peer_end(leg: Leg, below: trio.SocketStream, pump: Pump) -> End:
    if isinstance(leg, trio.SocketStream):
        return PlainEnd(below, pump.scratch)
    connection, output = leg.detach()
    return NativeTls(connection, below.socket.fileno(), pump.scratch, output=output)


async def _see_through(
    joint: Joint, plain: trio.SocketStream, below: trio.SocketStream
) -> ConnectionFailed | None:
    """Wait until all is carried, then close both sides in the way that tells the truth."""
    while not (joint.done or joint.broken or joint.expired):
        await joint.wait()
    if joint.expired:
        return joint.expired
    if joint.broken is None:
        plain.socket.close()
        below.socket.close()
        return None
    with trio.move_on_after(DRAIN_TIMEOUT):
        while not joint.done:
            await joint.wait()
    first, other = (plain, below) if joint.broken is joint.app else (below, plain)
    reset(first)
    if joint.broken.other.end.broken is None:
        await wait_delivered(other)
    return None


def _failure(joint: Joint, app_name: str, peer_name: str) -> ConnectionFailed | None:
    if joint.broken is None:
        return None
    if joint.broken is joint.app:
        return app_broken(app_name)
    return peer_broken(joint.broken.end.broken, peer_name)
