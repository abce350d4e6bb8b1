from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from agent.csr import new_request
from mesh.spiffe import SpiffeId

IDENTITY = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/httpbin")


def test_request_has_the_form_of_ztunnels() -> None:
    request = new_request(IDENTITY)
    csr = x509.load_pem_x509_csr(request.csr_pem.encode())
    assert csr.is_signature_valid
    assert csr.subject == x509.Name([])
    [extension] = csr.extensions
    assert extension.critical
    assert isinstance(extension.value, x509.SubjectAlternativeName)
    assert list(extension.value) == [x509.UniformResourceIdentifier(str(IDENTITY))]


def test_request_is_signed_by_its_own_p256_key() -> None:
    request = new_request(IDENTITY)
    csr = x509.load_pem_x509_csr(request.csr_pem.encode())
    assert csr.public_key() == request.key.public_key()
    assert isinstance(request.key.curve, ec.SECP256R1)


def test_every_request_has_a_new_key() -> None:
    keys = {new_request(IDENTITY).key.private_numbers().private_value for _ in range(5)}
    assert len(keys) == 5


def test_key_does_not_show_when_printed() -> None:
    assert "key=" not in repr(new_request(IDENTITY))
