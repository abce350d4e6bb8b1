"""Signing requests, tokens and callers for the CA's tests, right or wrong on purpose."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from ca.authenticate import Caller
from ca.authority import Authority, TtlLimits
from ca.template import Signer, root_certificate, root_validity
from mesh.bundle import TrustBundle
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.svid import PrivateKey
from tests.pki import NOW, new_key

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")

CLUSTER = TrustDomain("cluster.local")
WEB = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/web")
WEB_CALLER = Caller(identity=WEB, authenticator="test")
LIMITS = TtlLimits(default=timedelta(hours=24), maximum=timedelta(hours=2160))


@functools.cache
def rsa_key(bits: int = 2048, exponent: int = 65537) -> rsa.RSAPrivateKey:
    """RSA keys are slow to make, so tests share them."""
    return rsa.generate_private_key(exponent, bits)


def csr_pem(
    key: PrivateKey | ed25519.Ed25519PrivateKey | None = None,
    *,
    subject: x509.Name | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    algorithm: hashes.SHA256 | hashes.SHA384 | None = hashes.SHA256(),  # noqa: B008
) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject or x509.Name([]))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    request = builder.sign(key or new_key(), algorithm)
    return request.public_bytes(serialization.Encoding.PEM)


def openssl(*arguments: str, stdin: bytes = b"", cwd: Path | None = None) -> bytes:
    """Run the openssl command; its complaint is the test's failure."""
    done = subprocess.run(
        ["openssl", *arguments], input=stdin, capture_output=True, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def openssl_csr(key_pem: bytes, *options: str) -> bytes:
    """Make a request that Python's cryptography would refuse to make."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(key_pem)
        file.flush()
        return openssl("req", "-new", "-key", file.name, "-subj", "/", *options)


def make_authority(
    *,
    trust_domain: TrustDomain = CLUSTER,
    key: PrivateKey | None = None,
    life: timedelta = timedelta(days=3650),
    limits: TtlLimits = LIMITS,
) -> Authority:
    signing_key = key or new_key()
    root = root_certificate(trust_domain, signing_key, root_validity(NOW, life))
    return Authority(
        signer=Signer(certificate=root, key=signing_key),
        roots=TrustBundle.of(trust_domain, [root]),
        limits=limits,
    )


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims of a service-account token; a change to None leaves the claim out."""
    good = {
        "iss": "https://issuer.test",
        "aud": ["istio-ca"],
        "sub": "system:serviceaccount:foo:web",
        "exp": int(NOW.timestamp()) + 3600,
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def sign_token(
    payload: dict[str, Any] | bytes,
    key: PrivateKey,
    algorithm: str = "RS256",
    **headers: Any,
) -> str:
    """Sign whatever is given, unlike jwt.encode, which has an opinion about claims."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return jwt.PyJWS().encode(data, key, algorithm=algorithm, headers=headers)
