from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.registration import RegistrationInvalid, Registrations, parse_registrations
from agent.selector import Selector
from mesh.spiffe import SpiffeId, TrustDomain

DOMAIN = TrustDomain("cluster.local")
PATH = Path("/etc/remora/registration.yaml")

FULL = """
entries:
- spiffeId: spiffe://cluster.local/ns/foo/sa/httpbin
  selectors: ["unix:uid:1000", "unix:path:/usr/bin/httpbin"]
  tokenFile: httpbin.token
  federatesWith: [other.example, cluster.local]
  hint: internal
- spiffeId: spiffe://cluster.local/ns/foo/sa/sleep
  selectors: ["unix:uid:1001"]
"""


def parse(text: str) -> Registrations:
    return parse_registrations(text.encode(), PATH, DOMAIN)


def select(*texts: str) -> set[Selector]:
    return {Selector.parse(text) for text in texts}


def identities(registrations: Registrations, *selectors: str) -> list[str]:
    found = registrations.entries_of(select(*selectors))
    return [entry.identity.path.rpartition("/")[2] for entry in found]


def test_every_field() -> None:
    first, second = parse(FULL).entries
    assert first.identity == SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/httpbin")
    assert first.selectors == select("unix:uid:1000", "unix:path:/usr/bin/httpbin")
    assert first.token_file == Path("/etc/remora/httpbin.token")
    assert first.federates_with == {TrustDomain("other.example")}
    assert first.hint == "internal"
    assert second.token_file is None


def test_no_entries_is_a_valid_beginning() -> None:
    assert parse("entries: []").entries == ()


def test_an_entry_needs_all_of_its_selectors() -> None:
    registrations = parse(FULL)
    assert identities(registrations, "unix:uid:1000") == []
    assert identities(registrations, "unix:path:/usr/bin/httpbin") == []
    both = ("unix:uid:1000", "unix:path:/usr/bin/httpbin")
    assert identities(registrations, *both) == ["httpbin"]
    assert identities(registrations, *both, "unix:gid:5") == ["httpbin"]
    assert identities(registrations) == []


def test_only_kinds_in_use_need_be_found_out() -> None:
    assert parse(FULL).kinds == {"unix:uid", "unix:path"}


def entry(**fields: str) -> str:
    facts = {
        "spiffeId": "spiffe://cluster.local/ns/foo/sa/a",
        "selectors": "['unix:uid:1']",
    } | fields
    lines = [f"{name}: {value}" for name, value in facts.items() if value]
    return "entries:\n- " + "\n  ".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "0 documents"),
        ("a: 1\n---\nb: 1", "2 documents"),
        ("{", "registration.yaml:"),
        ("entry: []", "there is no field 'entry' here: did you mean entries?"),
        ("entries: {}", "must be a list"),
        (entry(spiffeId=""), "'spiffeId' is required"),
        (entry(selectors=""), "'selectors' is required"),
        (entry(selectors="[]"), "every process would be this workload"),
        (entry(selectors="[5]"), "must be text"),
        (entry(selectors="['unix:uid:x']"), "a user id"),
        (entry(spiffeId="spiffe://other/ns/foo/sa/a"), "trust domain cluster.local"),
        (entry(spiffeId="spiffe://cluster.local"), "not a workload"),
        (entry(spiffeId="spiffe://cluster.local/spire/agent"), "reserved"),
        (entry(spiffeId="cluster.local/ns/foo"), "not a SPIFFE ID"),
        (entry(federatesWith="['UPPER']"), "only a-z"),
        (entry(hint="x" * 1025), "more than 1024 bytes"),
        (entry(uid="5"), "there is no field 'uid' here"),
    ],
)
def test_malformed(text: str, words: str) -> None:
    with pytest.raises(RegistrationInvalid, match=words.replace("?", r"\?")):
        parse(text)


def test_every_fault_is_told_with_its_line() -> None:
    text = """entries:
- spiffeId: spiffe://cluster.local/ns/foo/sa/a
  selectors: [nonsense]
- spiffeId: spiffe://elsewhere/x
  selectors: ["unix:uid:1"]
"""
    with pytest.raises(RegistrationInvalid) as caught:
        parse(text)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{PATH}:3: entries[0].selectors[0]: ")
    assert second.startswith(f"{PATH}:4: entries[1].spiffeId: ")


def test_one_identity_has_one_token() -> None:
    text = entry() + "\n- spiffeId: spiffe://cluster.local/ns/foo/sa/a\n"
    text += "  selectors: ['unix:uid:2']\n  tokenFile: a.token\n"
    with pytest.raises(RegistrationInvalid, match="another tokenFile"):
        parse(text)


@given(st.one_of(st.text(), st.binary()))
def test_any_bytes_are_entries_or_refused(data: str | bytes) -> None:
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    try:
        parse_registrations(raw, PATH, DOMAIN)
    except RegistrationInvalid:
        return
