"""SPIFFE IDs and trust domains, parsed by hand (SPIFFE-ID, sections 2 and 2.1 to 2.4).

The only way to hold an identity is to have parsed it: everything else in Remora takes a
`SpiffeId`, never a string. URL libraries are not used, because they repair what the standard
wants refused: tabs vanish, an empty `?` is hidden, the scheme is lowered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from mesh.errors import RemoraError

SCHEME = "spiffe://"

MAX_ID_BYTES = 2048
"""SPIFFE-ID 2.3: implementations must support this length and should not produce longer ones."""

MAX_TRUST_DOMAIN_BYTES = 255
"""SPIFFE-ID 2.3: the longest trust domain name."""

TRUST_DOMAIN_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-_")
PATH_CHARACTERS = TRUST_DOMAIN_CHARACTERS | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


class InvalidSpiffeId(RemoraError):
    """A text is not a SPIFFE ID, or not a trust domain name."""

    reason = "invalid_spiffe_id"


@dataclass(frozen=True, slots=True, order=True)
class TrustDomain:
    """The name of a trust domain, such as `cluster.local`.

    It looks like a DNS name but is not one: `a..b` and `-a` are valid, and nothing is normalised.
    """

    name: str

    def __post_init__(self) -> None:
        """Refuse a name that SPIFFE-ID 2.1 does not allow."""
        _check_trust_domain(self.name)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a bare name, or take the trust domain of a whole SPIFFE ID.

        Raises InvalidSpiffeId.
        """
        if text.startswith(SCHEME):
            return cls(SpiffeId.parse(text).trust_domain.name)
        return cls(text)

    @property
    def id(self) -> str:
        """The trust domain's own SPIFFE ID: no path, no trailing slash."""
        return SCHEME + self.name

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class ServiceAccount:
    """A Kubernetes style service account: what Istio makes identities of."""

    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `NAMESPACE/NAME`. Raises InvalidSpiffeId."""
        namespace, slash, name = text.partition("/")
        if not slash:
            raise InvalidSpiffeId(
                f"{text!r} is not a service account: write NAMESPACE/NAME, such as foo/httpbin"
            )
        for part in (namespace, name):
            _check_segment(part, text)
        return cls(namespace, name)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """A SPIFFE ID: a trust domain and a path, which is empty or starts with a slash."""

    trust_domain: TrustDomain
    path: str = ""

    def __post_init__(self) -> None:
        """Refuse a path or a length that SPIFFE-ID 2.2 and 2.3 do not allow."""
        _check_path(self.path, str(self))
        if len(str(self)) > MAX_ID_BYTES:
            raise InvalidSpiffeId(
                f"SPIFFE ID {str(self)[:80]!r}... has {len(str(self))} bytes, "
                f"more than the {MAX_ID_BYTES} allowed"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `spiffe://TRUST_DOMAIN[/PATH]`. Raises InvalidSpiffeId; nothing is normalised."""
        if not text.startswith(SCHEME):
            raise InvalidSpiffeId(f"{text[:80]!r} is not a SPIFFE ID: it must start with {SCHEME}")
        name, slash, rest = text[len(SCHEME) :].partition("/")
        return cls(TrustDomain(name), slash + rest)

    @classmethod
    def from_segments(cls, trust_domain: TrustDomain, *segments: str) -> Self:
        """Join path segments to an ID; a segment that holds a slash is refused, not split."""
        for segment in segments:
            _check_segment(segment, "/".join(segments))
        return cls(trust_domain, "".join(f"/{segment}" for segment in segments))

    @property
    def service_account(self) -> ServiceAccount | None:
        """The account of an Istio identity `spiffe://TD/ns/NS/sa/SA`; None for any other ID."""
        match self.path.split("/"):
            case ["", "ns", namespace, "sa", name]:
                return ServiceAccount(namespace, name)
            case _:
                return None

    def member_of(self, trust_domain: TrustDomain) -> bool:
        """Tell whether the ID belongs to `trust_domain`: by equality, never by prefix."""
        return self.trust_domain == trust_domain

    def __str__(self) -> str:
        return self.trust_domain.id + self.path


def service_account_id(trust_domain: TrustDomain, account: ServiceAccount) -> SpiffeId:
    """Return Istio's identity of a service account: `spiffe://TD/ns/NS/sa/SA`."""
    return SpiffeId.from_segments(trust_domain, "ns", account.namespace, "sa", account.name)


def _check_trust_domain(name: str) -> None:
    if not name:
        raise InvalidSpiffeId("a trust domain must not be empty")
    if strange := sorted(set(name) - TRUST_DOMAIN_CHARACTERS):
        raise InvalidSpiffeId(
            f"trust domain {name[:80]!r} contains {strange[0]!r}: "
            "only a-z, 0-9, dot, dash and underscore are allowed"
        )
    if len(name) > MAX_TRUST_DOMAIN_BYTES:
        raise InvalidSpiffeId(
            f"trust domain {name[:80]!r}... has {len(name)} bytes, "
            f"more than the {MAX_TRUST_DOMAIN_BYTES} allowed"
        )


def _check_path(path: str, whole: str) -> None:
    if not path:
        return
    start, *segments = path.split("/")
    if start:
        raise InvalidSpiffeId(f"the path of {whole[:80]!r} must start with a slash")
    for segment in segments:
        _check_segment(segment, whole)


def _check_segment(segment: str, whole: str) -> None:
    if not segment:
        raise InvalidSpiffeId(f"{whole[:80]!r} has an empty path segment or a trailing slash")
    if segment in {".", ".."}:
        raise InvalidSpiffeId(f"{whole[:80]!r} has a path segment {segment!r}, which is refused")
    if strange := sorted(set(segment) - PATH_CHARACTERS):
        raise InvalidSpiffeId(
            f"{whole[:80]!r} contains {strange[0]!r} in its path: "
            "only a-z, A-Z, 0-9, dot, dash and underscore are allowed"
        )
