from __future__ import annotations

import base64

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.csr import MAX_CSR_BYTES, _usable_key, parse_csr
from ca.errors import (
    CsrKeyRefused,
    CsrSignatureInvalid,
    CsrTooLarge,
    CsrUnreadable,
    Fault,
    SigningError,
)
from mesh.svid import PrivateKey, private_key_pem
from tests.ca.workshop import csr_pem, needs_openssl, openssl, openssl_csr, rsa_key
from tests.pki import key_usage, new_key

GARBAGE = b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(ec.generate_private_key(ec.SECP256R1()), id="p256"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), id="p384"),
        pytest.param(rsa_key(2048), id="rsa2048"),
    ],
)
def test_usable_keys_come_out(key: PrivateKey) -> None:
    request = parse_csr(csr_pem(key))
    assert request.public_key == key.public_key()
    assert not request.wants_common_name


def test_nothing_but_the_key_and_the_wish_for_a_common_name_comes_out() -> None:
    key = new_key()
    request = parse_csr(
        csr_pem(
            key,
            subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")]),
            extensions=[
                (x509.BasicConstraints(ca=True, path_length=None), True),
                (key_usage("key_cert_sign", "crl_sign"), True),
                (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False),
                (
                    x509.SubjectAlternativeName(
                        [x509.UniformResourceIdentifier("spiffe://cluster.local/ns/kube/sa/admin")]
                    ),
                    True,
                ),
            ],
        )
    )
    assert request.public_key == key.public_key()
    assert request.wants_common_name
    assert not hasattr(request, "__dict__"), "there is no place for anything else"


def test_the_older_pem_label_and_leading_text_are_read() -> None:
    key = new_key()
    pem = csr_pem(key).replace(b" CERTIFICATE REQUEST", b" NEW CERTIFICATE REQUEST")
    assert parse_csr(b"Certificate Request:\n    Data:\n" + pem).public_key == key.public_key()


@pytest.mark.parametrize(
    "pem",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not PEM", id="not-pem"),
        pytest.param(b"\x00\xff" * 100, id="binary"),
        pytest.param(GARBAGE, id="pem-frame-around-garbage"),
        pytest.param(csr_pem()[:-60], id="truncated"),
        pytest.param(csr_pem().replace(b"REQUEST", b"QUEST"), id="wrong-label"),
        pytest.param(private_key_pem(new_key()), id="a-private-key"),
    ],
)
def test_what_is_no_request_is_unreadable(pem: bytes) -> None:
    with pytest.raises(CsrUnreadable) as caught:
        parse_csr(pem)
    assert caught.value.fault is Fault.CSR


def test_the_size_is_bounded_before_anything_is_parsed() -> None:
    padded = csr_pem().ljust(MAX_CSR_BYTES)
    assert parse_csr(padded).public_key.key_size == 256
    with pytest.raises(CsrTooLarge, match="65537 bytes"):
        parse_csr(padded + b" ")


def test_a_changed_request_is_refused() -> None:
    der = bytearray(der_of(csr_pem()))
    der[-1] ^= 1
    with pytest.raises(CsrSignatureInvalid):
        parse_csr(pem_of(bytes(der)))


def test_a_swapped_key_is_refused() -> None:
    """The attacker puts a victim's public key into a request that the attacker signed."""
    mine, victims = new_key(), new_key()
    swapped = der_of(csr_pem(mine)).replace(encoded(mine), encoded(victims))
    with pytest.raises(CsrSignatureInvalid):
        parse_csr(pem_of(swapped))


@pytest.mark.parametrize(
    ("pem", "sentence"),
    [
        pytest.param(csr_pem(rsa_key(1024)), "1024 bits", id="rsa1024"),
        pytest.param(csr_pem(rsa_key(2048, 3)), "exponent", id="rsa-exponent-3"),
        pytest.param(csr_pem(ec.generate_private_key(ec.SECP521R1())), "secp521r1", id="p521"),
        pytest.param(csr_pem(ec.generate_private_key(ec.SECP256K1())), "secp256k1", id="k256"),
        pytest.param(csr_pem(ec.generate_private_key(ec.SECP224R1())), "secp224r1", id="p224"),
        pytest.param(
            csr_pem(ed25519.Ed25519PrivateKey.generate(), algorithm=None),
            "Envoy does not accept",
            id="ed25519",
        ),
    ],
)
def test_weak_and_odd_keys_are_refused(pem: bytes, sentence: str) -> None:
    with pytest.raises(CsrKeyRefused, match=sentence) as caught:
        parse_csr(pem)
    assert caught.value.fault is Fault.CSR


def test_a_huge_rsa_key_is_refused() -> None:
    """A key of this size takes minutes to make, so only its public half is made up."""
    huge = rsa.RSAPublicNumbers(65537, (1 << 8192) + 1).public_key()
    with pytest.raises(CsrKeyRefused, match="8193 bits"):
        _usable_key(huge)


@needs_openssl
def test_a_tiny_rsa_key_is_refused() -> None:
    with pytest.raises(CsrKeyRefused, match="512 bits"):
        parse_csr(openssl_csr(openssl("genrsa", "512")))


@needs_openssl
def test_dsa_is_refused() -> None:
    with pytest.raises(CsrKeyRefused, match="neither EC nor RSA"):
        parse_csr(openssl_csr(openssl("dsaparam", "-genkey", "1024")))


@needs_openssl
@pytest.mark.parametrize("digest", ["md5", "sha1", "sha224"])
def test_weak_request_signatures_are_refused(digest: str) -> None:
    with pytest.raises(CsrSignatureInvalid, match=f"signed with {digest}"):
        parse_csr(openssl_csr(private_key_pem(rsa_key()), f"-{digest}"))


@needs_openssl
def test_ed448_is_refused() -> None:
    with pytest.raises(CsrKeyRefused):
        parse_csr(openssl_csr(openssl("genpkey", "-algorithm", "ed448")))


@needs_openssl
def test_a_request_by_the_openssl_command_is_read() -> None:
    key = rsa_key()
    request = parse_csr(openssl_csr(private_key_pem(key), "-sha384"))
    assert request.public_key == key.public_key()


FUZZ_KEY = new_key()
FUZZ_DER = base64.b64decode(b"".join(csr_pem(FUZZ_KEY).splitlines()[1:-1]))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_requests_give_our_error_or_the_key_and_nothing_else(data: st.DataObject) -> None:
    der = bytearray(FUZZ_DER)
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    try:
        request = parse_csr(pem_of(bytes(der)))
    except SigningError:
        return
    assert request.public_key == FUZZ_KEY.public_key()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_give_our_error(data: bytes) -> None:
    for untrusted in (data, pem_of(data)):
        with pytest.raises(SigningError):
            parse_csr(untrusted)


def test_an_unknown_signature_algorithm_is_refused() -> None:
    ecdsa_with_sha256 = bytes.fromhex("06082a8648ce3d040302")
    unknown = bytes.fromhex("06082a8648ce3d04037f")
    der = der_of(csr_pem())
    assert ecdsa_with_sha256 in der
    with pytest.raises(CsrSignatureInvalid, match="cannot be checked"):
        parse_csr(pem_of(der.replace(ecdsa_with_sha256, unknown)))


def test_a_subject_that_is_no_text_is_refused_though_it_is_signed() -> None:
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ABCD")])
    pem = csr_pem(rsa_key(), subject=named)
    signed = x509.load_pem_x509_csr(pem).tbs_certrequest_bytes.replace(b"ABCD", b"\xff" * 4)
    signature = rsa_key().sign(signed, padding.PKCS1v15(), hashes.SHA256())
    der = der_of(pem).replace(b"ABCD", b"\xff" * 4)[: -len(signature)] + signature
    with pytest.raises(CsrUnreadable, match="subject"):
        parse_csr(pem_of(der))


def der_of(pem: bytes) -> bytes:
    return base64.b64decode(b"".join(pem.splitlines()[1:-1]))


def pem_of(der: bytes) -> bytes:
    body = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE REQUEST-----\n%b-----END CERTIFICATE REQUEST-----\n" % body


def encoded(key: ec.EllipticCurvePrivateKey) -> bytes:
    numbers = key.public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def test_sha384_requests_are_read() -> None:
    key = new_key()
    request = parse_csr(csr_pem(key, algorithm=hashes.SHA384()))
    assert request.public_key == key.public_key()
