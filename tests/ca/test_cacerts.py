from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from ca.cacerts import (
    CERT,
    CHAIN,
    CRL,
    ISTIO_LAYOUT,
    KEY,
    ROOT,
    TLS_LAYOUT,
    PluggedInFiles,
    check_plugged_in,
    chosen_layout,
    load_plugged_in,
)
from ca.errors import PluggedInCaUnusable
from mesh.svid import certificates_pem, private_key_pem
from tests.ca.workshop import CLUSTER
from tests.pki import NOW, Authority, Leaf, make_root, new_key

ORIGIN = make_root("root")
MIDDLE = ORIGIN.intermediate("middle")
SIGNER = MIDDLE.intermediate("signer")
STRANGER = make_root("stranger")


def revocation_list(issuer: Authority, *, signed_by: Authority | None = None) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(NOW - timedelta(days=1))
        .next_update(NOW + timedelta(days=1))
    )
    signed = builder.sign((signed_by or issuer).key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def files(**changes: Any) -> PluggedInFiles:
    good: dict[str, Any] = {
        "cert": SIGNER.pem,
        "key": private_key_pem(SIGNER.key),
        "chain": certificates_pem(SIGNER.chain),
        "root": ORIGIN.pem,
    }
    return PluggedInFiles(**{**good, **changes})


def test_a_chain_of_intermediates() -> None:
    found = check_plugged_in(files(), CLUSTER, NOW)
    assert found.signer.certificate == SIGNER.certificate
    assert found.intermediates == SIGNER.chain
    assert found.roots.authorities == (ORIGIN.certificate,)


def test_a_chain_file_with_the_root_in_it_as_istios_tools_make_it() -> None:
    chain = certificates_pem([*SIGNER.chain, ORIGIN.certificate])
    assert check_plugged_in(files(chain=chain), CLUSTER, NOW).intermediates == SIGNER.chain


@pytest.mark.parametrize("chain", [None, b"", b"\n"])
def test_the_root_may_have_signed_directly(chain: bytes | None) -> None:
    key = private_key_pem(MIDDLE.key)
    found = check_plugged_in(files(cert=MIDDLE.pem, key=key, chain=chain), CLUSTER, NOW)
    assert found.intermediates == (MIDDLE.certificate,)


def test_the_signer_may_be_the_root() -> None:
    root = files(cert=ORIGIN.pem, key=private_key_pem(ORIGIN.key), chain=None)
    assert check_plugged_in(root, CLUSTER, NOW).intermediates == ()


def test_several_roots() -> None:
    found = check_plugged_in(files(root=STRANGER.pem + ORIGIN.pem), CLUSTER, NOW)
    assert len(found.roots.authorities) == 2


def no_ca(**options: Any) -> bytes:
    leaf = Leaf(subject="signer", key=SIGNER.key, **options)
    return certificates_pem([MIDDLE.sign(leaf)])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"key": private_key_pem(new_key())}, "not the key of", id="key-mismatch"),
        pytest.param({"key": b"junk"}, "ca-key.pem is not an unencrypted", id="key-junk"),
        pytest.param({"cert": b"junk"}, "ca-cert.pem is not a PEM", id="cert-junk"),
        pytest.param({"root": b""}, "root-cert.pem: ", id="root-empty"),
        pytest.param({"chain": b"junk"}, "cert-chain.pem is not a PEM", id="chain-junk"),
        pytest.param({"root": STRANGER.pem}, "does not lead to", id="wrong-root"),
        pytest.param({"chain": None}, "does not lead to", id="no-chain"),
        pytest.param({"chain": STRANGER.pem}, "does not lead to", id="wrong-chain"),
        pytest.param({"cert": no_ca()}, "is not a CA certificate", id="no-ca"),
        pytest.param({"cert": no_ca(ca=True)}, "may not sign", id="no-cert-sign"),
        pytest.param({"cert": no_ca(ca=None)}, "lacks readable basic", id="no-basic-constraints"),
        pytest.param({"cert": no_ca(ca=True, usage=None)}, "lacks readable", id="no-usage"),
        pytest.param({"crl": b"junk"}, "has no valid list of", id="crl-junk"),
        pytest.param(
            {"crl": b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"},
            "cannot be read",
            id="crl-garbage",
        ),
        pytest.param({"crl": revocation_list(ORIGIN)}, "no valid list of 'O=middle'", id="crl-gap"),
        pytest.param(
            {"crl": revocation_list(ORIGIN) + revocation_list(MIDDLE, signed_by=STRANGER)},
            "no valid list of 'O=middle'",
            id="crl-forged",
        ),
    ],
)  # fmt: skip
def test_cas_that_cannot_be_used(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PluggedInCaUnusable, match=sentence):
        check_plugged_in(files(**changes), CLUSTER, NOW)


def test_an_expired_link_is_refused_wherever_it_is() -> None:
    after = SIGNER.certificate.not_valid_after_utc + timedelta(seconds=1)
    with pytest.raises(PluggedInCaUnusable, match="expired"):
        check_plugged_in(files(), CLUSTER, after)


def test_lists_that_cover_every_issuer_are_taken() -> None:
    crl = revocation_list(ORIGIN) + revocation_list(MIDDLE) + revocation_list(SIGNER)
    assert len(check_plugged_in(files(crl=crl), CLUSTER, NOW).revoked) == 3


@pytest.mark.parametrize("layout", [ISTIO_LAYOUT, TLS_LAYOUT])
def test_a_part_of_a_layout_is_no_layout(layout: tuple[str, ...]) -> None:
    assert chosen_layout({*layout, "README", CRL}, "DIR") == layout
    for name in layout:
        with pytest.raises(PluggedInCaUnusable, match=f"a part of a CA: {name} missing"):
            chosen_layout({*layout} - {name}, "DIR")
    with pytest.raises(PluggedInCaUnusable, match="holds no CA"):
        chosen_layout({"README"}, "DIR")


def write_istio(directory: Path) -> None:
    content = files()
    (directory / CERT).write_bytes(content.cert)
    (directory / KEY).write_bytes(content.key)
    (directory / ROOT).write_bytes(content.root)
    (directory / CHAIN).write_bytes(content.chain or b"")


def write_cert_manager(directory: Path) -> None:
    content = files()
    (directory / "tls.crt").write_bytes(content.cert + (content.chain or b""))
    (directory / "tls.key").write_bytes(content.key)
    (directory / "ca.crt").write_bytes(content.root)


@pytest.mark.parametrize("write", [write_istio, write_cert_manager])
def test_both_layouts_are_read(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    found = load_plugged_in(tmp_path, CLUSTER, NOW)
    assert found.intermediates == SIGNER.chain
