"""TLS to servers that are no mesh peers: a DestinationRule's SIMPLE and MUTUAL.

The server is known by the names in its certificate, not by a SPIFFE ID, and judged by roots of the
user's choice. Names are compared as Envoy compares them: exactly, except that a certificate for
`*.example.com` is good for every name of one more label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from cryptography import x509
from OpenSSL import SSL

from mesh.bundle import Bundles, TrustBundle
from mesh.spiffe import TrustDomain
from mesh.svid import UNREADABLE, PrivateKey
from mesh.tls import TlsContext
from mesh.tls_peer import Verify
from mesh.verify import PeerRejected

_NOBODY = TrustDomain("user")
"""A bundle needs the name of a trust domain; these roots are asked about no SPIFFE ID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserCredential:
    """A certificate that the user gave, with its key."""

    chain: tuple[x509.Certificate, ...]
    key: PrivateKey

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate of the key."""
        return self.chain[0]


def origination_context(
    *,
    names: Sequence[str],
    roots: Sequence[x509.Certificate] | None = None,
    credential: UserCredential | None = None,
    verify: bool = True,
) -> TlsContext:
    """Make the client of a server that must show one of `names`, DNS names, addresses or URIs.

    Without `roots` the operating system's are used. With `verify` False anybody is believed.
    """
    bundles: Bundles = {}
    if roots is not None:
        bundles = {_NOBODY: TrustBundle.of(_NOBODY, roots)}
    context = TlsContext(
        bundles,
        names_verifier(names),
        server=False,
        mode=SSL.VERIFY_PEER if verify else SSL.VERIFY_NONE,
        svid=credential,
        alpn=(),
    )
    if roots is None:
        context.trust_the_system()
    return context


def names_verifier(names: Sequence[str]) -> Verify:
    """Judge by the names in a server's certificate, of which one must be among `names`."""

    def verify(chain: Sequence[x509.Certificate]) -> None:
        shown = _names_in(chain[0])
        if not any(_same(name, other) for name in names for other in shown):
            raise PeerRejected(
                f"the server's certificate is for {', '.join(shown) or 'no name'}, and not for "
                f"{' or '.join(names) or 'any name that is expected'}: somebody else answers at "
                "this address, or subjectAltNames are out of date"
            )

    return verify


def _names_in(leaf: x509.Certificate) -> list[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return []
    return [
        *names.get_values_for_type(x509.DNSName),
        *names.get_values_for_type(x509.UniformResourceIdentifier),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    ]


def _same(expected: str, shown: str) -> bool:
    """Compare names: RFC 6125, 6.4.3 for a wildcard, which must be a whole leftmost label."""
    if "://" in expected or "://" in shown:
        return expected == shown
    if _is_address(expected) or _is_address(shown):
        return _is_address(expected) and _is_address(shown) and _equal(expected, shown)
    expected, shown = expected.lower(), shown.lower()
    if shown.startswith("*."):
        label, dot, rest = expected.partition(".")
        return bool(label and dot) and rest == shown[2:]
    return expected == shown


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _equal(one: str, other: str) -> bool:
    return ip_address(one) == ip_address(other)
