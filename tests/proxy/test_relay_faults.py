"""Connections that are cut, at every point and by every means, and what is left behind."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.abc
import trio.testing

from mesh.svid import certificates_pem, private_key_pem
from mesh.tls import server_context
from mesh.tls_stream import TlsStream
from proxy.engine.loops import current_pump
from proxy.errors import AppReset, PeerTruncated, RefusedByPeer, TlsBroken
from proxy.relay import relay
from proxy.socket_options import reset
from tests.pki import NOW, Authority
from tests.proxy.network import (
    CLIENT_ID,
    SERVER_ID,
    port_of,
    receive_all,
    receive_until_broken,
    reset_now,
    tcp_listener,
    tcp_pair,
)
from tests.proxy.relay_rig import Rig, Stream, blob, rig, send_and_forget, socket_of

pytestmark = pytest.mark.usefixtures("relay_kind")


async def test_tls_that_is_cut_after_any_byte_gives_its_whole_records_and_a_reset(
    relay_root: Authority,
) -> None:
    async with rig(relay_root) as first:
        assert isinstance(first.peer, TlsStream)
        first.peer.session.write(b"whole")
        whole = len(first.peer.session.pending_output())
        first.peer.session.write(b"cut")
        total = whole + len(first.peer.session.pending_output())
    for cut in range(total):
        async with rig(relay_root) as joined:
            assert isinstance(joined.peer, TlsStream)
            for part in (b"whole", b"cut"):
                joined.peer.session.write(part)
            await joined.peer_socket.send_all(joined.peer.session.pending_output()[:cut])
            await joined.peer_socket.send_eof()
            expected = b"whole" if cut >= whole else b""
            assert await receive_until_broken(joined.app) == expected
            assert isinstance(await joined.failure(), PeerTruncated)


@pytest.mark.parametrize("size", [1, 16_384, 65_536, 700_000])
async def test_a_record_that_was_changed_on_the_way_is_a_reset_behind_what_was_right(
    relay_root: Authority, size: int
) -> None:
    async with rig(relay_root) as joined, trio.open_nursery() as nursery:
        assert isinstance(joined.peer, TlsStream)
        good = blob(size, size)
        joined.peer.session.write(good)
        right = joined.peer.session.pending_output()
        joined.peer.session.write(b"forged")
        wrong = bytearray(joined.peer.session.pending_output())
        wrong[-1] ^= 1
        nursery.start_soon(send_and_forget, joined.peer_socket, right + wrong)
        assert await receive_until_broken(joined.app) == good
        assert isinstance(await joined.failure(), TlsBroken)


async def test_an_alert_that_comes_late_tells_why(relay_root: Authority) -> None:
    """With TLS 1.3 a server's refusal is the first thing that a client reads."""
    async with rig(relay_root) as joined:
        assert isinstance(joined.peer, TlsStream)
        # What the peer cannot decrypt makes it send an alert.
        await socket_of(joined.peer_leg).send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
        with contextlib.suppress(trio.BrokenResourceError):
            await joined.peer.receive_some()
        assert await receive_until_broken(joined.app) == b""
        assert isinstance(await joined.failure(), RefusedByPeer)


async def test_a_half_close_at_every_point_leaves_the_other_direction_open(
    security: Authority | None,
) -> None:
    sizes = (0, 1, 16_383, 16_384, 16_385, 65_536, 65_537, 262_144, 262_145, 600_000)
    for size in sizes:
        async with rig(security) as joined, trio.open_nursery() as nursery:
            up, down = blob(size, 1), blob(600_000 - size, 2)
            nursery.start_soon(send_and_end, joined.app, up)
            assert await receive_all(joined.peer) == up
            nursery.start_soon(send_and_end, joined.peer, down)
            assert await receive_all(joined.app) == down
            assert await joined.failure() is None


async def test_a_reset_met_by_a_paused_direction_does_not_spin(
    security: Authority | None, relay_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that is not read because its sink is full is reset: epoll says so all the time."""
    if relay_kind == "plain":
        pytest.skip("trio registers descriptors only while somebody waits")
    async with rig(security) as joined, trio.open_nursery() as nursery:
        nursery.start_soon(send_and_end, joined.app, bytes(30_000_000))
        await trio.testing.wait_all_tasks_blocked(0.05)
        reset_now(joined.app)
        await trio.testing.wait_all_tasks_blocked(0.05)
        pump, turns = current_pump(), 0
        turn = pump.turn

        def counted(seconds: float) -> bool:
            nonlocal turns
            turns += 1
            return turn(seconds)

        monkeypatch.setattr(pump, "turn", counted, raising=False)
        await trio.sleep(0.1)
        assert turns < 20
        assert len(await receive_until_broken(joined.peer)) > 0
        assert isinstance(await joined.failure(), AppReset)


FAULTS = ("none", "app_reset", "peer_reset", "truncated", "cancelled", "garbage")


@pytest.mark.timeout(120)
async def test_random_openings_and_faults_leave_nothing_behind(
    relay_root: Authority, relay_kind: str
) -> None:
    """2,000 connections from a seed, twenty at a time, with TLS for each tenth."""
    count = 400 if relay_kind == "plain" else 2_000
    chance, outcomes = random.Random(20), Counter[str]()
    await one_connection(relay_root, chance, outcomes)  # whatever stays once is there now
    descriptors = open_descriptors()
    gate = trio.CapacityLimiter(20)

    async def gated() -> None:
        async with gate:
            await one_connection(relay_root, chance, outcomes)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(gated)
    assert sum(outcomes.values()) == count + 1
    assert len(outcomes) >= 5
    assert open_descriptors() == descriptors
    if relay_kind != "plain":
        assert current_pump().connections == 0
        assert current_pump().watched == 0


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def one_connection(root: Authority, chance: random.Random, outcomes: Counter[str]) -> None:
    """Make a connection, send both ways, and end it by a fault; check what must hold."""
    fault, secure = chance.choice(FAULTS), chance.random() < 0.1
    size, back = chance.choice([0, 1, 5_000, 200_000]), chance.choice([0, 3, 90_000])
    async with rig(root if secure else None) as joined, trio.open_nursery() as nursery:
        for stream, data in ((joined.app, bytes(size)), (joined.peer, bytes(back))):
            nursery.start_soon(send_and_end, stream, data)
            nursery.start_soon(swallow, stream)
        for _ in range(chance.randrange(12)):
            await trio.lowlevel.checkpoint()
        if fault == "cancelled":
            outcomes["cancelled"] += 1
        else:
            await cut(joined, fault)
            with trio.fail_after(30):
                failure = await joined.failure()
            outcomes[type(failure).__name__] += 1
            if fault == "none":
                assert failure is None
                assert (joined.traffic.sent, joined.traffic.received) == (size, back)
        nursery.cancel_scope.cancel()


async def cut(joined: Rig, fault: str) -> None:
    if fault == "app_reset":
        reset(joined.app)
    elif fault == "peer_reset":
        reset(joined.peer_socket)
    elif fault == "truncated":
        with contextlib.suppress(OSError):
            joined.peer_socket.socket.shutdown(socket.SHUT_WR)
    elif fault == "garbage":
        with contextlib.suppress(OSError, trio.ClosedResourceError), trio.move_on_after(0.1):
            await joined.peer_socket.socket.send(b"no TLS at all")


async def send_and_end(stream: Stream, data: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(data)
        await stream.send_eof()


async def swallow(stream: Stream) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for _ in stream:
            pass


async def test_a_key_update_in_the_middle_changes_nothing(
    relay_root: Authority, tmp_path: Path
) -> None:
    """OpenSSL's own client asks for new keys, before, between and after data, both ways."""
    server = server_context(relay_root.issue(str(SERVER_ID)), relay_root.bundle(), alpn=[b"istio"])
    svid = relay_root.issue(str(CLIENT_ID))
    (tmp_path / "cert.pem").write_bytes(certificates_pem(svid.chain))
    (tmp_path / "key.pem").write_bytes(private_key_pem(svid.key))
    (tmp_path / "roots.pem").write_bytes(
        certificates_pem(relay_root.bundle()[SERVER_ID.trust_domain].authorities)
    )
    app, app_leg = await tcp_pair()
    async with await tcp_listener() as listener, trio.open_nursery() as nursery:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port_of(listener)}", "-tls1_3"]
        command += ["-cert", "cert.pem", "-key", "key.pem", "-CAfile", "roots.pem"]
        client = await nursery.start(
            partial(
                trio.run_process,
                command,
                cwd=tmp_path,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
        )
        peer_leg = TlsStream(await listener.accept(), server.session(NOW))
        await peer_leg.do_handshake()
        nursery.start_soon(relay, app_leg, peer_leg)
        for number in range(5):
            # K at the beginning of a line: change our keys, and ask for the other side's new ones.
            await client.stdin.send_all(b"line %d\n" % number)
            assert await app.receive_some() == b"line %d\n" % number
            await client.stdin.send_all(b"K\n")
            await said(client.stdout, b"KEYUPDATE")
            await app.send_all(b"answer %d\n" % number)
            await said(client.stdout, b"answer %d\n" % number)
        nursery.cancel_scope.cancel()
    app.socket.close()


async def said(stream: trio.abc.ReceiveStream, words: bytes) -> None:
    """Read until `words` have come."""
    heard = b""
    while words not in heard:
        heard += await stream.receive_some()
