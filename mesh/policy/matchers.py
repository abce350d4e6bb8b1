"""One function for each thing a rule can look at: from values to a test of the facts.

Each takes the values of one list and returns a test that is true if any of them matches. A fact
that is absent matches nothing, so the negation of such a test is true: Istio's own rule for
plaintext, absent headers and absent tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mesh.policy.facts import IPV6, Facts
from mesh.policy.text_match import Test, text_test
from mesh.policy.trust_domains import TrustDomains
from mesh.resources.checks import MATCH_ANY, MATCH_ONE, is_template, parse_network, port_text
from mesh.resources.security import Texts

Predicate = Callable[[Facts], bool]


@dataclass(frozen=True, slots=True)
class Context:
    """What the meaning of a value depends on besides itself."""

    namespace: str
    trust_domains: TrustDomains


Maker = Callable[[Texts, Context], Predicate]


def principals(values: Texts, context: Context) -> Predicate:
    """Compare the identity without `spiffe://`; aliases of the trust domain count."""
    test = text_test(context.trust_domains.migrate_principals(values))
    return lambda facts: facts.identity is not None and test(facts.identity)


def namespaces(values: Texts, _context: Context) -> Predicate:
    """Look for `/ns/VALUE/` anywhere in the identity; every `*` is any text, slashes too.

    The pieces between the stars must occur in order, and the first place each is found is as good
    as any later one; so no backtracking is needed, however many stars there are.
    """
    tests = tuple(_namespace_test(value) for value in values)
    match tests:
        case (only,):
            return lambda facts: facts.slashed is not None and only(facts.slashed)
        case _:
            return lambda facts: facts.slashed is not None and _any(tests, facts.slashed)


def _namespace_test(value: str) -> Test:
    match _pieces(value):
        case (piece,):
            return lambda text: piece in text
        case (first, last):
            past = len(first)
            return lambda text: (
                (found := text.find(first)) >= 0 and text.find(last, found + past) >= 0
            )
        case pieces:
            return lambda text: _in_order(pieces, text)


def _any(tests: tuple[Test, ...], text: str) -> bool:
    for test in tests:  # noqa: SIM110  a generator would double the cost
        if test(text):
            return True
    return False


def _pieces(value: str) -> tuple[str, ...]:
    return tuple(f"/ns/{value}/".split("*"))


def _in_order(pieces: tuple[str, ...], text: str) -> bool:
    position = 0
    for piece in pieces:
        found = text.find(piece, position)
        if found < 0:
            return False
        position = found + len(piece)
    return True


def service_accounts(values: Texts, context: Context) -> Predicate:
    """Compare `NAMESPACE/NAME` of the identity; a bare name is one of the POLICY's namespace.

    Istio: further path segments before `ns`, between the two, and after the name do not matter.
    """
    exact: set[str] = set()
    patterns: list[str] = []
    for value in values:
        namespace, slash, name = value.partition("/")
        if not slash:
            namespace, name = context.namespace, value
        exact.add(f"ns/{namespace}/sa/{name}")
        patterns.append(f".+/ns/{re.escape(namespace)}/(?:.+/)?sa/{re.escape(name)}(?:/.+)?")
    longer = re.compile("|".join(patterns), re.DOTALL)

    def matches(facts: Facts) -> bool:
        if facts.identity is None:
            return False
        if facts.identity.partition("/")[2] in exact:
            return True
        return facts.identity.count("/") > 4 and longer.fullmatch(facts.identity) is not None

    return matches


def trust_domains(values: Texts, context: Context) -> Predicate:
    """Compare the trust domain of the identity; a known one stands for all of the mesh's."""
    test = text_test(context.trust_domains.expand(values))
    return lambda facts: facts.trust_domain is not None and test(facts.trust_domain)


Blocks = tuple[tuple[int, frozenset[int]], ...]


def _blocks(values: Texts) -> Blocks:
    """Group addresses and blocks by mask: those with one mask cost one lookup together."""
    groups: dict[int, set[int]] = {}
    for value in values:
        network = parse_network(value)
        if network is not None:
            version, address, mask = network
            mark = IPV6 if version == 6 else 0
            # The mask of an IPv4 block reaches over bit 128, so that it lets no IPv6 address in.
            groups.setdefault(mask | IPV6, set()).add(address | mark)
    return tuple((mask, frozenset(nets)) for mask, nets in groups.items())


def _inside(number: int, blocks: Blocks) -> bool:
    for mask, nets in blocks:  # noqa: SIM110  a generator would double the cost
        if number & mask in nets:
            return True
    return False


def source_ip(values: Texts, _context: Context) -> Predicate:
    """Compare the address of the TCP peer with addresses and blocks."""
    blocks = _blocks(values)
    match blocks:
        case ((mask, nets),):
            return lambda facts: facts.source & mask in nets
        case ((mask, nets), (other, others)):
            return lambda facts: facts.source & mask in nets or facts.source & other in others
        case _:
            return lambda facts: _inside(facts.source, blocks)


def remote_ip(values: Texts, _context: Context) -> Predicate:
    """Compare the original client's address with addresses and blocks."""
    blocks = _blocks(values)
    return lambda facts: _inside(facts.remote, blocks)


def destination_ip(values: Texts, _context: Context) -> Predicate:
    """Compare the workload's address with addresses and blocks."""
    blocks = _blocks(values)
    return lambda facts: _inside(facts.destination, blocks)


def ports(values: Texts, _context: Context) -> Predicate:
    """Compare the workload's port."""
    numbers = frozenset(int(value) for value in values)
    return lambda facts: facts.port in numbers


def sni(values: Texts, _context: Context) -> Predicate:
    """Compare the server name of the TLS handshake; plaintext has none."""
    test = text_test(values)
    return lambda facts: facts.sni is not None and test(facts.sni)


def hosts(values: Texts, _context: Context) -> Predicate:
    """Compare the request's authority, port included, in any case; `*` is mere presence."""
    if "*" in values:
        return lambda facts: facts.host is not None
    test = text_test(value.lower() for value in values)
    return lambda facts: facts.host is not None and test(facts.host)


def methods(values: Texts, _context: Context) -> Predicate:
    """Compare the request's method, case and all."""
    return header_test(":method", values)


def paths(values: Texts, _context: Context) -> Predicate:
    """Compare the normalised path without query; templates match segment by segment."""
    test = text_test(value for value in values if not is_template(value))
    templates = tuple(template_test(value) for value in values if is_template(value))
    if not templates:
        return lambda facts: test(facts.path)
    return lambda facts: test(facts.path) or any(match(facts.path) for match in templates)


def template_test(template: str) -> Test:
    """Compile a path template: `{*}` is one segment, `{**}` any number of them.

    Envoy: an operator stands only for the characters that RFC 3986 allows in a segment.
    """
    segment = r"[a-zA-Z0-9\-._~%!$&'()*+,;:@=]"
    operators = {MATCH_ONE: f"{segment}+", MATCH_ANY: f"(?:{segment}|/)*"}
    pieces = re.split(r"(\{\*\*?\})", template)
    pattern = re.compile("".join(operators.get(piece, re.escape(piece)) for piece in pieces))
    return lambda path: pattern.fullmatch(path) is not None


def header_test(name: str, values: Texts) -> Predicate:
    """Compare a header line by line; `*` is mere presence, an empty value included."""
    if "*" in values:
        return lambda facts: facts.request is not None and bool(facts.request.header_lines(name))
    test = text_test(values)

    def matches(facts: Facts) -> bool:
        if facts.request is None:
            return False
        return any(test(line) for line in facts.request.header_lines(name))

    return matches


def inline_header_test(name: str, values: Texts) -> Predicate:
    """Compare a header as one text with commas: a value may stand at any comma.

    Istio: request.experimental.inline.headers, for headers that hold lists.
    """
    if "*" in values:
        return header_test(name, ("*",))
    alternatives = "|".join(_inline_pattern(value) for value in values)
    pattern = re.compile(f"(?:.*,)?(?:{alternatives})(?:,.*)?", re.DOTALL)

    def matches(facts: Facts) -> bool:
        lines = () if facts.request is None else facts.request.header_lines(name)
        return bool(lines) and pattern.fullmatch(",".join(lines)) is not None

    return matches


def _inline_pattern(value: str) -> str:
    if value.startswith("*"):
        return ".*" + re.escape(value[1:])
    if value.endswith("*"):
        return re.escape(value[:-1]) + ".*"
    return re.escape(value)


def claim_test(path: tuple[str, ...], values: Texts) -> Predicate:
    """Compare a claim of the request's token, or any text in it if it is a list."""
    test = text_test(values)

    def matches(facts: Facts) -> bool:
        return facts.request is not None and any(test(text) for text in facts.request.claim(path))

    return matches


def audiences(values: Texts, _context: Context) -> Predicate:
    """Compare the token's audiences."""
    return claim_test(("aud",), values)


def presenter(values: Texts, _context: Context) -> Predicate:
    """Compare the party that the token was issued to."""
    return claim_test(("azp",), values)


def request_principals(values: Texts, _context: Context) -> Predicate:
    """Compare issuer and subject of the token, each by its half of the value."""
    pairs = tuple(principal_halves(value) for value in values)

    def matches(facts: Facts) -> bool:
        claims = None if facts.request is None else facts.request.claims
        if claims is None:
            return False
        issuer, subject = claims.get("iss"), claims.get("sub")
        if not isinstance(issuer, str) or not isinstance(subject, str):
            return False
        return any(iss(issuer) and sub(subject) for iss, sub in pairs)

    return matches


def principal_halves(value: str) -> tuple[Test, Test]:
    """Split a request principal at its LAST slash into tests of issuer and subject.

    Istio: without a slash the pattern is about one side only, and the other must be there; a
    plain text without slash wants the subject empty.
    """
    issuer, slash, subject = value.rpartition("/")
    if not slash:
        return _one_side(value)
    if value.startswith("*"):
        return text_test((issuer,)), subject.__eq__
    if value.endswith("*"):
        return issuer.__eq__, _beginning(subject[:-1])
    return issuer.__eq__, subject.__eq__


def _one_side(value: str) -> tuple[Test, Test]:
    if value.startswith("*"):
        return bool, text_test((value,))
    if value.endswith("*"):
        return _beginning(value[:-1]), bool
    return value.__eq__, "".__eq__


def _beginning(text: str) -> Test:
    """Test for a beginning; an empty one wants the text not to be empty."""
    return (lambda other: other.startswith(text)) if text else bool


def metadata(_values: Texts, _context: Context) -> Predicate:
    """Stand for the metadata of Envoy filters, of which a request here never has any."""
    return lambda _facts: False


def usable(check: Callable[[str], object], values: Iterable[str]) -> Texts:
    """Return the values that a check does not object to."""
    return tuple(value for value in values if not check(value))


def bad_network(value: str) -> bool:
    """Tell whether a value cannot be compared with addresses."""
    return parse_network(value) is None


def bad_port(value: str) -> bool:
    """Tell whether a value cannot be compared with ports."""
    return port_text(value) is not None
