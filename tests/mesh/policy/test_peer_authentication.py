from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.peer_authentication import PeerAuthentications
from mesh.policy.selection import Workload
from mesh.resources.security import MtlsMode, PeerAuthentication
from tests.mesh.policy.builders import peer_authn

ROOT = "istio-system"
APP = {"selector": {"matchLabels": {"app": "foo"}}}
WORKLOAD = Workload(namespace="foo", labels={"app": "foo", "version": "v1"})
UNSET, DISABLE, PERMISSIVE, STRICT = MtlsMode


def mtls(mode: MtlsMode | None) -> dict[str, Any]:
    return {} if mode is None else {"mtls": {"mode": str(mode)}}


def at(second: int) -> str:
    return f"2020-01-01T00:00:{second:02}Z"


def modes(*policies: PeerAuthentication) -> PeerAuthentications:
    return PeerAuthentications(policies, root_namespace=ROOT)


@pytest.mark.parametrize(
    ("wide", "middle", "narrow"),
    list(itertools.product([None, *MtlsMode], repeat=3)),
)
def test_the_narrowest_mode_that_is_set_wins_even_if_weaker(
    wide: MtlsMode | None, middle: MtlsMode | None, narrow: MtlsMode | None
) -> None:
    levels: tuple[tuple[MtlsMode | None, Any, Any], ...] = (
        (wide, {"namespace": ROOT}, {}),
        (middle, {"name": "ns"}, {}),
        (narrow, {"name": "app"}, APP),
    )
    policies = [
        peer_authn({**selector, **mtls(mode)}, **metadata)
        for mode, metadata, selector in levels
        if mode is not None
    ]
    expected = PERMISSIVE
    for mode in (wide, middle, narrow):
        if mode not in {None, UNSET}:
            assert mode is not None
            expected = mode
    assert modes(*policies).effective(WORKLOAD).workload.mode is expected


def test_missing_empty_and_unset_are_one() -> None:
    specs: list[Any] = [{}, {"mtls": {}}, {"mtls": {"mode": "UNSET"}}, {"mtls": None}]
    for spec in specs:
        strict = peer_authn(mtls(STRICT), namespace=ROOT)
        assert modes(strict, peer_authn(spec)).effective(WORKLOAD).workload.mode is STRICT


def test_who_decided_is_told() -> None:
    strict = peer_authn(mtls(STRICT), namespace=ROOT)
    app = peer_authn({**APP, "portLevelMtls": {"80": {"mode": "DISABLE"}}}, name="app")
    found = modes(strict, app).effective(WORKLOAD)
    assert found.workload.decided_by is strict
    assert found.of_port(80).decided_by is app
    assert str(found.of_port(80)) == "DISABLE by PeerAuthentication foo/app"
    assert str(modes().effective(WORKLOAD).workload) == "PERMISSIVE by default"


def test_on_each_level_the_oldest_counts_as_a_whole() -> None:
    older = peer_authn({**APP, **mtls(STRICT)}, name="b", creationTimestamp=at(1))
    newer = peer_authn(
        {
            "selector": {"matchLabels": {"app": "foo", "version": "v1"}},
            **mtls(DISABLE),
            "portLevelMtls": {"80": {"mode": "DISABLE"}},
        },
        name="a",
        creationTimestamp=at(2),
    )
    found = modes(newer, older).effective(WORKLOAD)
    assert found.workload.mode is STRICT
    assert found.ports == {}


def test_equal_ages_are_ordered_by_name() -> None:
    first = peer_authn(mtls(DISABLE), name="aa", creationTimestamp=at(1))
    second = peer_authn(mtls(STRICT), name="zz", creationTimestamp=at(1))
    assert modes(second, first).effective(WORKLOAD).workload.mode is DISABLE
    assert modes(second, first).namespace_mode("foo") is DISABLE


def test_a_missing_timestamp_is_the_oldest() -> None:
    dated = peer_authn(mtls(STRICT), name="aa", creationTimestamp=at(1))
    undated = peer_authn(mtls(DISABLE), name="zz")
    assert modes(dated, undated).effective(WORKLOAD).workload.mode is DISABLE


def test_an_unset_oldest_inherits_from_the_mesh_and_never_from_a_younger_one() -> None:
    oldest = peer_authn({}, name="old", creationTimestamp=at(1))
    younger = peer_authn(mtls(DISABLE), name="young", creationTimestamp=at(2))
    strict = peer_authn(mtls(STRICT), namespace=ROOT)
    assert modes(oldest, younger, strict).effective(WORKLOAD).workload.mode is STRICT
    assert modes(oldest, younger).effective(WORKLOAD).workload.mode is PERMISSIVE


@pytest.mark.parametrize("selector", [{}, {"selector": {}}, {"selector": {"matchLabels": {}}}])
def test_an_empty_selector_is_none(selector: Any) -> None:
    assert modes(peer_authn({**selector, **mtls(STRICT)})).namespace_mode("foo") is STRICT


@pytest.mark.parametrize("namespace", ["foo", ROOT])
def test_selectors_in_the_root_namespace_are_ignored_for_everyone(namespace: str) -> None:
    policy = peer_authn({**APP, **mtls(STRICT)}, namespace=ROOT)
    workload = Workload(namespace=namespace, labels={"app": "foo"})
    assert modes(policy).effective(workload).workload.mode is PERMISSIVE


def test_the_mesh_policy_is_also_the_root_namespaces_own() -> None:
    policies = modes(peer_authn(mtls(STRICT), namespace=ROOT))
    assert policies.effective(Workload(namespace=ROOT)).workload.mode is STRICT
    assert policies.namespace_mode(ROOT) is STRICT


def test_other_namespaces_and_other_labels_do_not_matter() -> None:
    policies = modes(
        peer_authn(mtls(STRICT), namespace="bar"),
        peer_authn({**APP, **mtls(STRICT)}, name="app", namespace="bar"),
        peer_authn({"selector": {"matchLabels": {"app": "foo", "x": "y"}}, **mtls(STRICT)}),
    )
    assert policies.effective(WORKLOAD).workload.mode is PERMISSIVE
    assert policies.effective(Workload(namespace="foo")).workload.mode is PERMISSIVE


@pytest.mark.parametrize("mesh_mode", [None, *MtlsMode])
@pytest.mark.parametrize("workload_mode", list(MtlsMode))
@pytest.mark.parametrize("port_mode", list(MtlsMode))
def test_a_port_has_its_own_mode_or_the_workloads(
    mesh_mode: MtlsMode | None, workload_mode: MtlsMode, port_mode: MtlsMode
) -> None:
    policies = [] if mesh_mode is None else [peer_authn(mtls(mesh_mode), namespace=ROOT)]
    ports = {"8080": {"mode": str(port_mode)}, "81": {}}
    policies.append(peer_authn({**APP, **mtls(workload_mode), "portLevelMtls": ports}, name="app"))
    found = modes(*policies).effective(WORKLOAD)
    expected = found.workload.mode if port_mode is UNSET else port_mode
    assert found.of_port(8080).mode is expected
    assert found.of_port(81).mode is found.workload.mode
    assert found.of_port(9999).mode is found.workload.mode


def test_ports_of_a_policy_without_selector_are_ignored() -> None:
    policy = peer_authn({"portLevelMtls": {"80": {"mode": "DISABLE"}}, **mtls(STRICT)})
    assert modes(policy).effective(WORKLOAD).of_port(80).mode is STRICT


@pytest.mark.parametrize(
    ("mesh_mode", "namespace_mode", "expected"),
    [
        (None, None, None), (None, UNSET, PERMISSIVE), (None, STRICT, STRICT),
        (UNSET, None, PERMISSIVE), (UNSET, UNSET, PERMISSIVE), (UNSET, DISABLE, DISABLE),
        (STRICT, None, STRICT), (STRICT, UNSET, STRICT), (STRICT, DISABLE, DISABLE),
        (DISABLE, None, DISABLE), (DISABLE, PERMISSIVE, PERMISSIVE),
    ],
)  # fmt: skip
def test_what_clients_assume_of_a_namespace(
    mesh_mode: MtlsMode | None, namespace_mode: MtlsMode | None, expected: MtlsMode | None
) -> None:
    policies = [peer_authn({**APP, **mtls(STRICT)}, name="app")]  # Never of influence.
    if mesh_mode is not None:
        policies.append(peer_authn(mtls(mesh_mode), namespace=ROOT))
    if namespace_mode is not None:
        policies.append(peer_authn(mtls(namespace_mode), name="ns"))
    assert modes(*policies).namespace_mode("foo") is expected


POLICIES = [
    peer_authn({**selector, **mtls(mode)}, name=f"p{n}", namespace=namespace, **stamp)
    for n, (mode, namespace, selector, stamp) in enumerate(
        itertools.product(MtlsMode, (ROOT, "foo"), ({}, APP), ({}, {"creationTimestamp": at(1)}))
    )
]


@given(st.lists(st.sampled_from(POLICIES), unique_by=lambda policy: policy.key), st.randoms())
def test_the_order_of_documents_never_matters(policies: list[Any], random: Any) -> None:
    before = modes(*policies)
    random.shuffle(policies)
    after = modes(*policies)
    assert before.effective(WORKLOAD) == after.effective(WORKLOAD)
    assert before.namespace_mode("foo") is after.namespace_mode("foo")
