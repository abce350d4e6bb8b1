"""SPIFFE-ID, section 2, rule by rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.spiffe import (
    PATH_CHARACTERS,
    TRUST_DOMAIN_CHARACTERS,
    InvalidSpiffeId,
    ServiceAccount,
    SpiffeId,
    TrustDomain,
    service_account_id,
)

GOOD = [
    ("spiffe://example.org", "example.org", ""),
    ("spiffe://example.org/service", "example.org", "/service"),
    ("spiffe://example.org/a/b.c/d-e_F", "example.org", "/a/b.c/d-e_F"),
    ("spiffe://a..b/x", "a..b", "/x"),
    ("spiffe://.a/x", ".a", "/x"),
    ("spiffe://-a/x", "-a", "/x"),
    ("spiffe://1.2.3.4/x", "1.2.3.4", "/x"),
    ("spiffe://td/.x/..x/...", "td", "/.x/..x/..."),
    ("spiffe://" + "a" * 255, "a" * 255, ""),
    ("spiffe://t/" + "p" * 2037, "t", "/" + "p" * 2037),
]

BAD = [
    "",
    "spiffe",
    "spiffe://",
    "spiffe:///path",
    "Spiffe://example.org/x",
    "http://example.org/x",
    "spiffe:/example.org/x",
    "spiffe://Example.org/x",
    "spiffe://example.org/",
    "spiffe://example.org//x",
    "spiffe://example.org/x/",
    "spiffe://example.org/./x",
    "spiffe://example.org/../x",
    "spiffe://example.org/x?",
    "spiffe://example.org/x?q=1",
    "spiffe://example.org/x#",
    "spiffe://example.org:80/x",
    "spiffe://user@example.org/x",
    "spiffe://@example.org/x",
    "spiffe://[::1]/x",
    "spiffe://exa%6dple.org/x",
    "spiffe://example.org/%41",
    "spiffe://example.org/x\n",
    "spiffe://example.org\n/x",
    "spiffe://example.org/x\t",
    "spiffe://example.org/x\0",
    "spiffe://\u212aelvin/x",
    "spiffe://example.org/\u00e9",
    " spiffe://example.org/x",
    "spiffe://" + "a" * 256,
    "spiffe://t/" + "p" * 2038,
]


@pytest.mark.parametrize(("text", "trust_domain", "path"), GOOD)
def test_a_good_id_is_taken_apart_and_put_together(text: str, trust_domain: str, path: str) -> None:
    parsed = SpiffeId.parse(text)
    assert (parsed.trust_domain.name, parsed.path) == (trust_domain, path)
    assert str(parsed) == text


@pytest.mark.parametrize("text", BAD)
def test_a_bad_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpiffeId):
        SpiffeId.parse(text)


@pytest.mark.parametrize("code", range(0x180))
def test_every_character_is_judged_by_the_standards_lists(code: int) -> None:
    character = chr(code)
    assert _parses(f"spiffe://a{character}b/p") == (
        character in TRUST_DOMAIN_CHARACTERS or character == "/"
    )
    assert _parses(f"spiffe://td/a{character}b") == (
        character in PATH_CHARACTERS or character == "/"
    )


@given(st.text())
def test_any_text_parses_to_itself_or_is_refused(text: str) -> None:
    for candidate in (text, "spiffe://" + text):
        try:
            assert str(SpiffeId.parse(candidate)) == candidate
        except InvalidSpiffeId:
            continue


def _parses(text: str) -> bool:
    try:
        SpiffeId.parse(text)
    except InvalidSpiffeId:
        return False
    return True


def test_membership_is_equality_of_the_trust_domain() -> None:
    member = SpiffeId.parse("spiffe://domain.test/foo")
    assert member.member_of(TrustDomain("domain.test"))
    for other in ("domain.test.evil", "domain", "test", "omain.test"):
        assert not member.member_of(TrustDomain(other))


def test_ids_are_values() -> None:
    one = SpiffeId.parse("spiffe://td/a")
    assert one == SpiffeId(TrustDomain("td"), "/a")
    assert len({one, SpiffeId.parse("spiffe://td/a"), SpiffeId.parse("spiffe://td/A")}) == 2
    as_text: object = "spiffe://td/a"
    assert one != as_text


@pytest.mark.parametrize(
    "text", ["cluster.local", "spiffe://cluster.local/ns/x", "spiffe://cluster.local"]
)
def test_a_trust_domain_is_taken_from_a_name_or_a_whole_id(text: str) -> None:
    assert TrustDomain.parse(text) == TrustDomain("cluster.local")
    assert TrustDomain.parse(text).id == "spiffe://cluster.local"


@pytest.mark.parametrize(
    "text", ["", "a/b", "A", "a b", "spiffe://", "spiffe://td/", "spiffe:///p", "a:1", "td\n"]
)
def test_a_bad_trust_domain_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpiffeId):
        TrustDomain.parse(text)


def test_segments_are_not_split_on_slashes() -> None:
    domain = TrustDomain("td")
    assert str(SpiffeId.from_segments(domain, "a", "b")) == "spiffe://td/a/b"
    assert str(SpiffeId.from_segments(domain)) == "spiffe://td"
    for bad in ("a/b", "", ".", "..", "a,b"):
        with pytest.raises(InvalidSpiffeId):
            SpiffeId.from_segments(domain, "x", bad)


@pytest.mark.parametrize(
    ("text", "account"),
    [
        ("spiffe://td/ns/foo/sa/bar", ServiceAccount("foo", "bar")),
        ("spiffe://td/ns/foo/sa/bar/baz", None),
        ("spiffe://td/ns/foo/sb/bar", None),
        ("spiffe://td/sa/foo/ns/bar", None),
        ("spiffe://td/ns/foo/sa", None),
        ("spiffe://td", None),
    ],
)
def test_istio_identities_have_exactly_this_shape(
    text: str, account: ServiceAccount | None
) -> None:
    assert SpiffeId.parse(text).service_account == account


def test_an_account_makes_an_identity_and_back() -> None:
    account = ServiceAccount.parse("foo/httpbin")
    identity = service_account_id(TrustDomain("cluster.local"), account)
    assert str(identity) == "spiffe://cluster.local/ns/foo/sa/httpbin"
    assert identity.service_account == account
    assert str(account) == "foo/httpbin"


@pytest.mark.parametrize("text", ["", "foo", "foo/", "/bar", "a/b/c", "a/..", "a b/c", "ä/b"])
def test_a_bad_account_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpiffeId):
        ServiceAccount.parse(text)


def test_the_complaint_names_the_culprit() -> None:
    with pytest.raises(InvalidSpiffeId, match=r"contains ':'"):
        SpiffeId.parse("spiffe://example.org:80/x")
    with pytest.raises(InvalidSpiffeId, match="256 bytes, more than the 255"):
        TrustDomain("a" * 256)
