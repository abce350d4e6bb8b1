from __future__ import annotations

import pytest

from ca.store.catalog import Catalog, Ident
from mesh.resources.loader import Loaded, load_resources
from mesh.resources.problem import Refused
from tests.ca.discovery.builders import authz

GOOD = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: app}
spec: {action: DENY, rules: [{}]}
"""
OTHER = GOOD.replace("name: p", "name: q")
BAD = GOOD.replace("action: DENY", "action: DENI")
NOT_YAML = GOOD.replace("rules: [{}]", "rules: [{")
P, Q = ("AuthorizationPolicy", "app/p"), ("AuthorizationPolicy", "app/q")
REFUSED = Refused("AuthorizationPolicy", "app", "p")


def read(*documents: str) -> Loaded:
    return load_resources("---".join(documents))


def test_good_documents_are_in_force_and_go_with_their_file() -> None:
    catalog = Catalog()
    changes = catalog.update({"a.yaml": read(GOOD, OTHER)})
    assert [(one.ident, one.before) for one in changes] == [(P, None), (Q, None)]
    assert catalog.update({"a.yaml": read(GOOD, OTHER)}) == ()
    [gone] = catalog.update({"a.yaml": read(GOOD)})
    assert (gone.ident, gone.after) == (Q, None)
    assert [one.ident for one in catalog.update({"a.yaml": None})] == [P]
    assert catalog.in_force == {}


def test_a_document_that_goes_bad_leaves_what_was_good() -> None:
    catalog = Catalog()
    catalog.update({"a.yaml": read(GOOD, OTHER)})
    good = catalog.in_force[P]
    assert catalog.update({"a.yaml": read(BAD, OTHER)}) == ()
    assert catalog.in_force[P] is good
    assert len(list(catalog.problems())) == 1
    assert catalog.update({"a.yaml": read(NOT_YAML, OTHER)}) == ()
    assert catalog.in_force[P] is good
    assert catalog.update({"a.yaml": read(GOOD, OTHER)}) == ()
    assert list(catalog.problems()) == []


def test_a_file_that_cannot_be_read_loses_nothing_and_good_documents_beside_it_count() -> None:
    catalog = Catalog()
    catalog.update({"a.yaml": read(GOOD, OTHER)})
    assert catalog.update({"a.yaml": read(NOT_YAML)}) == ()
    assert set(catalog.in_force) == {P, Q}
    third = GOOD.replace("name: p", "name: r")
    [change] = catalog.update({"a.yaml": read(NOT_YAML, third)})
    assert change.ident == ("AuthorizationPolicy", "app/r")


def test_a_document_that_never_was_good_is_in_force_as_unreadable() -> None:
    catalog = Catalog()
    [change] = catalog.update({"a.yaml": read(BAD)})
    assert (change.before, change.after) == (None, REFUSED)
    [change] = catalog.update({"a.yaml": read(GOOD)})
    assert change.before == REFUSED
    assert catalog.in_force[P] == authz("app/p", action="DENY")


def test_a_name_that_lost_its_kind_keeps_what_it_was_and_nothing_else() -> None:
    catalog = Catalog()
    catalog.update({"a.yaml": read(GOOD, OTHER)})
    mistyped = GOOD.replace("AuthorizationPolicy", "AuthorisationPolicy")
    [change] = catalog.update({"a.yaml": read(mistyped)})
    assert (change.ident, change.after) == (Q, None)
    assert P in catalog.in_force


def test_what_moves_to_another_file_and_goes_bad_at_once_stays() -> None:
    catalog = Catalog()
    catalog.update({"a.yaml": read(GOOD)})
    assert catalog.update({"a.yaml": None, "b.yaml": read(BAD)}) == ()
    assert not isinstance(catalog.in_force[P], Refused)


def test_of_a_name_in_two_files_the_first_counts_and_the_other_is_named() -> None:
    catalog = Catalog()
    allow = GOOD.replace("DENY", "ALLOW")
    catalog.update({"b.yaml": read(GOOD)})
    [change] = catalog.update({"a.yaml": read(allow)})
    assert change.after == authz("app/p")
    [problem] = catalog.problems()
    assert (problem.file, "a.yaml" in problem.message) == ("b.yaml", True)
    [change] = catalog.update({"a.yaml": None})
    assert change.after == authz("app/p", action="DENY")
    assert list(catalog.problems()) == []


def test_a_good_document_counts_before_the_last_good_of_a_bad_one() -> None:
    catalog = Catalog()
    catalog.update({"a.yaml": read(GOOD)})
    catalog.update({"a.yaml": read(BAD)})
    allow = GOOD.replace("DENY", "ALLOW")
    [change] = catalog.update({"b.yaml": read(allow)})
    assert change.after == authz("app/p")


def test_what_an_earlier_run_remembers_counts_only_for_a_bad_file() -> None:
    deny, allow = authz("app/p", action="DENY"), authz("app/p")
    catalog = Catalog()
    catalog.remember("a.yaml", [deny])
    assert catalog.in_force == {}
    [change] = catalog.update({"a.yaml": read(BAD)})
    assert change.after == deny
    catalog = Catalog()
    catalog.remember("a.yaml", [allow])
    [change] = catalog.update({"a.yaml": read(GOOD)})
    assert change.after == deny
    catalog = Catalog()
    catalog.remember("a.yaml", [allow])
    assert catalog.update({"a.yaml": None}) == ()


BAD_NAMESPACE = GOOD.replace("namespace: app", "namespace: App_")
DENY_ALL = ("AuthorizationPolicy", "*/unreadable-a.yaml")


@pytest.mark.parametrize("broken", [BAD_NAMESPACE, GOOD.replace("name: p", "name: P_")])
def test_a_name_that_goes_bad_keeps_what_the_file_held(broken: str) -> None:
    catalog = Catalog()
    catalog.update({"a.yaml": read(GOOD, OTHER)})
    assert catalog.update({"a.yaml": read(broken, OTHER)}) == ()
    assert set(catalog.in_force) == {P, Q}


def test_a_file_that_is_broken_and_renamed_at_once_keeps_what_it_held() -> None:
    catalog = Catalog()
    catalog.update({"a.yaml": read(GOOD, OTHER)})
    assert catalog.update({"a.yaml": None, "b.yaml": read(NOT_YAML)}) == ()
    assert set(catalog.in_force) == {P, Q}
    [gone] = catalog.update({"b.yaml": read(GOOD)})
    assert (gone.ident, gone.after) == (Q, None)


def test_what_vanishes_beside_a_file_that_names_all_it_holds_is_gone() -> None:
    catalog = Catalog()
    catalog.update({"a.yaml": read(GOOD), "b.yaml": read(OTHER)})
    [gone] = catalog.update({"a.yaml": None, "b.yaml": read(OTHER)})
    assert (gone.ident, gone.after) == (P, None)


def test_what_moves_readably_is_not_kept_by_a_broken_file_too() -> None:
    catalog = Catalog()
    catalog.update({"a.yaml": read(GOOD, OTHER)})
    catalog.update({"a.yaml": None, "b.yaml": read(NOT_YAML), "c.yaml": read(GOOD)})
    assert catalog.files["b.yaml"].kept.keys() == {Q}


def test_a_renamed_and_broken_file_of_an_earlier_run_counts() -> None:
    catalog = Catalog()
    catalog.remember("a.yaml", [authz("app/p")])
    [change] = catalog.update({"a.yaml": None, "b.yaml": read(NOT_YAML)})
    assert (change.ident, change.after) == (P, authz("app/p"))


@pytest.mark.parametrize(
    ("text", "ident"),
    [
        pytest.param(NOT_YAML, DENY_ALL, id="not-yaml"),
        pytest.param(BAD_NAMESPACE, DENY_ALL, id="namespace"),
        pytest.param("just text\n", DENY_ALL, id="text"),
        pytest.param(
            GOOD.replace("name: p", "name: 12"),
            ("AuthorizationPolicy", "app/unreadable-a.yaml"),
            id="numeric-name",
        ),
        pytest.param(
            GOOD.replace("AuthorizationPolicy", "AuthorisationPolicy"),
            ("AuthorizationPolicy", "app/unreadable-a.yaml"),
            id="misspelt",
        ),
    ],
)
def test_what_has_no_name_and_never_was_good_is_in_force_under_the_name_of_its_file(
    text: str, ident: Ident
) -> None:
    catalog = Catalog()
    [change, other] = catalog.update({"a.yaml": read(text, OTHER)})
    assert other.ident == Q
    assert change.ident == ident
    assert change.after == Refused(ident[0], *ident[1].split("/"))
    assert catalog.update({"a.yaml": read(text, OTHER)}) == ()
    [change] = catalog.update({"a.yaml": read(OTHER)})
    assert (change.ident, change.after) == (ident, None)


def test_a_new_document_without_a_name_is_not_taken_for_one_that_is_still_readable() -> None:
    catalog = Catalog()
    catalog.update({"a.yaml": read(GOOD)})
    [change] = catalog.update({"a.yaml": read(GOOD, NOT_YAML)})
    assert change.ident == DENY_ALL
    catalog.update({"a.yaml": read(GOOD)})
    [change] = catalog.update({"a.yaml": read(BAD, NOT_YAML)})
    assert change.ident == DENY_ALL


def test_a_kind_of_another_controller_is_a_problem_and_denies_nobody() -> None:
    catalog = Catalog()
    assert catalog.update({"a.yaml": read("apiVersion: v1\nkind: Service\n")}) == ()
    assert len(list(catalog.problems())) == 1


def test_an_unreadable_name_stays_when_its_file_can_be_read_even_less() -> None:
    catalog = Catalog()
    catalog.update({"a.yaml": read(BAD)})
    assert catalog.update({"a.yaml": read(NOT_YAML)}) == ()
    assert catalog.in_force[P] == REFUSED


def test_an_empty_file_keeps_what_it_held_and_says_so() -> None:
    catalog = Catalog()
    catalog.update({"a.yaml": read(GOOD), "b.yaml": load_resources("")})
    assert catalog.update({"a.yaml": load_resources("")}) == ()
    [problem] = catalog.problems()
    assert (problem.file, "the file is empty" in problem.message) == ("a.yaml", True)
    assert [one.after for one in catalog.update({"a.yaml": None})] == [None]
    assert list(catalog.problems()) == []
