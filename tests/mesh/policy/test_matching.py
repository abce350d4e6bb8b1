"""Tables for every item that a rule can look at: what matches, what does not, and absence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.facts import Connection, HttpRequest
from mesh.policy.text_match import text_test
from tests.mesh.policy.builders import SLEEP, authorization, authz, connection, mesh, request


def matches(rule: Any, conn: Connection, http: HttpRequest | None = None, *domains: str) -> bool:
    """Tell whether an ALLOW rule matches; DENY must say the opposite of the same rule."""
    config = mesh(*domains) if domains else mesh()
    allowed = authorization(authz({"rules": [rule]}), config=config).decide(conn, http).allowed
    denying = authz({"action": "DENY", "rules": [rule]})
    denied = not authorization(denying, config=config).decide(conn, http).allowed
    assert allowed == denied
    return allowed


def source(**given: Any) -> dict[str, Any]:
    return {"from": [{"source": given}]}


def operation(**given: Any) -> dict[str, Any]:
    return {"to": [{"operation": given}]}


def when(key: str, *values: str) -> dict[str, Any]:
    return {"when": [{"key": key, "values": list(values)}]}


def when_not(key: str, *values: str) -> dict[str, Any]:
    return {"when": [{"key": key, "notValues": list(values)}]}


STRINGS = [
    ("abc", "abc", True), ("abc", "abcd", False), ("abc", "xabc", False), ("abc", "ABC", False),
    ("abc*", "abc", True), ("abc*", "abcd", True), ("abc*", "ab", False),
    ("*abc", "abc", True), ("*abc", "xabc", True), ("*abc", "abcx", False),
    ("*", "a", True), ("*", "", False), ("a*c", "abc", False), ("a*c", "a*c", True),
    ("*a*", "xa*", True), ("*a*", "xax", False), ("**", "x*", True), ("**", "x", False),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "text", "expected"), STRINGS)
def test_string_patterns(pattern: str, text: str, expected: bool) -> None:
    assert text_test((pattern,))(text) == expected
    assert text_test(("never", pattern))(text) == expected
    assert text_test((pattern, "never*", "*never"))(text) == expected


def test_no_pattern_matches_nothing() -> None:
    assert not text_test(())("a")


@given(
    st.lists(st.text(alphabet="ab*", min_size=1, max_size=3), max_size=4), st.text("ab", max_size=4)
)
def test_many_patterns_are_as_good_as_each_alone(patterns: list[str], text: str) -> None:
    assert text_test(patterns)(text) == any(text_test((one,))(text) for one in patterns)


TD1 = ("td1",)


@pytest.mark.parametrize(
    ("pattern", "peer", "expected"),
    [
        (SLEEP, SLEEP, True),
        (SLEEP, SLEEP + "x", False),
        ("*", SLEEP, True),
        ("cluster.local/ns/foo/*", SLEEP, True),
        ("cluster.local/ns/fo*", "cluster.local/ns/foo/sa/x", True),
        ("*/sa/sleep", SLEEP, True),
        ("*sleep", SLEEP, True),
        ("*leep/", SLEEP, False),
        ("spiffe://" + SLEEP, SLEEP, False),
        ("spiffe://*", SLEEP, False),
        ("*://" + SLEEP, SLEEP, False),
        ("*luster.local/ns/foo/sa/sleep", SLEEP, True),
        ("cluster.local/ns/*/sa/sleep", SLEEP, False),
        ("*.sleep", SLEEP, False),  # A dot is a dot.
        ("CLUSTER.local/ns/foo/sa/sleep", SLEEP, False),
    ],
)
def test_principals(pattern: str, peer: str, expected: bool) -> None:
    assert matches(source(principals=[pattern]), connection(peer)) == expected
    assert matches(source(notPrincipals=[pattern]), connection(peer)) != expected
    assert matches(when("source.principal", pattern), connection(peer)) == expected
    assert matches(when_not("source.principal", pattern), connection(peer)) != expected


@pytest.mark.parametrize(
    ("domains", "pattern", "peer", "expected"),
    [
        (("td1",), "cluster.local/ns/foo/sa/bar", "td1/ns/foo/sa/bar", True),
        (("td1",), "cluster.local/ns/foo/sa/bar", "cluster.local/ns/foo/sa/bar", False),
        (("td1", "td2"), "td1/ns/foo/sa/bar", "td2/ns/foo/sa/bar", True),
        (("td1", "td2"), "td2/ns/foo/sa/*", "td1/ns/foo/sa/x", True),
        (("td1", "td2"), "td3/ns/foo/sa/bar", "td3/ns/foo/sa/bar", True),
        (("td1", "td2"), "td3/ns/foo/sa/bar", "td1/ns/foo/sa/bar", False),
        (("td1", "td2"), "td1/ns/foo/*", "td2/ns/foo/sa/bar", False),
    ],
)
def test_trust_domain_aliases_count_for_principals(
    domains: tuple[str, ...], pattern: str, peer: str, expected: bool
) -> None:
    assert matches(source(principals=[pattern]), connection(peer), None, *domains) == expected
    assert matches(source(notPrincipals=[pattern]), connection(peer), None, *domains) != expected
    rule = when("source.principal", pattern)
    assert matches(rule, connection(peer), None, *domains) == expected
    rule = when_not("source.principal", pattern)
    assert matches(rule, connection(peer), None, *domains) != expected


@pytest.mark.parametrize(
    ("pattern", "peer", "expected"),
    [
        ("foo", SLEEP, True),
        ("fo", SLEEP, False),
        ("foo", "other/ns/foo/sa/x", True),
        ("foo", "td/ns/foo", False),
        ("fo*", SLEEP, True),
        ("*oo", SLEEP, True),
        ("f*o", SLEEP, True),
        ("*", SLEEP, True),
        ("*o*", SLEEP, True),
        ("*x*", SLEEP, False),
        ("f.o", SLEEP, False),
        ("fo*sleep", SLEEP, False),  # The pattern must be followed by a slash.
        ("fo*sa", SLEEP, True),  # Every star is any text, slashes too.
        ("a*a", "td/ns/a/sa/x", True),  # `a/sa` has both.
        ("a*b*c", "td/ns/a1b2c/sa/x", True),
        ("a*b*c", "td/ns/a1c2b/sa/x", False),
        ("foo", "ns/foo/sa/x", True),  # A trust domain named ns.
        ("sa", "td/ns/ns/sa/x", True),
        ("foo", "td/x/y/ns/foo/sa/z", True),
    ],
)
def test_namespaces(pattern: str, peer: str, expected: bool) -> None:
    assert matches(source(namespaces=[pattern]), connection(peer)) == expected
    assert matches(source(namespaces=["never", pattern]), connection(peer)) == expected
    assert matches(source(notNamespaces=[pattern]), connection(peer)) != expected
    assert matches(when("source.namespace", pattern), connection(peer)) == expected
    assert matches(when_not("source.namespace", pattern), connection(peer)) != expected


@pytest.mark.parametrize(
    ("account", "peer", "expected"),
    [
        ("foo/sleep", SLEEP, True),
        ("sleep", SLEEP, True),  # A bare name is of the policy's own namespace, foo.
        ("sleep", "cluster.local/ns/bar/sa/sleep", False),
        ("bar/sleep", SLEEP, False),
        ("foo/slee", SLEEP, False),
        ("foo/sleep", "any.td/ns/foo/sa/sleep", True),
        ("foo/sleep", "td/region/eu/ns/foo/sa/sleep", True),
        ("foo/sleep", "td/ns/foo/pod/x/sa/sleep", True),
        ("foo/sleep", "td/ns/foo/sa/sleep/pod/x", True),
        ("foo/sleep", "td/ns/foo/sa/sleep-x", False),
        ("foo/sleep", "td/ns/foo-x/sa/sleep", False),
        ("foo/sleep", "ns/foo/sa/sleep", False),
        ("foo/sle.p", SLEEP, False),
    ],
)
def test_service_accounts(account: str, peer: str, expected: bool) -> None:
    assert matches(source(serviceAccounts=[account]), connection(peer)) == expected
    assert matches(source(serviceAccounts=["a/b", account]), connection(peer)) == expected
    assert matches(source(notServiceAccounts=[account]), connection(peer)) != expected
    assert matches(when("source.serviceAccount", account), connection(peer)) == expected
    assert matches(when_not("source.serviceAccount", account), connection(peer)) != expected


def test_a_bare_account_of_a_root_policy_is_of_the_root_namespace() -> None:
    policy = authz({"rules": [source(serviceAccounts=["sleep"])]}, namespace="istio-system")
    decide = authorization(policy).decide
    assert decide(connection("cluster.local/ns/istio-system/sa/sleep")).allowed
    assert not decide(connection(SLEEP)).allowed


@pytest.mark.parametrize(
    ("pattern", "peer", "expected"),
    [
        ("td1", "td1/ns/a/sa/b", True),
        ("td1", "td2/ns/a/sa/b", True),
        ("td2", "td1/ns/a/sa/b", True),
        ("td1", "td3/ns/a/sa/b", False),
        ("td3", "td3/ns/a/sa/b", True),
        ("td*", "td3/ns/a/sa/b", True),
        ("*3", "td3/ns/a/sa/b", True),
        ("*", "x/ns/a/sa/b", True),
        ("cluster.local", "td1/ns/a/sa/b", False),
    ],
)
def test_trust_domains(pattern: str, peer: str, expected: bool) -> None:
    domains = ("td1", "td2")
    conn = connection(peer)
    assert matches(source(trustDomains=[pattern]), conn, None, *domains) == expected
    assert matches(source(notTrustDomains=[pattern]), conn, None, *domains) != expected
    assert matches(when("source.trustDomain", pattern), conn, None, *domains) == expected
    assert matches(when_not("source.trustDomain", pattern), conn, None, *domains) != expected


IDENTITY_ITEMS = ["principals", "namespaces", "serviceAccounts", "trustDomains"]


@pytest.mark.parametrize("item", IDENTITY_ITEMS)
def test_plaintext_matches_nothing_and_every_negation(item: str) -> None:
    plaintext = connection(None)
    value = "sleep" if item == "serviceAccounts" else "*"
    assert not matches(source(**{item: [value]}), plaintext)
    assert matches(source(**{f"not{item[0].upper()}{item[1:]}": [value]}), plaintext)
    key = f"source.{item.removesuffix('s')}"
    assert not matches(when(key, value), plaintext)
    assert matches(when_not(key, value), plaintext)


def test_how_to_forbid_plaintext() -> None:
    policy = authz({"action": "DENY", "rules": [source(notPrincipals=["*"])]})
    assert not authorization(policy).decide(connection(None)).allowed
    assert authorization(policy).decide(connection()).allowed


@pytest.mark.parametrize(
    ("block", "address", "expected"),
    [
        ("10.1.0.1", "10.1.0.1", True), ("10.1.0.1", "10.1.0.2", False),
        ("10.1.0.0/16", "10.1.255.1", True), ("10.1.0.0/16", "10.2.0.1", False),
        ("10.1.2.3/16", "10.1.9.9", True),  # Host bits are tolerated.
        ("0.0.0.0/0", "1.2.3.4", True), ("0.0.0.0/0", "::1", False), ("::/0", "1.2.3.4", False),
        ("::/0", "::1", True), ("2001:db8::/32", "2001:db8:1::", True),
        ("2001:db8::/32", "2001:db9::", False), ("::1", "::1", True), ("0.0.0.1", "::1", False),
        ("::1", "0.0.0.1", False), ("10.1.0.1", "::ffff:10.1.0.1", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("item", "fact"),
    [
        ("ipBlocks", "source_ip"), ("remoteIpBlocks", "remote_ip"),
        ("source.ip", "source_ip"), ("remote.ip", "remote_ip"),
        ("destination.ip", "destination_ip"),
    ],
)  # fmt: skip
def test_addresses(block: str, address: str, expected: bool, item: str, fact: str) -> None:
    conn = connection(**{fact: address})
    others = ["192.0.2.7", "198.51.100.0/24", "203.0.113.0/25"]
    for blocks in ([block], [others[0], block], [*others, block]):
        if "." in item:
            assert matches(when(item, *blocks), conn) == expected
            assert matches(when_not(item, *blocks), conn) != expected
        else:
            assert matches(source(**{item: blocks}), conn) == expected
            negated = f"not{item[0].upper()}{item[1:]}"
            assert matches(source(**{negated: blocks}), conn) != expected


def test_an_unknown_original_client_is_the_tcp_peer() -> None:
    rule = source(remoteIpBlocks=["10.1.0.1"])
    assert matches(rule, connection(source_ip="10.1.0.1"))
    assert not matches(rule, connection(source_ip="10.1.0.1", remote_ip="10.9.9.9"))


@pytest.mark.parametrize(("port", "expected"), [("80", True), ("8080", False), ("080", True)])
def test_ports(port: str, expected: bool) -> None:
    assert matches(operation(ports=[port]), connection(port=80)) == expected
    assert matches(operation(notPorts=[port]), connection(port=80)) != expected
    assert matches(when("destination.port", port), connection(port=80)) == expected
    assert matches(when_not("destination.port", port), connection(port=80)) != expected


@pytest.mark.parametrize(
    ("pattern", "sni", "expected"),
    [
        ("a.b", "a.b", True), ("*.b", "a.b", True), ("a.*", "a.b", True), ("*", "a.b", True),
        ("a.b", "A.b", False), ("*", None, False), ("a.b", None, False),
    ],
)  # fmt: skip
def test_server_names(pattern: str, sni: str | None, expected: bool) -> None:
    assert matches(when("connection.sni", pattern), connection(sni=sni)) == expected
    assert matches(when_not("connection.sni", pattern), connection(sni=sni)) != expected


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("example.com", "example.com", True), ("Example.COM", "eXample.com", True),
        ("example.com", "example.com:8080", False), ("example.com:*", "example.com:8080", True),
        ("*.com", "a.COM", True), ("*", "a", True), ("*", "", True), ("*", None, False),
        ("a", None, False),
    ],
)  # fmt: skip
def test_hosts(pattern: str, host: str | None, expected: bool) -> None:
    http = request(host=host)
    assert matches(operation(hosts=[pattern]), connection(), http) == expected
    assert matches(operation(notHosts=[pattern]), connection(), http) != expected


@pytest.mark.parametrize(
    ("pattern", "method", "expected"),
    [
        ("GET", "GET", True), ("get", "GET", False), ("*", "GET", True), ("G*", "GET", True),
        ("*T", "GET", True), ("POST", "GET", False),
    ],
)  # fmt: skip
def test_methods(pattern: str, method: str, expected: bool) -> None:
    http = request(method)
    assert matches(operation(methods=[pattern]), connection(), http) == expected
    assert matches(operation(notMethods=[pattern]), connection(), http) != expected


@pytest.mark.parametrize(
    ("pattern", "target", "expected"),
    [
        ("/a", "/a", True), ("/a", "/a?x=1", True), ("/a", "/A", False), ("/a", "/a/", False),
        ("/a*", "/abc", True), ("*/c", "/b/c", True), ("*/c", "/b?x=/c", False), ("*", "/", True),
        ("/a/*/b", "/a/x/b", False), ("/a/*/b", "/a/*/b", True),
        ("/a/{*}", "/a/x", True), ("/a/{*}", "/a/", False), ("/a/{*}", "/a", False),
        ("/a/{*}", "/a/x/y", False), ("/a/{*}", "/a/x?y=/z", True),
        ("/a/{**}", "/a", False), ("/a/{**}", "/a/", True), ("/a/{**}", "/a/x/y", True),
        ("/a/{**}/b", "/a/b", False), ("/a/{**}/b", "/a//b", True), ("/a/{**}/b", "/a/x/b", True),
        ("/a/{**}/b", "/a/x/y/b", True), ("/a/{**}/b", "/a/x/y/c", False),
        ("/{*}/x/{**}", "/a/x/", True), ("/{*}/x", "/a.b/x", True), ("/{*}.x", "/a.x", True),
        ("/{*}", "/a%20b", True), ("/{*}", "/a*b", True), ("/{*}", '/a"b', False),
        ("/{**}", "/", True), ("/x.y/{*}", "/xzy/a", False),
    ],
)  # fmt: skip
def test_paths(pattern: str, target: str, expected: bool) -> None:
    http = request(target=target)
    assert matches(operation(paths=[pattern]), connection(), http) == expected
    assert matches(operation(paths=["/never", "/never/{*}", pattern]), connection(), http) == (
        expected
    )
    assert matches(operation(notPaths=[pattern]), connection(), http) != expected


@pytest.mark.parametrize(
    ("name", "pattern", "lines", "expected"),
    [
        ("x-foo", "bar", [("X-Foo", "bar")], True),
        ("X-FOO", "bar", [("x-foo", "bar")], True),
        ("x-foo", "bar", [("x-foo", "Bar")], False),
        ("x-foo", "b*", [("x-foo", "bar")], True),
        ("x-foo", "*r", [("x-foo", "bar")], True),
        ("x-foo", "*", [("x-foo", "")], True),
        ("x-foo", "*", [], False),
        ("x-foo", "bar", [], False),
        ("x-foo", "bar", [("x-foo", "a"), ("x-foo", "bar")], True),
        ("x-foo", "a,bar", [("x-foo", "a"), ("x-foo", "bar")], False),
        ("x-foo", "bar", [("x-foo", "a,bar")], False),
        (":method", "GET", [], True),
        (":authority", "httpbin.foo", [], True),
        ("Host", "httpbin.foo", [], True),
        (":path", "/", [], True),
        (":scheme", "http", [], True),
    ],
)
def test_headers(name: str, pattern: str, lines: Any, expected: bool) -> None:
    http = request(headers=tuple(lines))
    key = f"request.headers[{name}]"
    assert matches(when(key, pattern), connection(), http) == expected
    assert matches(when(key, "never", pattern), connection(), http) == expected
    assert matches(when_not(key, pattern), connection(), http) != expected


@pytest.mark.parametrize(
    ("pattern", "lines", "expected"),
    [
        ("b", ["a,b,c"], True), ("b", ["a", "b"], True), ("b", ["b"], True), ("b", ["ab"], False),
        ("b*", ["a,bx"], True), ("*b", ["xb,c"], True), ("*", [""], True), ("*", [], False),
        ("b", [], False),
    ],
)  # fmt: skip
def test_inline_headers(pattern: str, lines: list[str], expected: bool) -> None:
    http = request(headers=tuple(("x-foo", line) for line in lines))
    key = "request.experimental.inline.headers[x-Foo]"
    assert matches(when(key, pattern), connection(), http) == expected
    assert matches(when_not(key, pattern), connection(), http) != expected


@pytest.mark.parametrize(
    ("pattern", "issuer", "subject", "expected"),
    [
        ("*", "foo", "bar", True), ("*", "foo", None, False), ("*", "", "bar", False),
        ("*", "foo", "", False), ("*", 1, "bar", False),
        ("A/B", "A", "B", True), ("A/B", "A", "Bx", False), ("A/B", "xA", "B", False),
        ("A/*", "A", "x", True), ("A/*", "A", "", False), ("A/*", "Ax", "x", False),
        ("A/B*", "A", "Bx", True), ("A/B*", "A", "xB", False), ("A/*B*", "A", "*Bx", True),
        ("A/*B*", "A", "xB*", False),
        ("*/B", "x", "B", True), ("*/B", "", "B", False), ("*/B", "x", "xB", False),
        ("*A/B", "xA", "B", True), ("*A/B", "Ax", "B", False), ("*A/B", "xA", "xB", False),
        ("*B", "x", "yB", True), ("*B", "xB", "y", False), ("*B", "", "yB", False),
        ("A*", "Ax", "y", True), ("A*", "Ax", "", False), ("A*", "xA", "y", False),
        ("A", "A", "", True), ("A", "A", "x", False), ("A", "A", None, False),
        ("*/*", "x", "*", True), ("*/*", "x", "y", False),
        ("https://a.b/c/sub", "https://a.b/c", "sub", True),
        ("https://a.b/c/sub", "https://a.b", "c/sub", False),
    ],
)  # fmt: skip
def test_request_principals(pattern: str, issuer: Any, subject: Any, expected: bool) -> None:
    claims = {"iss": issuer} | ({} if subject is None else {"sub": subject})
    http = request(claims=claims)
    assert matches(source(requestPrincipals=[pattern]), connection(), http) == expected
    assert matches(source(notRequestPrincipals=[pattern]), connection(), http) != expected
    assert matches(when("request.auth.principal", pattern), connection(), http) == expected
    assert matches(when_not("request.auth.principal", pattern), connection(), http) != expected


def test_request_principals_are_never_expanded() -> None:
    http = request(claims={"iss": "td2", "sub": "x"})
    assert not matches(source(requestPrincipals=["td1/x"]), connection(), http, "td1", "td2")


@pytest.mark.parametrize(
    ("key", "pattern", "claims", "expected"),
    [
        ("claims[a]", "x", {"a": "x"}, True),
        ("claims[a]", "x", {"a": ["y", "x"]}, True),
        ("claims[a]", "x", {"a": ["y", 1, None]}, False),
        ("claims[a]", "1", {"a": 1}, False),
        ("claims[a]", "true", {"a": True}, False),
        ("claims[a]", "*", {"a": ""}, False),
        ("claims[a]", "*", {"a": ["", "y"]}, True),
        ("claims[a]", "*", {"a": {"b": "c"}}, False),
        ("claims[a]", "x*", {"a": "xy"}, True),
        ("claims[a]", "*y", {"a": ["xy"]}, True),
        ("claims[a]", "x", {}, False),
        ("claims[a]", "x", None, False),
        ("claims[a][b]", "x", {"a": {"b": "x"}}, True),
        ("claims[a][b]", "x", {"a": {"b": ["x"]}}, True),
        ("claims[a][b]", "x", {"a": "x"}, False),
        ("claims[a][b]", "x", {"a": [{"b": "x"}]}, False),
        ("claims[a][b][c]", "x", {"a": {"b": {"c": "x"}}}, True),
        ("claims[a[b]]", "x", {"a[b]": "x"}, True),
        ("claims[a]b[c]", "x", {"a]b[c": "x"}, True),
        ("claims[a.b]", "x", {"a.b": "x"}, True),
        ("claims[scope]", "b", {"scope": "a b c"}, True),
        ("claims[scope]", "a b", {"scope": "a b"}, False),
        ("claims[permission]", "b", {"permission": "a b"}, True),
        ("claims[scope]", "a b", {"scope": ["a b"]}, True),
        ("claims[other]", "b", {"other": "a b"}, False),
        ("claims[roles]", "b", {"roles": "a  b"}, True),
        ("claims[x][scope]", "a b", {"x": {"scope": "a b"}}, True),
        ("audiences", "x", {"aud": "x"}, True),
        ("audiences", "x", {"aud": ["y", "x"]}, True),
        ("audiences", "x", {"azp": "x"}, False),
        ("presenter", "x", {"azp": "x"}, True),
        ("presenter", "x", {"aud": "x"}, False),
        ("presenter", "*", None, False),
    ],
)
def test_claims(key: str, pattern: str, claims: Any, expected: bool) -> None:
    http = request(claims=claims, split=("roles",))
    assert matches(when(f"request.auth.{key}", pattern), connection(), http) == expected
    assert matches(when_not(f"request.auth.{key}", pattern), connection(), http) != expected


def test_metadata_of_envoy_filters_is_never_there() -> None:
    key = "experimental.envoy.filters.a.b[c]"
    assert not matches(when(key, "*"), connection(), request())
    assert matches(when_not(key, "x"), connection())


def test_fields_are_a_conjunction_values_and_entries_a_choice() -> None:
    rule = {
        "from": [
            {"source": {"namespaces": ["bar", "foo"], "ipBlocks": ["10.1.0.0/16"]}},
            {"source": {"principals": ["x/y"]}},
            {"source": {"namespaces": ["baz"], "notIpBlocks": ["10.9.0.0/16"]}},
        ],
        "to": [{"operation": {"ports": ["80"]}}, {"operation": {"ports": ["81"]}}],
        "when": [
            {"key": "connection.sni", "values": ["a*"], "notValues": ["ab*"]},
            {"key": "destination.ip", "values": ["10.3.0.1"]},
        ],
    }
    good: dict[str, Any] = {"source_ip": "10.1.2.3", "sni": "ac"}
    assert matches(rule, connection(**good))
    assert matches(rule, connection(**good, port=81))
    assert matches(rule, connection("x/ns/baz/sa/y", sni="ac"))
    wrongs: list[dict[str, Any]] = [
        {"source_ip": "10.2.0.1"}, {"port": 82}, {"sni": "abc"}, {"sni": None},
        {"destination_ip": "10.4.0.1"},
    ]  # fmt: skip
    for wrong in wrongs:
        assert not matches(rule, connection(**{**good, **wrong}))
    assert not matches(rule, connection("x/ns/baz/sa/y", sni="ac", source_ip="10.9.1.1"))
    assert not matches(rule, connection(None, **good))


@pytest.mark.parametrize("conn", [connection(), connection(None)])
@pytest.mark.parametrize("http", [None, request()])
def test_an_empty_rule_matches_everything(conn: Connection, http: HttpRequest | None) -> None:
    assert matches({}, conn, http)


@pytest.mark.parametrize(
    "rule",
    [
        source(ipBlocks=["not an address"]),
        operation(ports=["http"]),
        when("destination.port", "80-90"),
        when("request.headersX[y]", "z"),
        when("nonsense", "z"),
    ],
)
def test_what_cannot_be_compared_allows_nothing_and_denies_more(rule: Any) -> None:
    assert not authorization(authz({"rules": [rule]})).decide(connection(), request()).allowed
    denying = authz({"action": "DENY", "rules": [rule]})
    assert not authorization(denying).decide(connection(), request()).allowed


def test_bad_values_beside_good_ones_are_dropped_from_a_deny_rule() -> None:
    rule = source(ipBlocks=["not an address", "10.1.0.1"])
    decide = authorization(authz({"action": "DENY", "rules": [rule]})).decide
    assert not decide(connection(source_ip="10.1.0.1")).allowed
    assert decide(connection(source_ip="10.1.0.2")).allowed
