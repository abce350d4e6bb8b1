"""Which policies are about a workload, looked up one by one or by namespace."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.policy.selection import Attachments, Workload, applicable
from mesh.resources.security import AuthorizationPolicy
from tests.mesh.policy.builders import authz

ROOT = "istio-system"
GATEWAY = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"}


def policy(name: str, namespace: str, **spec: Any) -> AuthorizationPolicy:
    return authz(spec, name, namespace=namespace)


def selecting(**labels: str) -> dict[str, Any]:
    return {"matchLabels": labels}


POLICIES = [
    policy("all", "foo"),
    policy("mine", "foo", selector=selecting(app="a")),
    policy("half", "foo", selector=selecting(app="a", version="v2")),
    policy("gateway", "foo", targetRef=GATEWAY),
    policy("gateways", "foo", targetRefs=[GATEWAY]),
    policy("all", "bar"),
    policy("all", ROOT),
    policy("mine", ROOT, selector=selecting(app="a")),
    policy("others", ROOT, selector=selecting(app="b")),
]


@pytest.mark.parametrize(
    ("namespace", "labels", "expected"),
    [
        (
            "foo",
            {"app": "a", "version": "v1"},
            ["foo/all", "foo/mine", "istio-system/all", "istio-system/mine"],
        ),
        ("foo", {}, ["foo/all", "istio-system/all"]),
        ("bar", {"app": "b"}, ["bar/all", "istio-system/all", "istio-system/others"]),
        (ROOT, {"app": "a"}, ["istio-system/all", "istio-system/mine"]),
        ("new", {}, ["istio-system/all"]),
    ],
)
def test_both_ways_find_the_same(
    namespace: str, labels: dict[str, str], expected: list[str]
) -> None:
    workload = Workload(namespace=namespace, labels=labels)
    attachments = Attachments(POLICIES, root_namespace=ROOT)
    assert sorted(one.key for one in applicable(POLICIES, workload, ROOT)) == expected
    assert sorted(one.key for one in attachments.for_workload(workload)) == expected


def test_policies_come_and_go() -> None:
    attachments = Attachments(POLICIES[:1], root_namespace=ROOT)
    workload = Workload(namespace="foo")
    changed = policy("all", "foo", action="DENY", rules=[{}])
    attachments.put(changed)
    assert attachments.for_workload(workload) == [changed]
    attachments.discard("foo", "all")
    attachments.discard("foo", "all")
    attachments.discard("nowhere", "all")
    assert attachments.for_workload(workload) == []
