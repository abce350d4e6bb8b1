"""TLS sessions, fed by hand: two of them in memory, and what each says when it goes wrong."""

from __future__ import annotations

import itertools
from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from OpenSSL import SSL

from mesh.spiffe import SpiffeId
from mesh.svid import X509Svid
from mesh.tls import (
    ClientCertificate,
    TlsContext,
    TlsSession,
    client_context,
    named_client_context,
    server_context,
)
from mesh.tls_errors import (
    TlsAlert,
    TlsError,
    TlsNoCommonGround,
    TlsPeerPlaintext,
    TlsPeerWithoutCertificate,
    TlsTruncated,
)
from mesh.verify import (
    PeerExpired,
    PeerInvalid,
    PeerNotTrusted,
    PeerNotYetValid,
    PeerRejected,
)
from tests.pki import NOW, Leaf, make_root

ROOT = make_root()
OTHER = make_root("other")
BUNDLES = ROOT.bundle()
WEB = ROOT.issue("spiffe://cluster.local/ns/foo/sa/web")
CLIENT = ROOT.issue("spiffe://cluster.local/ns/foo/sa/client")


class Outcome:
    """What each side of a conversation ended with."""

    def __init__(self, client: TlsSession, server: TlsSession) -> None:
        self.client = client
        self.server = server
        self.client_error: Exception | None = None
        self.server_error: Exception | None = None
        done: set[TlsSession] = set()
        for session, other in itertools.islice(
            itertools.cycle([(client, server), (server, client)]), 12
        ):
            self._turn(session, done)
            other.feed(session.pending_output())
        self.complete = len(done) == 2

    def _turn(self, session: TlsSession, done: set[TlsSession]) -> None:
        try:
            if session in done:
                session.read()
            elif session.handshake():
                done.add(session)
        except (TlsError, PeerRejected) as error:
            if session is self.client:
                self.client_error = self.client_error or error
            else:
                self.server_error = self.server_error or error


def converse(
    client: X509Svid | None = CLIENT,
    server: X509Svid = WEB,
    now: datetime = NOW,
    server_now: datetime = NOW,
) -> Outcome:
    return Outcome(
        client_context(BUNDLES, svid=client).session(now),
        server_context(server, BUNDLES).session(server_now),
    )


def connected() -> Outcome:
    outcome = converse()
    assert outcome.complete
    return outcome


def test_two_workloads_prove_themselves_to_each_other() -> None:
    client = client_context(BUNDLES, svid=CLIENT, alpn=[b"istio"])
    outcome = Outcome(
        client.session(NOW, server_name="outbound_.80_._.web.foo"),
        server_context(WEB, BUNDLES).session(NOW),
    )
    assert outcome.complete
    assert outcome.client_error is outcome.server_error is None
    assert outcome.client.peer_id == WEB.id
    assert outcome.server.peer_id == CLIENT.id
    assert outcome.server.peer_chain == (CLIENT.leaf, ROOT.certificate)
    assert outcome.client.version == "TLSv1.3"
    assert outcome.server.server_name == "outbound_.80_._.web.foo"
    assert outcome.client.alpn is None, "a sidecar never selects `istio`"


def test_alpn_is_selected_by_the_servers_order() -> None:
    client = client_context(BUNDLES, svid=CLIENT, alpn=[b"http/1.1", b"h2"])
    server = server_context(WEB, BUNDLES, alpn=[b"h2", b"http/1.1"])
    assert Outcome(client.session(NOW), server.session(NOW)).client.alpn == b"h2"


def test_data_flows_both_ways_and_ends_one_way_at_a_time() -> None:
    outcome = connected()
    client, server = outcome.client, outcome.server
    payload = bytes(range(256)) * 1000
    client.write(payload)
    client.close_notify()
    server.feed(client.pending_output())
    assert _read_all(server) == payload
    server.write(b"answer after the client's end")
    server.close_notify()
    client.feed(server.pending_output())
    assert _read_all(client) == b"answer after the client's end"


def _read_all(session: TlsSession) -> bytes:
    parts: list[bytes] = []
    while data := session.read():
        parts.append(data)
    assert data == b"", "the end must be a close_notify, not a lack of input"
    return b"".join(parts)


def test_an_end_without_close_notify_is_a_truncation() -> None:
    server = connected().server
    server.feed_eof()
    with pytest.raises(TlsTruncated):
        server.read()


def test_a_client_without_certificate_is_refused() -> None:
    outcome = converse(client=None)
    assert isinstance(outcome.server_error, TlsPeerWithoutCertificate)
    assert isinstance(outcome.client_error, TlsAlert)
    assert outcome.client_error.alert == "certificate required"


def test_a_certificate_can_be_optional_but_then_a_bad_one_is_still_refused() -> None:
    server = server_context(WEB, BUNDLES, client_certificate=ClientCertificate.OPTIONAL)
    anonymous = Outcome(client_context(BUNDLES).session(NOW), server.session(NOW))
    assert anonymous.complete
    assert anonymous.server_error is None
    assert anonymous.server.peer_id is None
    foreign = OTHER.issue(str(CLIENT.id))
    bad = Outcome(client_context(BUNDLES, svid=foreign).session(NOW), server.session(NOW))
    assert isinstance(bad.server_error, PeerNotTrusted)


BAD_PEERS = {
    "foreign CA": (OTHER.issue(str(CLIENT.id)), PeerNotTrusted, "unknown ca"),
    "expired": (
        ROOT.issue(str(CLIENT.id), not_after=NOW - timedelta(seconds=30)),
        PeerExpired,
        "certificate expired",
    ),
    "not yet valid": (
        ROOT.issue(str(CLIENT.id), not_before=NOW + timedelta(minutes=5)),
        PeerNotYetValid,
        None,
    ),
    "wrong trust domain": (ROOT.issue("spiffe://evil/ns/foo/sa/client"), PeerNotTrusted, None),
    "no SPIFFE ID": (
        X509Svid(
            id=CLIENT.id, chain=(ROOT.sign(Leaf(sans=["a.b"], key=CLIENT.key)),), key=CLIENT.key
        ),
        PeerInvalid,
        None,
    ),
}


@pytest.mark.parametrize("case", BAD_PEERS)
def test_a_bad_client_is_refused_and_told_so(case: str) -> None:
    svid, error, alert = BAD_PEERS[case]
    outcome = converse(client=svid)
    assert isinstance(outcome.server_error, error)
    assert isinstance(outcome.client_error, TlsAlert)
    assert alert is None or outcome.client_error.alert == alert
    assert outcome.server.peer_id is None
    with pytest.raises(TlsError):
        outcome.server.read()


@pytest.mark.parametrize("case", BAD_PEERS)
def test_a_bad_server_is_refused(case: str) -> None:
    svid, error, _ = BAD_PEERS[case]
    outcome = converse(server=svid)
    assert isinstance(outcome.client_error, error)
    assert not outcome.complete
    assert outcome.client.peer_id is None


def test_our_clock_judges_and_no_other() -> None:
    later = NOW + timedelta(hours=2)
    assert isinstance(converse(server_now=later).server_error, PeerExpired)
    assert isinstance(converse(now=later).client_error, PeerExpired)


def test_an_identity_can_be_refused_inside_the_handshake() -> None:
    def only_other(identity: SpiffeId) -> None:
        raise PeerRejected(f"expected somebody else, got {identity}")

    outcome = Outcome(
        client_context(BUNDLES, svid=CLIENT).session(NOW, check_peer=only_other),
        server_context(WEB, BUNDLES).session(NOW),
    )
    assert str(outcome.client_error) == f"expected somebody else, got {WEB.id}"
    assert isinstance(outcome.server_error, TlsAlert)
    assert outcome.client.peer_id is None


def test_a_root_of_one_trust_domain_cannot_vouch_for_another() -> None:
    bundles = {**ROOT.bundle("cluster.local"), **OTHER.bundle("other.test")}
    server = server_context(WEB, bundles)
    friend = OTHER.issue("spiffe://other.test/ns/x/sa/y")
    good = Outcome(client_context(bundles, svid=friend).session(NOW), server.session(NOW))
    assert good.server.peer_id == friend.id
    impostor = OTHER.issue(str(CLIENT.id))
    bad = Outcome(client_context(bundles, svid=impostor).session(NOW), server.session(NOW))
    assert isinstance(bad.server_error, PeerNotTrusted)
    assert "another trust domain" in str(bad.server_error)


def test_a_server_can_be_known_by_dns_name() -> None:
    istiod = ROOT.issue(
        "spiffe://cluster.local/ns/istio-system/sa/istiod", "istiod.istio-system.svc"
    )
    server = server_context(istiod, BUNDLES, client_certificate=ClientCertificate.NONE)
    right = named_client_context(BUNDLES, "Istiod.istio-system.svc").session(NOW)
    assert Outcome(right, server.session(NOW)).complete
    assert right.peer_id is None
    wrong = named_client_context(BUNDLES, "istiod.evil.svc").session(NOW)
    refused = Outcome(wrong, server.session(NOW)).client_error
    assert isinstance(refused, PeerRejected)
    assert "is for istiod.istio-system.svc, not istiod.evil.svc" in str(refused)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 smtp.example.org ESMTP\r\n"]
)
def test_a_plaintext_server_is_called_by_its_name(answer: bytes) -> None:
    client = client_context(BUNDLES, svid=CLIENT).session(NOW)
    client.handshake()
    client.feed(answer)
    with pytest.raises(TlsPeerPlaintext):
        client.handshake()


@pytest.mark.parametrize(
    "request_", [b"GET / HTTP/1.1\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\n\r\n", b"\0" * 40]
)
def test_a_plaintext_client_is_called_by_its_name(request_: bytes) -> None:
    server = server_context(WEB, BUNDLES).session(NOW)
    server.feed(request_)
    with pytest.raises(TlsPeerPlaintext):
        server.handshake()


def _raw_context() -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.use_certificate(CLIENT.leaf)
    context.use_privatekey(CLIENT.key)
    return context


def _raw_client(context: SSL.Context) -> SSL.Connection:
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    return connection


def test_tls_1_1_is_too_old() -> None:
    context = _raw_context()
    context.set_min_proto_version(SSL.TLS1_VERSION)
    context.set_max_proto_version(SSL.TLS1_1_VERSION)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    server = server_context(WEB, BUNDLES).session(NOW)
    with pytest.raises(TlsNoCommonGround):
        _drive(_raw_client(context), server)


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_a_client_that_wants_to_resume_gets_a_full_handshake(version: int) -> None:
    """A resumed session would skip verification; and a naive server would abort instead."""
    context = _raw_context()
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    server: TlsContext = server_context(WEB, BUNDLES)
    judged: list[SpiffeId] = []
    session = None
    for _ in range(3):
        client = _raw_client(context)
        if session is not None:
            client.set_session(session)
        ours = server.session(NOW, check_peer=judged.append)
        _drive(client, ours)
        ours.write(b"tickets, if any, come with the first data")
        client.bio_write(ours.pending_output())
        client.recv(100)
        session = client.get_session()
        assert ours.peer_id == CLIENT.id
    assert len(judged) == 3


def test_a_peer_cannot_be_resumed_past_its_expiry() -> None:
    context = _raw_context()
    server = server_context(WEB, BUNDLES)
    first = _raw_client(context)
    _drive(first, server.session(NOW))
    again = _raw_client(context)
    session = first.get_session()
    assert session is not None
    again.set_session(session)
    with pytest.raises(PeerExpired):
        _drive(again, server.session(NOW + timedelta(hours=2)))


def test_a_context_lives_through_the_expiry_of_its_peers() -> None:
    """OpenSSL keeps the first time a store is given, so time must not be left to the store."""
    server = server_context(WEB, BUNDLES)
    client = client_context(BUNDLES, svid=CLIENT)
    for hours, accepted in ((0, True), (2, False), (0, True), (-1, False)):
        now = NOW + timedelta(hours=hours)
        outcome = Outcome(client.session(NOW), server.session(now))
        assert (outcome.server_error is None) == accepted


@pytest.mark.parametrize("suite", [b"AES128-GCM-SHA256", b"ECDHE-ECDSA-AES128-SHA256"])
def test_suites_without_forward_secrecy_or_aead_are_refused(suite: bytes) -> None:
    context = _raw_context()
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(suite)
    with pytest.raises(TlsNoCommonGround):
        _drive(_raw_client(context), server_context(WEB, BUNDLES).session(NOW))


def _drive(client: SSL.Connection, server: TlsSession) -> None:
    """Complete a handshake between a foreign client and our server."""
    for _ in range(6):
        with suppress(SSL.WantReadError):
            client.do_handshake()
        with suppress(SSL.WantReadError):
            server.feed(client.bio_read(65536))
        complete = server.handshake()
        if output := server.pending_output():
            client.bio_write(output)
        if complete:
            return
    pytest.fail("the handshake did not come to an end")


def test_a_chain_with_an_intermediate_is_sent_and_the_root_is_not() -> None:
    server = ROOT.intermediate().issue(str(WEB.id))
    context = _raw_context()
    client = SSL.Connection(context, None)
    client.set_connect_state()
    _drive(client, server_context(server, BUNDLES).session(NOW))
    sent = [certificate.to_cryptography() for certificate in client.get_peer_cert_chain() or []]
    assert sent == list(server.chain)


def test_a_context_without_a_bundle_trusts_nobody() -> None:
    outcome = Outcome(
        client_context({}, svid=CLIENT).session(NOW), server_context(WEB, BUNDLES).session(NOW)
    )
    assert isinstance(outcome.client_error, PeerNotTrusted)
