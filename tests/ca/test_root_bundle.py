from __future__ import annotations

from datetime import timedelta

import pytest

from ca.root_bundle import renewal_time, safe_change
from ca.template import root_certificate, root_validity
from tests.ca.workshop import CLUSTER
from tests.pki import NOW, new_key

KEYS = {name: new_key() for name in "ABC"}
ROOTS = {
    name: root_certificate(CLUSTER, key, root_validity(NOW, timedelta(days=10)))
    for name, key in KEYS.items()
}


@pytest.mark.parametrize(
    ("current", "new", "expected"),
    [
        ("A", "A", True),
        ("A", "AB", True),
        ("AB", "BA", True),
        ("AB", "B", True),
        ("AB", "ABC", True),
        ("A", "B", False),
        ("AB", "BC", False),
        ("", "A", False),
        ("A", "", False),
        ("", "", False),
    ],
)
def test_one_set_must_contain_the_other(current: str, new: str, expected: bool) -> None:
    before, after = ([ROOTS[name] for name in names] for names in (current, new))
    assert safe_change(before, after) is expected


def test_a_root_with_a_new_life_is_the_same_root() -> None:
    renewed = root_certificate(CLUSTER, KEYS["A"], root_validity(NOW, timedelta(days=20)))
    assert renewed != ROOTS["A"]
    assert safe_change([ROOTS["A"]], [renewed])
    assert safe_change([ROOTS["A"]], [renewed, ROOTS["B"]])


def test_a_root_is_renewed_when_a_fifth_of_its_life_is_left() -> None:
    due = renewal_time(ROOTS["A"])
    assert abs(due - (NOW + timedelta(days=8))) < timedelta(minutes=1)
    assert renewal_time(ROOTS["A"], 0) == ROOTS["A"].not_valid_after_utc
