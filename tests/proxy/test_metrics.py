from __future__ import annotations

from mesh.policy.decision import Decision, Why
from mesh.policy.rules import CompiledRule
from proxy.metrics import Decisions


def rule(policy: str, index: int) -> CompiledRule:
    return CompiledRule(
        id=policy,
        namespace="foo",
        policy=policy,
        index=index,
        matches=lambda _: True,
        anchors=None,
    )


def test_decisions_are_counted_by_what_decided() -> None:
    decisions = Decisions()
    for _ in range(3):
        decisions.count(Decision(allowed=False, why=Why.DENY_RULE, rule=rule("deny", 1)))
    decisions.count(Decision(allowed=True, why=Why.NOTHING_APPLIES))
    decisions.count_closed()

    lines = decisions.exposition(open_connections=7).splitlines()

    name = "remora_authorization_decisions_total"
    assert [line for line in lines if not line.startswith("#")] == [
        f'{name}{{decision="allowed",policy="",rule="",reason="nothing_applies"}} 1',
        f'{name}{{decision="denied",policy="foo/deny",rule="1",reason="deny_rule"}} 3',
        "remora_connections_closed_by_policy_total 1",
        "remora_connections_open 7",
    ]


def test_a_strange_name_cannot_forge_a_line() -> None:
    decisions = Decisions()
    decisions.count(Decision(allowed=False, why=Why.DENY_RULE, rule=rule('a"} 1\nb\\', 0)))
    (line,) = [
        line
        for line in decisions.exposition(open_connections=0).splitlines()
        if line.startswith("remora_authorization")
    ]
    assert r'policy="foo/a\"} 1\nb\\"' in line
