"""Certificates made to trip the judge: each is refused, and none is a crash."""

from __future__ import annotations

import random
import warnings
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from OpenSSL import SSL, crypto

from mesh.svid import InvalidSvid, leaf_id
from mesh.tls import TlsSession, named_client_context, server_context
from mesh.tls_peer import PeerJudge, dns_verifier, svid_verifier
from mesh.verify import PeerInvalid, PeerRejected, refusal_by_time, verify_chain
from tests.pki import NOW, Leaf, make_root, name, san

ROOT = make_root()
BUNDLES = ROOT.bundle()
CLIENT = "spiffe://cluster.local/ns/foo/sa/client"
GOOD = ROOT.issue(CLIENT)
SERVER = server_context(ROOT.issue("spiffe://cluster.local/ns/foo/sa/web"), BUNDLES)

SAN_OID = b"\x55\x1d\x11"
STAND_IN = x509.ObjectIdentifier("2.5.29.99")
STAND_IN_OID = b"\x55\x1d\x63"


def der_with_extra_san(value: bytes) -> bytes:
    """A certificate whose last extension is a subject alternative name of exactly `value`."""
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name("x"))
        .issuer_name(ROOT.certificate.subject)
        .public_key(GOOD.key.public_key())
        .serial_number(5)
        .not_valid_before(NOW - timedelta(minutes=1))
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(x509.UnrecognizedExtension(STAND_IN, value), critical=False)
    )
    if value == TWICE:
        names = x509.SubjectAlternativeName([san(CLIENT)])
        certificate = certificate.add_extension(names, critical=False)
    der = certificate.sign(ROOT.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    return der.replace(STAND_IN_OID, SAN_OID)


TWICE = b"\x30\x02\x82\x00"
X400_ADDRESS = b"\x30\x02\xa3\x00"
GARBAGE = b"\x30\x05\x86\x01"


def lax_der() -> bytes:
    """A good certificate with one length in five bytes where two do: BER, but not DER."""
    der = GOOD.leaf.public_bytes(serialization.Encoding.DER)
    inner = b"\x30\x83\x00" + der[6:]
    assert der[4:6] == b"\x30\x82"
    size = int.from_bytes(der[2:4], "big") + 1
    return b"\x30\x82" + size.to_bytes(2, "big") + inner[:3] + der[6:]


def der_of_year_0(which: str) -> bytes:
    """A certificate whose validity begins or ends in the year 0, which OpenSSL reads."""
    marks = {"begins": "20510101000000Z", "ends": "20610101000000Z"}
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name("x"))
        .issuer_name(ROOT.certificate.subject)
        .public_key(GOOD.key.public_key())
        .serial_number(7)
        .not_valid_before(datetime(2051, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2061, 1, 1, tzinfo=UTC))
        .sign(ROOT.key, hashes.SHA256())
    )
    der = certificate.public_bytes(serialization.Encoding.DER)
    mark = marks[which].encode()
    assert der.count(mark) == 1
    return der.replace(mark, b"0000" + mark[4:])


HOSTILE = {
    "begins in the year 0": der_of_year_0("begins"),
    "ends in the year 0": der_of_year_0("ends"),
    "two SAN extensions": der_with_extra_san(TWICE),
    "an X.400 address": der_with_extra_san(X400_ADDRESS),
    "a SAN that is no SAN": der_with_extra_san(GARBAGE),
    "BER instead of DER": lax_der(),
}


def hostile_context(method: int, der: bytes) -> SSL.Context:
    context = SSL.Context(method)
    with warnings.catch_warnings(action="ignore"):  # only pyOpenSSL's own type takes any DER
        context.use_certificate(crypto.load_certificate(crypto.FILETYPE_ASN1, der))
    context.use_privatekey(GOOD.key)
    return context


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_certificate_is_refused_in_the_handshake(case: str) -> None:
    client = SSL.Connection(hostile_context(SSL.TLS_CLIENT_METHOD, HOSTILE[case]), None)
    client.set_connect_state()
    session = SERVER.session(NOW)
    with pytest.raises(PeerRejected):
        drive(client, session)
    assert session.peer_id is None
    assert session.pending_output(), "the peer gets an alert"


def drive(client: SSL.Connection, server: TlsSession) -> None:
    for _ in range(4):
        with suppress(SSL.WantReadError):
            client.do_handshake()
        with suppress(SSL.WantReadError):
            server.feed(client.bio_read(65536))
        server.handshake()
        if output := server.pending_output():
            client.bio_write(output)


@pytest.mark.parametrize("case", ["two SAN extensions", "an X.400 address"])
def test_a_hostile_certificate_is_no_svid(case: str) -> None:
    certificate = x509.load_der_x509_certificate(HOSTILE[case])
    with pytest.raises(InvalidSvid, match="cannot be read"):
        leaf_id(certificate)
    with pytest.raises(PeerInvalid, match="cannot be read"):
        verify_chain([certificate], BUNDLES, NOW)


@pytest.mark.parametrize("which", ["begins", "ends"])
def test_a_chain_of_the_year_0_is_refused(which: str) -> None:
    certificate = x509.load_der_x509_certificate(der_of_year_0(which))
    with pytest.raises(PeerRejected):
        verify_chain([GOOD.leaf, certificate], ROOT.bundle("example.org"), NOW)
    with pytest.raises(PeerInvalid, match="cannot be read"):
        refusal_by_time(certificate, NOW)


def test_a_hostile_certificate_has_no_dns_name_either() -> None:
    certificate = x509.load_der_x509_certificate(HOSTILE["an X.400 address"])
    with pytest.raises(PeerRejected, match="no DNS name"):
        dns_verifier("istiod.istio-system.svc")([certificate])


def test_what_openssl_cannot_read_is_refused_too() -> None:
    leaf = ROOT.sign(Leaf(subject="abcdefgh", sans=[CLIENT]))
    der = leaf.public_bytes(serialization.Encoding.DER).replace(
        b"abcdefgh", b"\xff\xfe\xfd\xfcefgh"
    )
    with pytest.raises(PeerInvalid, match="OpenSSL cannot read"):
        verify_chain([x509.load_der_x509_certificate(der)], BUNDLES, NOW)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verifier", ["svid", "dns"])
def test_mutated_certificates_never_crash_the_judge(verifier: str) -> None:
    """OpenSSL shows the judge whatever it can parse, before anything about it is known."""
    leaf = ROOT.sign(Leaf(subject="subject", sans=[CLIENT, "a.example", "10.0.0.1"]))
    der = leaf.public_bytes(serialization.Encoding.DER)
    verify = svid_verifier(BUNDLES) if verifier == "svid" else dns_verifier("a.example")
    chance = random.Random(7)
    shown = 0
    for _ in range(1500):
        mutated = bytearray(der)
        for _ in range(chance.choice([1, 1, 2])):
            mutated[chance.randrange(4, len(der))] = chance.choice(
                [0, 1, 2, 0x0C, 0x13, 0x1E, 0x30, 0x80, 0xA0, 0xA3, 0xFF, chance.randrange(256)]
            )
        with suppress(crypto.Error):
            certificate = crypto.load_certificate(crypto.FILETYPE_ASN1, bytes(mutated))
            shown += 1
            for code, depth in ((20, 0), (0, 0), (0, 1)):
                judge = PeerJudge(verify, NOW, None)
                passed = judge.certificate(certificate, code, depth, ok=not code)
                assert passed == (judge.refusal is None)
    assert shown > 300, "the mutations shall not all stop at OpenSSL"


def test_a_named_server_with_a_hostile_certificate_is_refused() -> None:
    session = named_client_context(BUNDLES, "a.example").session(NOW)
    context = hostile_context(SSL.TLS_SERVER_METHOD, HOSTILE["two SAN extensions"])
    server = SSL.Connection(context, None)
    server.set_accept_state()

    def rounds() -> None:
        for _ in range(3):  # the server may ask for another key share first
            session.handshake()
            server.bio_write(session.pending_output())
            with suppress(SSL.WantReadError):
                server.do_handshake()
            session.feed(server.bio_read(65536))

    with pytest.raises(PeerRejected):
        rounds()
