from __future__ import annotations

import pytest

from mesh.policy.trust_domains import TrustDomains
from mesh.resources.mesh_config import MeshConfig


def domains(*names: str) -> TrustDomains:
    return TrustDomains(names)


def test_names_are_the_meshs_own_first_without_repetition_or_emptiness() -> None:
    config = MeshConfig(trust_domain="td1", trust_domain_aliases=("td2", "", "td1", "td2"))
    assert TrustDomains.of(config).names == ("td1", "td2")


@pytest.mark.parametrize(
    ("uri", "accepted"),
    [
        ("spiffe://td1/ns/a/sa/b", True), ("spiffe://td2/x", True), ("spiffe://td1/", True),
        ("spiffe://td1", False), ("spiffe://td1x/ns/a/sa/b", False), ("spiffe://xtd1/a", False),
        ("https://td1/a", False), ("td1/ns/a/sa/b", False), ("", False),
        ("spiffe://cluster.local/ns/a/sa/b", False),
    ],
)  # fmt: skip
def test_a_client_certificate_must_be_of_a_known_trust_domain(uri: str, accepted: bool) -> None:
    assert domains("td1", "td2").accepts(uri) == accepted


@pytest.mark.parametrize(
    ("names", "pattern", "expected"),
    [
        # Known, by its own name, an alias, or the pointer cluster.local.
        (("td1",), "td1/ns/foo/sa/bar", ("td1/ns/foo/sa/bar",)),
        (("td1", "td2"), "td1/ns/foo/sa/bar", ("td1/ns/foo/sa/bar", "td2/ns/foo/sa/bar")),
        (("td1", "td2"), "td2/ns/foo/sa/*", ("td1/ns/foo/sa/*", "td2/ns/foo/sa/*")),
        (("td1",), "cluster.local/ns/foo/sa/bar", ("td1/ns/foo/sa/bar",)),
        (("td1", "td2"), "cluster.local/ns/a/sa/b", ("td1/ns/a/sa/b", "td2/ns/a/sa/b")),
        # Unknown trust domains stay.
        (("td1", "td2"), "some-td/ns/foo/sa/bar", ("some-td/ns/foo/sa/bar",)),
        (("td1",), "td/ns/foo/sa/bar", ("td/ns/foo/sa/bar",)),
        # Not five parts: untouched.
        (("td1", "td2"), "*", ("*",)),
        (("td1", "td2"), "td1", ("td1",)),
        (("td1", "td2"), "td1/ns/foo/sa", ("td1/ns/foo/sa",)),
        (("td1", "td2"), "td1/ns/foo/sa/bar/x", ("td1/ns/foo/sa/bar/x",)),
        (("td1", "td2"), "*sa/bar", ("*sa/bar",)),
        # A lone star covers every trust domain already.
        (("td1", "td2"), "*/ns/foo/sa/bar", ("*/ns/foo/sa/bar",)),
        # A wildcard that covers some of the names, and copies for the others.
        (("old-td", "new-td"), "*-td/ns/a/sa/b", ("*-td/ns/a/sa/b",)),
        (("old-td", "new"), "*-td/ns/a/sa/b", ("*-td/ns/a/sa/b", "new/ns/a/sa/b")),
        (("td1", "other"), "td*/ns/a/sa/b", ("td1/ns/a/sa/b", "other/ns/a/sa/b")),
        # The wildcard may be in the mesh's list instead.
        (("td1", "*-td"), "x-td/ns/a/sa/b", ("td1/ns/a/sa/b", "*-td/ns/a/sa/b")),
        (("td1", "x*"), "xy/ns/a/sa/b", ("td1/ns/a/sa/b", "x*/ns/a/sa/b")),
    ],
)
def test_principals_are_migrated(
    names: tuple[str, ...], pattern: str, expected: tuple[str, ...]
) -> None:
    assert domains(*names).migrate_principals((pattern,)) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("td1",), ("td1", "td2")), (("td2", "x"), ("td1", "td2", "x")), (("x",), ("x",)),
        (("td*",), ("td*",)), (("cluster.local",), ("cluster.local",)), ((), ()),
    ],
)  # fmt: skip
def test_trust_domain_values_are_expanded(
    values: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert domains("td1", "td2").expand(values) == expected


@pytest.mark.parametrize(
    ("san", "expected"),
    [
        ("spiffe://td1/ns/a/sa/b", {"spiffe://td1/ns/a/sa/b", "spiffe://td2/ns/a/sa/b"}),
        ("spiffe://other/ns/a/sa/b", {"spiffe://other/ns/a/sa/b", "spiffe://td2/ns/a/sa/b"}),
        ("spiffe://td2/ns/a/sa/b", {"spiffe://td2/ns/a/sa/b"}),
        ("spiffe://td1/a/b", {"spiffe://td1/a/b"}),
        ("spiffe://td1/ns/a/sa/b/c", {"spiffe://td1/ns/a/sa/b/c"}),
        ("spiffe://td1/sa/a/ns/b", {"spiffe://td1/sa/a/ns/b"}),
        ("a.b", {"a.b"}),
        ("td1/ns/a/sa/b", {"td1/ns/a/sa/b"}),
    ],
)
def test_expected_identities_are_repeated_for_every_alias(san: str, expected: set[str]) -> None:
    expanded = domains("td1", "td2").expand_identities((san, san))
    assert set(expanded) == expected
    assert len(expanded) == len(expected)
    assert domains("td1").expand_identities((san,)) == (san,)
