"""Files of cases: what they may hold, and what is told of each."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from remora.policy_tools.cases import Outcome, read_cases, run_cases
from remora.policy_tools.show_cases import as_data, as_junit, as_lines
from tests.remora.policy_tools.shop import ALLOW_WEB, CATALOG, REGISTRY, STRICT, world

SHOP = (STRICT, ALLOW_WEB, REGISTRY)


def case(expect: str, *, name: str = "a case", who: str = "workload: shop/web-1") -> str:
    return f"""
- name: {name}
  from: {{{who}}}
  to: {{service: {CATALOG}, port: 80}}
  request: {{path: /products/1, headers: {{x-a: b}}, claims: {{iss: i, sub: s}}}}
  expect: {{{expect}}}
"""


def run(*cases: str) -> list[Outcome]:
    read, problems = read_cases("cases:" + "".join(cases), "cases.yaml")
    assert problems == ()
    return list(run_cases(read, world(*SHOP)))


@pytest.mark.parametrize(
    ("expect", "differing"),
    [
        ("allowed: true", []),
        ("allowed: true, mtls: true, by: shop/catalog, mode: STRICT", []),
        ("allowed: false", [("allowed", "false", "true")]),
        ("allowed: true, mtls: false", [("mtls", "false", "true")]),
        ("allowed: true, by: shop/other", [("by", "shop/other", "shop/catalog")]),
        ("allowed: true, by: ''", [("by", "none", "shop/catalog")]),
        ("allowed: true, mode: DISABLE", [("mode", "DISABLE", "STRICT")]),
    ],
)
def test_what_is_expected(expect: str, differing: list[tuple[str, str, str]]) -> None:
    (outcome,) = run(case(expect))
    found = [(one.what, one.expected, one.got) for one in outcome.differences]
    assert found == differing
    assert outcome.passed is not bool(differing)


def test_every_endpoint_must_do_as_expected() -> None:
    second = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: catalog-2, namespace: shop}
spec: {address: 10.0.0.10, labels: {app: catalog}}
"""
    read, _ = read_cases("cases:" + case("allowed: true, mtls: true"), "c")
    (outcome,) = run_cases(read, world(REGISTRY, second))
    assert not outcome.passed
    assert outcome.verdict is not None
    assert outcome.verdict.target == "shop/catalog-2"


def test_a_case_that_cannot_be_asked_fails_and_the_others_run() -> None:
    bad, good = run(case("allowed: true", who="workload: shop/x"), case("allowed: true"))
    assert "shop/x" in bad.error
    assert not bad.passed
    assert good.passed


@pytest.mark.parametrize(
    ("text", "place", "line"),
    [
        ("cases: []", "cases", 1),
        ("", "cases", 0),
        ("a: b", "a", 1),
        ("cases:\n- {name: x}", "cases[0]", 2),
        ("cases:" + case("alowed: true"), "cases[0].expect.alowed", 6),
        ("cases:" + case("allowed: maybe"), "cases[0].expect.allowed", 6),
        ("cases:" + case("allowed: true").replace("80", "0"), "cases[0].to.port", 4),
        ("cases: {", "", 2),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_place(text: str, place: str, line: int) -> None:
    read, problems = read_cases(text, "cases.yaml")
    assert read == ()
    assert (problems[0].field, problems[0].line) == (place, line)
    assert problems[0].file == "cases.yaml"


def test_people_see_a_diff_and_the_steps() -> None:
    outcomes = run(case("allowed: true"), case("allowed: false", name="not so"))
    lines = list(as_lines(outcomes, verbose=False))
    assert lines[0] == "FAIL  not so  (cases.yaml:8)"
    assert lines[1:3] == ["    - allowed: false", "    + allowed: true"]
    assert any("AuthorizationPolicy shop/catalog" in line for line in lines)
    assert lines[-1] == "1 of 2 cases passed"
    assert "ok    a case" in list(as_lines(outcomes, verbose=True))


def test_scripts_see_data() -> None:
    passed, failed = as_data(run(case("allowed: true"), case("allowed: false")))
    assert passed["passed"] is True
    assert failed["differences"] == [{"what": "allowed", "expected": "false", "got": "true"}]
    assert isinstance(failed["verdict"], dict)
    assert failed["verdict"]["by"] == "shop/catalog"


def test_pipelines_see_junit() -> None:
    outcomes = run(
        case("allowed: true"),
        case("allowed: false", name='"<no> \\x00"'),
        case("allowed: true", who="workload: shop/x"),
    )
    root = ElementTree.fromstring(as_junit(outcomes))
    (suite,) = root.findall("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    tests = suite.findall("testcase")
    assert [test.find("failure") is None for test in tests] == [True, False, False]
    assert tests[1].get("name") == "<no> ?"
    failure = tests[1].find("failure")
    assert failure is not None
    assert failure.get("message") == "allowed: expected false, got true"
