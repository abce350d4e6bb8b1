"""Chains of certificates from the templates of tests/cases/identity.yaml.

The head of that file documents them: a chain is a list of entries, leaf first, each a template's
name and what differs from it. Issuers are roots known by name, or other entries of the chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519

from mesh.svid import PrivateKey
from tests.ca.case_templates import EXTENSION_FIELDS, extensions, make_key, subject
from tests.pki import NOW

Entry = dict[str, Any]

CA: Entry = {
    "san": None,
    "basic_constraints": {"ca": True},
    "ku": ["keyCertSign", "cRLSign"],
    "eku": None,
    "key": "ec:p256",
    "not_before": -3600,
    "not_after": 86400,
}

TEMPLATES: dict[str, Entry] = {
    "leaf": {
        "subject": [],
        "san": ["URI:spiffe://example.org/ns/default/sa/web"],
        "basic_constraints": {"ca": False},
        "ku": ["digitalSignature", "keyEncipherment"],
        "eku": ["serverAuth", "clientAuth"],
        "key": "ec:p256",
        "not_before": -120,
        "not_after": 3600,
        "issuer": "root",
    },
    "intermediate": {**CA, "subject": [["O", "int"]], "issuer": "root"},
    "ca": {**CA, "subject": [["O", "ca"]], "issuer": "self"},
    "root": {**CA, "subject": [["O", "root"]], "issuer": "self"},
    "root_new": {**CA, "subject": [["O", "root_new"]], "issuer": "self"},
    "root2": {**CA, "subject": [["O", "root2"]], "issuer": "self"},
    "root_plen0": {
        **CA,
        "subject": [["O", "root_plen0"]],
        "basic_constraints": {"ca": True, "path_length": 0},
        "issuer": "self",
    },
}

ROOTS = ("root", "root_new", "root2", "root_plen0")

Key = PrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class Made:
    """A certificate and the key it certifies."""

    certificate: x509.Certificate
    key: Key


class Chain:
    """The certificates of one case. `certificates` has them in the order in which they are sent."""

    def __init__(self, entries: Sequence[Entry | str]) -> None:
        self._made: dict[str, Made] = {}
        self.certificates: tuple[x509.Certificate, ...] = ()
        self.leaf: Made | None = None
        made = [self._entry(entry) for entry in reversed(entries)]
        made.reverse()
        self.certificates = tuple(one.certificate for one in made)
        if made:
            self.leaf = made[0]

    def named(self, name: str) -> Made:
        """Return a root, or an entry of the chain; what the case does not send is made now."""
        if name not in self._made:
            self._made[name] = self._make({"t": name})
        return self._made[name]

    def _entry(self, entry: Entry | str) -> Made:
        fields: Entry = {"t": entry} if isinstance(entry, str) else dict(entry)
        template = fields["t"]
        if template.endswith("_cert"):
            return self.named(template.removesuffix("_cert"))
        name = fields.pop("name", template)
        if template in ROOTS and len(fields) == 1:
            return self.named(template)
        made = self._make(fields)
        self._made.setdefault(name, made)
        return made

    def _make(self, overrides: Entry) -> Made:
        fields = {**TEMPLATES[overrides["t"]], **overrides}
        fields.pop("t")
        key = make_key(fields.pop("key"))
        issuer = fields.pop("issuer")
        name = subject(fields.pop("subject") or [])
        signer = None if issuer == "self" else self.named(issuer)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name if signer is None else signer.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW + timedelta(seconds=fields.pop("not_before")))
            .not_valid_after(NOW + timedelta(seconds=fields.pop("not_after")))
        )
        strange = set(fields) - EXTENSION_FIELDS
        assert not strange, f"a template field this runner does not know: {strange}"
        for extension, critical in extensions(fields):
            builder = builder.add_extension(extension, critical=critical)
        return Made(_sign(builder, key if signer is None else signer.key), key)


def _sign(builder: x509.CertificateBuilder, key: Key) -> x509.Certificate:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return builder.sign(key, None)
    return builder.sign(key, hashes.SHA256())
