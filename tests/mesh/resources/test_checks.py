from __future__ import annotations

import pytest

from mesh.resources import checks


@pytest.mark.parametrize("host", ["a.b", "*", "*.a.b", "*-x.b", "*x", "a.b.", "A.b", "x1.y2"])
def test_good_wildcard_hosts(host: str) -> None:
    assert checks.wildcard_host(host) is None


@pytest.mark.parametrize(
    "host", ["", "a.*.b", "a*", "**", "-a.b", "a-.b", "a..b", "a.1", "a" * 64, "a." * 128, "a_b"]
)
def test_bad_wildcard_hosts(host: str) -> None:
    assert checks.wildcard_host(host)


@pytest.mark.parametrize("host", ["*", "*.a.b", "", "a.b.80", "a b", "."])
def test_bad_full_hosts(host: str) -> None:
    assert checks.fqdn(host)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("1.2.3.4", (4, 0x01020304, 0xFFFFFFFF)),
        ("10.1.2.3/8", (4, 0x0A000000, 0xFF000000)),
        ("0.0.0.0/0", (4, 0, 0)),
        ("::1", (6, 1, (1 << 128) - 1)),
        ("2001:db8::/32", (6, 0x20010DB8 << 96, 0xFFFFFFFF << 96)),
    ],
)
def test_networks(text: str, network: checks.Network) -> None:
    assert checks.parse_network(text) == network


@pytest.mark.parametrize(
    "text",
    [
        "", "1.2.3", "1.2.3.4/33", "1.2.3.4/", "1.2.3.4/08", "1.2.3.4/+8", "1.2.3.4/255.0.0.0",
        "01.2.3.4", "a.b.c.d", "::1/129", "fe80::1%eth0/64", " 1.2.3.4", "1.2.3.4/8/8", "*",
    ],
)  # fmt: skip
def test_texts_that_are_no_networks(text: str) -> None:
    assert checks.parse_network(text) is None


@pytest.mark.parametrize("port", ["0", "80", "65535", "0080"])
def test_good_port_texts(port: str) -> None:
    assert checks.port_text(port) is None


@pytest.mark.parametrize("port", ["", "-1", "+1", "65536", "80-90", "*", "http", "٨٠", "1" * 5000])
def test_bad_port_texts(port: str) -> None:
    assert checks.port_text(port)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("5s", 5 * 10**9), ("1m30s", 90 * 10**9), ("1.5s", 1_500_000_000), ("250ms", 250_000_000),
        ("1h", 3600 * 10**9), ("1us", 1000), ("10ns", 10), ("-5s", -5 * 10**9), (".5s", 5 * 10**8),
        ("5", None), ("", None), ("apple", None), ("s", None), ("5 s", None), ("5d", None),
    ],
)  # fmt: skip
def test_go_durations(text: str, nanoseconds: int | None) -> None:
    assert checks.go_duration(text) == nanoseconds


@pytest.mark.parametrize("text", ["1ms", "5s", "1.5s", "1000us"])
def test_good_positive_durations(text: str) -> None:
    assert checks.positive_duration(text) is None


@pytest.mark.parametrize("text", ["0s", "-5s", "999us", "1500us", "apple", "5"])
def test_bad_positive_durations(text: str) -> None:
    assert checks.positive_duration(text)


@pytest.mark.parametrize("text", ["sa", "ns/sa"])
def test_good_service_accounts(text: str) -> None:
    assert checks.service_account(text) is None


@pytest.mark.parametrize("text", ["", "/sa", "ns/", "a/b/c", "*", "ns/*", "a" * 321])
def test_bad_service_accounts(text: str) -> None:
    assert checks.service_account(text)


@pytest.mark.parametrize("text", ["td", "*", "*td", "td*", "a.b"])
def test_good_trust_domain_patterns(text: str) -> None:
    assert checks.trust_domain_pattern(text) is None


@pytest.mark.parametrize("text", ["", "*td*", "t*d", "**", "spiffe://td", "td/ns"])
def test_bad_trust_domain_patterns(text: str) -> None:
    assert checks.trust_domain_pattern(text)


@pytest.mark.parametrize(
    "path",
    [
        "/a", "/a/*", "*/a", "*", "/a/*/b", "/foo/**", "/x?y", "/{*}", "/a/{**}", "/{**}/b",
        "/a/{*}/b/{**}/c", "/a/{**}/", "/{*}/{*}", "/-._~%!$&'()+,;:@=/{*}",
    ],
)  # fmt: skip
def test_good_path_patterns(path: str) -> None:
    assert checks.path_pattern(path) is None


@pytest.mark.parametrize(
    "path",
    [
        "/{a}", "/{", "/a}", "/{**}/{*}", "/{**}/{**}", "/a{*}", "/{*}a", "/{*}//b", "/{*}/*",
        "/{*}/a?b", "/{*}/ä", "/{***}", "/{}", "/*{*}",
    ],
)  # fmt: skip
def test_bad_path_patterns(path: str) -> None:
    assert checks.path_pattern(path)


@pytest.mark.parametrize(
    "url", ["http://a", "https://a.b:1234", "http://a:80/x?y", "https://[::1]:8/x", "HTTPS://a"]
)
def test_good_key_set_urls(url: str) -> None:
    assert checks.http_url(url) is None


@pytest.mark.parametrize(
    "url",
    ["", "a.b", "tcp://a", "http://a:x", "http://[::1", "hTPp\\\\\\blah", "://a", "ftp://a:1"],
)
def test_bad_key_set_urls(url: str) -> None:
    assert checks.http_url(url)


@pytest.mark.parametrize("name", ["a", "a.b", "a-1.b"])
def test_good_names(name: str) -> None:
    assert checks.object_name(name) is None


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a.", "a" * 254, "a/b"])
def test_bad_names(name: str) -> None:
    assert checks.object_name(name)


@pytest.mark.parametrize(
    ("key", "value"), [("app", "x"), ("a.b/c_d", ""), ("version", "v1.0"), ("A", "B_c")]
)
def test_good_labels(key: str, value: str) -> None:
    assert checks.label_pair(key, value) is None


@pytest.mark.parametrize(
    ("key", "value"), [("", "x"), ("a b", "x"), ("A_/b", "x"), ("a", "x y"), ("a", "x" * 64)]
)
def test_bad_labels(key: str, value: str) -> None:
    assert checks.label_pair(key, value)


@pytest.mark.parametrize("name", ["cluster.local", "td1", "a.b."])
def test_good_trust_domains(name: str) -> None:
    assert checks.trust_domain(name) is None


@pytest.mark.parametrize("name", ["", "a..b", "a_b", "spiffe://a"])
def test_bad_trust_domains(name: str) -> None:
    assert checks.trust_domain(name)
