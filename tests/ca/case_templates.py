"""Certificates and signing requests from the templates of tests/cases/identity.yaml."""

from __future__ import annotations

import base64
import re
import shutil
import tempfile
from datetime import timedelta
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.svid import PrivateKey
from tests.ca.workshop import csr_pem, openssl, rsa_key
from tests.pki import NOW, key_usage, make_root, new_key, san

KEY_USAGES = {"digitalSignature", "keyEncipherment", "keyAgreement", "keyCertSign", "cRLSign",
              "contentCommitment", "dataEncipherment"}  # fmt: skip
EXTENDED = {"serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
            "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
            "codeSigning": ExtendedKeyUsageOID.CODE_SIGNING,
            "any": ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}  # fmt: skip
NAMES = {"O": NameOID.ORGANIZATION_NAME, "CN": NameOID.COMMON_NAME,
         "OU": NameOID.ORGANIZATIONAL_UNIT_NAME, "C": NameOID.COUNTRY_NAME}  # fmt: skip


def snake(camel: str) -> str:
    spaced = re.sub("([A-Z]+)", r"_\1", camel).lower()
    return {"c_rlsign": "crl_sign", "c_rl_sign": "crl_sign"}.get(spaced, spaced)


def general_name(text: str) -> x509.GeneralName:
    kind, _, value = text.partition(":")
    if kind == "EMAIL":
        return x509.RFC822Name(value)
    assert kind in {"URI", "DNS", "IP"}, text
    return san(value)


def subject(pairs: list[list[str]]) -> x509.Name:
    return x509.Name([x509.NameAttribute(NAMES[kind], value) for kind, value in pairs])


def extensions(fields: dict[str, Any]) -> list[tuple[x509.ExtensionType, bool]]:
    found: list[tuple[x509.ExtensionType, bool]] = []
    if fields.get("san"):
        names = x509.SubjectAlternativeName([general_name(text) for text in fields["san"]])
        found.append((names, fields.get("san_critical", True)))
    basic = fields.get("basic_constraints")
    if basic is not None:
        constraints = x509.BasicConstraints(basic["ca"], basic.get("path_length"))
        found.append((constraints, True))
    if fields.get("ku"):
        assert set(fields["ku"]) <= KEY_USAGES
        usage = key_usage(*(snake(name) for name in fields["ku"]))
        found.append((usage, fields.get("ku_critical", True)))
    if fields.get("eku"):
        found.append((x509.ExtendedKeyUsage([EXTENDED[name] for name in fields["eku"]]), False))
    return found


EXTENSION_FIELDS = {"san", "san_critical", "basic_constraints", "ku", "ku_critical", "eku"}


def make_key(kind: str) -> PrivateKey | ed25519.Ed25519PrivateKey:
    family, _, size = kind.partition(":")
    if family == "rsa":
        return rsa_key(int(size))
    if family == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    curves = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}
    return ec.generate_private_key(curves[size])


def make_csr(fields: dict[str, Any]) -> bytes:
    fields = dict(fields)
    if "raw" in fields:
        return cast("str", fields["raw"]).encode()
    if "raw_repeat" in fields:
        repeat = fields["raw_repeat"]
        return cast("bytes", repeat["char"].encode() * repeat["count"])
    corrupt = fields.pop("corrupt", None)
    pem = build_csr(fields)
    if corrupt is None:
        return pem
    assert corrupt == "flip_last_signature_byte", corrupt
    der = bytearray(base64.b64decode(b"".join(pem.splitlines()[1:-1])))
    der[-1] ^= 1
    body = base64.encodebytes(bytes(der))
    return b"-----BEGIN CERTIFICATE REQUEST-----\n%b-----END CERTIFICATE REQUEST-----\n" % body


def build_csr(fields: dict[str, Any]) -> bytes:
    kind, digest = fields.pop("key", "ec:p256"), fields.pop("hash", "sha256")
    name = subject(fields.pop("subject", []))
    assert not set(fields) - EXTENSION_FIELDS, "a CSR template this runner does not know"
    if digest in {"md5", "sha1"} or kind.startswith("dsa") or kind == "rsa:512":
        return odd_csr(kind, digest)
    key = make_key(kind)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return csr_pem(key, subject=name, extensions=extensions(fields), algorithm=algorithm)


def odd_csr(kind: str, digest: str) -> bytes:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command")
    family, _, size = kind.partition(":")
    make = {
        "rsa": ("genrsa", size),
        "dsa": ("dsaparam", "-genkey", size or "1024"),
        "ec": ("ecparam", "-genkey", "-noout", "-name", "prime256v1"),
    }
    with tempfile.NamedTemporaryFile() as file:
        file.write(openssl(*make[family]))
        file.flush()
        return openssl("req", "-new", "-subj", "/", f"-{digest}", "-key", file.name)


def make_leaf(overrides: dict[str, Any]) -> x509.Certificate:
    fields: dict[str, Any] = {
        "subject": [],
        "san": ["URI:spiffe://example.org/ns/default/sa/web"],
        "basic_constraints": {"ca": False},
        "ku": ["digitalSignature", "keyEncipherment"],
        "eku": ["serverAuth", "clientAuth"],
        "not_before": -120,
        "not_after": 3600,
        **overrides,
    }
    assert fields.pop("t", "leaf") == "leaf"
    root = make_root()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject(fields.pop("subject")))
        .issuer_name(root.certificate.subject)
        .public_key(new_key().public_key())
        .serial_number(2)
        .not_valid_before(NOW + timedelta(seconds=fields.pop("not_before")))
        .not_valid_after(NOW + timedelta(seconds=fields.pop("not_after")))
    )
    assert not set(fields) - EXTENSION_FIELDS, "a certificate template this runner does not know"
    for extension, critical in extensions(fields):
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(root.key, hashes.SHA256())
