"""Handshakes on a descriptor: judged inside, and the alert is sent before the error is raised."""

from __future__ import annotations

import pytest
import trio

from mesh.tls import client_context, server_context
from mesh.tls_errors import TlsAlert, TlsError, TlsTruncated
from mesh.tls_socket import TlsSocket
from mesh.verify import PeerNotTrusted, PeerRejected
from tests.pki import NOW, Authority, make_root
from tests.proxy.network import CLIENT_ID, SERVER_ID, reset_now, tcp_pair

Outcome = TlsSocket | TlsError | PeerRejected


async def shake(trusted: Authority, issuer: Authority) -> tuple[Outcome, Outcome]:
    """Let a client that trusts `trusted` meet a server of the same; `issuer` signed the client."""
    near, far = await tcp_pair()
    client = client_context(trusted.bundle(), svid=issuer.issue(str(CLIENT_ID)), alpn=[b"istio"])
    server = server_context(trusted.issue(str(SERVER_ID)), trusted.bundle())
    outcomes = dict[str, Outcome]()

    async def one(name: str, leg: TlsSocket) -> None:
        try:
            await leg.do_handshake()
            outcomes[name] = leg
        except (TlsError, PeerRejected) as error:
            outcomes[name] = error

    client_end = TlsSocket(near, client.session(NOW, descriptor=near.socket.fileno()))
    server_end = TlsSocket(far, server.session(NOW, descriptor=far.socket.fileno()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "client", client_end)
        nursery.start_soon(one, "server", server_end)
    if outcomes["client"] is client_end:
        outcomes["reply"] = await first_word(client_end)
    for stream in (near, far):
        stream.socket.close()
    return outcomes.get("reply", outcomes["client"]), outcomes["server"]


async def first_word(leg: TlsSocket) -> Outcome:
    """Return what a client reads first, where TLS 1.3 puts a refusal; the leg if it is nothing."""
    with trio.move_on_after(0.05):
        await trio.lowlevel.wait_readable(leg.transport.socket)
    try:
        leg.session.read()
    except TlsError as error:
        return error
    return leg


async def test_both_sides_know_each_other() -> None:
    root = make_root()
    client, server = await shake(root, root)
    assert isinstance(client, TlsSocket)
    assert isinstance(server, TlsSocket)
    assert client.session.peer_id == SERVER_ID
    assert server.session.peer_id == CLIENT_ID


async def test_a_refusal_reaches_the_peer_as_an_alert() -> None:
    client, server = await shake(make_root(), make_root("stranger"))
    assert isinstance(server, PeerNotTrusted)
    assert isinstance(client, TlsAlert)
    assert client.alert == "unknown ca"


def test_the_key_exchange_is_the_quick_one_and_the_hybrid_is_there_for_who_wants_it() -> None:
    session = client_context(make_root().bundle()).session(NOW)
    session.handshake()
    hello = session.pending_output()
    assert b"\x00\x1d\x00\x20" in hello  # a key share of 32 bytes for x25519
    assert b"\x11\xec" in hello  # X25519MLKEM768 among the groups that it would do
    assert len(hello) < 600  # and no share for it, which has 1,216 bytes


@pytest.mark.parametrize("how", ["reset", "end"])
async def test_a_peer_that_goes_away_is_an_error(how: str) -> None:
    root = make_root()
    near, far = await tcp_pair()
    server = server_context(root.issue(str(SERVER_ID)), root.bundle())
    leg = TlsSocket(far, server.session(NOW, descriptor=far.socket.fileno()))
    if how == "reset":
        reset_now(near)
    else:
        await near.send_eof()
    with pytest.raises(TlsTruncated):
        await leg.do_handshake()
    for stream in (near, far):
        stream.socket.close()
