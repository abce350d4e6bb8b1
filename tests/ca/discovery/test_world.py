from __future__ import annotations

import pytest

from ca.discovery.held import (
    AUTHORIZATION_POLICY,
    DESTINATION_RULE,
    PEER_AUTHENTICATION,
    REQUEST_AUTHENTICATION,
    SERVED,
    SERVICE_ENTRY,
    WORKLOAD_ENTRY,
    held_of,
)
from ca.discovery.viewer import Viewer
from ca.discovery.world import World
from ca.store.catalog import EVERYWHERE, InForce
from mesh.discovery.types import MESH_CONFIG_URL
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.problem import Refused
from mesh.resources.values import Resource
from tests.ca.discovery.builders import (
    authz,
    change,
    peer_authn,
    request_authn,
    resource,
    rule,
    service,
    viewer,
    workload,
    world,
)

WEB = viewer()
ROOT = "istio-system"


def names(known: World, who: Viewer, url: str) -> list[str]:
    """Return what a proxy is told of, by both ways of asking, which must agree."""
    collected = set(known.everything_for(who, url))
    asked = {name for name, held in known.all_of(url).items() if known.concerns(who, held)}
    assert collected == asked
    return sorted(collected)


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        pytest.param(authz("app/p"), True, id="own-namespace"),
        pytest.param(authz("app/p", {"app": "web"}), True, id="own-label"),
        pytest.param(authz("app/p", {"app": "db"}), False, id="other-label"),
        pytest.param(authz("app/p", {"app": "web", "v": "2"}), False, id="one-label-more"),
        pytest.param(authz("other/p"), False, id="other-namespace"),
        pytest.param(authz("other/p", {"app": "web"}), False, id="other-namespace-own-label"),
        pytest.param(authz(f"{ROOT}/p"), True, id="root"),
        pytest.param(authz(f"{ROOT}/p", {"app": "web"}), True, id="root-own-label"),
        pytest.param(authz(f"{ROOT}/p", {"app": "db"}), False, id="root-other-label"),
        pytest.param(request_authn("app/p", {"app": "web"}), True, id="jwt"),
        pytest.param(request_authn("app/p", {"app": "db"}), False, id="jwt-other"),
        pytest.param(request_authn(f"{ROOT}/p", {"app": "web"}), True, id="jwt-root-label"),
        pytest.param(peer_authn("app/p"), True, id="modes"),
        pytest.param(peer_authn("app/p", {"app": "web"}), True, id="modes-own-label"),
        pytest.param(peer_authn("app/p", {"app": "db"}), False, id="modes-other-label"),
        pytest.param(peer_authn(f"{ROOT}/p"), True, id="modes-of-the-mesh"),
        pytest.param(peer_authn(f"{ROOT}/p", {"app": "web"}), False, id="root-selector-ignored"),
        pytest.param(peer_authn("other/p"), False, id="modes-of-what-is-not-called"),
        pytest.param(
            resource(
                "AuthorizationPolicy",
                "app/p",
                {"targetRefs": [{"kind": "Gateway", "name": "g"}], "rules": [{}]},
            ),
            False,
            id="for-a-gateway",
        ),
        pytest.param(Refused("AuthorizationPolicy", "app", "p"), True, id="unreadable-own"),
        pytest.param(Refused("AuthorizationPolicy", ROOT, "p"), True, id="unreadable-root"),
        pytest.param(Refused("AuthorizationPolicy", "other", "p"), False, id="unreadable-other"),
        pytest.param(Refused("AuthorizationPolicy", EVERYWHERE, "p"), True, id="unreadable-any"),
        pytest.param(Refused("PeerAuthentication", EVERYWHERE, "p"), True, id="unreadable-modes"),
        pytest.param(Refused("ServiceEntry", EVERYWHERE, "p"), False, id="unreadable-service-any"),
        pytest.param(Refused("ServiceEntry", "app", "p"), True, id="unreadable-service"),
        pytest.param(Refused("ServiceEntry", ROOT, "p"), False, id="unreadable-service-root"),
    ],
)
def test_a_policy_is_told_to_those_it_may_decide_for(policy: InForce, told: bool) -> None:
    known = world(policy)
    assert bool(names(known, WEB, held_of(policy).url)) is told


@pytest.mark.parametrize(
    ("entry", "who", "told"),
    [
        pytest.param(service("other/s", "a.example"), WEB, True, id="exported-to-all"),
        pytest.param(service("other/s", "a.example", export=("*",)), WEB, True, id="star"),
        pytest.param(service("other/s", "a.example", export=(".",)), WEB, False, id="kept"),
        pytest.param(service("app/s", "a.example", export=(".",)), WEB, True, id="kept-own"),
        pytest.param(service("other/s", "a.example", export=("app",)), WEB, True, id="to-app"),
        pytest.param(service("other/s", "a.example", export=("~",)), WEB, False, id="nobody"),
        pytest.param(
            service("other/s", "a.example"), viewer(hosts={"a.example"}), True, id="called"
        ),
        pytest.param(
            service("other/s", "A.Example"), viewer(hosts={"a.example"}), True, id="any-case"
        ),
        pytest.param(
            service("other/s", "a.example"), viewer(hosts={"b.example"}), False, id="not-called"
        ),
        pytest.param(
            service("other/s", "*.example"), viewer(hosts={"b.example"}), True, id="wildcard"
        ),
        pytest.param(
            service("other/s", "a.example", export=(".",)),
            viewer(hosts={"a.example"}),
            False,
            id="called-but-not-exported",
        ),
        pytest.param(
            service("app/s", "a.example", selects={"app": "web"}, export=("~",)),
            viewer(hosts=set()),
            True,
            id="selects-the-proxy",
        ),
        pytest.param(
            service("other/s", "a.example", selects={"app": "web"}),
            viewer(hosts=set()),
            False,
            id="selects-in-its-own-namespace-only",
        ),
        pytest.param(
            service("app/s", "a.example", endpoints=[{"address": "10.0.0.1"}]),
            viewer(hosts=set(), addresses=("10.0.0.1",)),
            True,
            id="lists-the-proxy",
        ),
    ],
)
def test_a_service_is_told_to_its_callers_and_its_workloads(
    entry: Resource, who: Viewer, told: bool
) -> None:
    assert bool(names(world(entry), who, SERVICE_ENTRY)) is told


DB = service("data/db", "db.example", selects={"app": "db"})
DB_1 = workload("data/db-1", "10.0.0.1", {"app": "db", "zone": "a"})
CALLER = viewer(hosts={"db.example"})
STRANGER = viewer(hosts={"other.example"})


def test_workloads_are_told_to_callers_of_their_services_and_to_themselves() -> None:
    known = world(DB, DB_1, workload("data/queue", "10.0.0.2", {"app": "queue"}))
    assert names(known, CALLER, WORKLOAD_ENTRY) == ["data/db-1"]
    assert names(known, STRANGER, WORKLOAD_ENTRY) == []
    assert names(known, viewer("data", hosts=set(), addresses=("10.0.0.2",)), WORKLOAD_ENTRY) == [
        "data/queue"
    ]
    assert names(known, viewer("app", hosts=set(), addresses=("10.0.0.2",)), WORKLOAD_ENTRY) == []
    assert names(known, viewer("data", hosts=set(), own="data/queue"), WORKLOAD_ENTRY) == [
        "data/queue"
    ]


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        pytest.param(peer_authn("data/p"), True, id="namespace"),
        pytest.param(peer_authn("data/p", {"app": "db"}), True, id="its-workloads"),
        pytest.param(peer_authn("data/p", {"zone": "a"}), True, id="one-of-them"),
        pytest.param(peer_authn("data/p", {"app": "queue"}), False, id="other-workloads"),
        pytest.param(peer_authn("app2/p"), False, id="other-namespace"),
    ],
)
def test_callers_are_told_the_modes_of_what_they_call(policy: Resource, told: bool) -> None:
    known = world(DB, DB_1, policy)
    assert bool(names(known, CALLER, PEER_AUTHENTICATION)) is told
    assert names(known, STRANGER, PEER_AUTHENTICATION) == []


def test_callers_are_told_the_modes_of_endpoints_listed_in_a_service() -> None:
    endpoints = [{"address": "10.0.0.1", "labels": {"app": "db"}}]
    known = world(
        service("data/db", "db.example", endpoints=endpoints),
        peer_authn("data/p", {"app": "db"}),
        peer_authn("data/q", {"app": "queue"}),
    )
    assert names(known, CALLER, PEER_AUTHENTICATION) == ["data/p"]


@pytest.mark.parametrize(
    ("one", "told"),
    [
        pytest.param(rule("app/r", "db.example"), True, id="client's"),
        pytest.param(rule("data/r", "db.example"), True, id="service's"),
        pytest.param(rule(f"{ROOT}/r", "db.example"), True, id="root's"),
        pytest.param(rule("third/r", "db.example"), False, id="a-third's"),
        pytest.param(rule("app/r", "*.example"), True, id="wildcard"),
        pytest.param(rule("app/r", "queue.example"), False, id="other-host"),
        pytest.param(rule("data/r", "db.example", exportTo=["."]), False, id="kept"),
        pytest.param(rule("app/r", "db.example", exportTo=["."]), True, id="kept-own"),
        pytest.param(
            rule("app/r", "db.example", workloadSelector={"matchLabels": {"app": "web"}}),
            True,
            id="selects-the-client",
        ),
        pytest.param(
            rule("app/r", "db.example", workloadSelector={"matchLabels": {"app": "x"}}),
            False,
            id="selects-another-client",
        ),
        pytest.param(
            rule("data/r", "db.example", workloadSelector={"matchLabels": {"app": "web"}}),
            False,
            id="selects-in-its-own-namespace-only",
        ),
    ],
)
def test_rules_are_told_to_clients_that_may_have_to_follow_them(one: Resource, told: bool) -> None:
    known = world(DB, one)
    assert bool(names(known, CALLER, DESTINATION_RULE)) is told
    assert names(known, STRANGER, DESTINATION_RULE) == []


def test_a_rule_inside_a_wildcard_service_is_told() -> None:
    known = world(service("data/all", "*.example"), rule("app/r", "a.example"))
    assert names(known, viewer(hosts={"a.example"}), DESTINATION_RULE) == ["app/r"]


def test_what_is_removed_or_changed_is_no_longer_found() -> None:
    known = world(DB, DB_1, authz("app/p", {"app": "web"}), rule("app/r", "db.example"))
    moved = workload("data/db-1", "10.0.0.9", {"app": "queue"})
    known.update(
        [
            change(DB_1, moved),
            change(authz("app/p", {"app": "web"}), authz("app/p", {"app": "db"})),
            change(rule("app/r", "db.example"), None),
        ]
    )
    for url in (WORKLOAD_ENTRY, AUTHORIZATION_POLICY, DESTINATION_RULE):
        assert names(known, CALLER, url) == []
    known.update([change(DB, None)])
    assert names(known, CALLER, SERVICE_ENTRY) == []


def test_an_unreadable_name_takes_the_place_of_a_resource_and_gives_it_back() -> None:
    policy, refused = authz("app/p", {"app": "db"}), Refused("AuthorizationPolicy", "app", "p")
    known = world(policy)
    assert names(known, WEB, AUTHORIZATION_POLICY) == []
    known.update([change(policy, refused)])
    assert names(known, WEB, AUTHORIZATION_POLICY) == ["app/p"]
    known.update([change(refused, policy)])
    assert names(known, WEB, AUTHORIZATION_POLICY) == []
    known.update([change(policy, None)])
    assert known.all_of(AUTHORIZATION_POLICY) == {}


def test_a_change_touches_itself_and_what_depends_on_it() -> None:
    known = world(
        DB_1, rule("app/r", "db.example"), peer_authn("data/p", {"app": "db"}), authz("app/a")
    )
    touched = known.update([change(None, DB)])
    assert set(touched) == {
        (SERVICE_ENTRY, "data/db"),
        (WORKLOAD_ENTRY, "data/db-1"),
        (DESTINATION_RULE, "app/r"),
        (PEER_AUTHENTICATION, "data/p"),
    }
    other_port = service("data/db", "db.example", selects={"app": "db"}, port=81)
    assert set(known.update([change(DB, other_port)])) == {(SERVICE_ENTRY, "data/db")}
    assert set(known.update([change(authz("app/a"), None)])) == {(AUTHORIZATION_POLICY, "app/a")}


def test_the_settings_are_for_everybody_and_move_the_root_namespace() -> None:
    known = world(authz("mesh-root/p"))
    assert names(known, WEB, MESH_CONFIG_URL) == ["mesh"]
    assert names(known, WEB, AUTHORIZATION_POLICY) == []
    assert known.set_config(MeshConfig(root_namespace="mesh-root"))
    assert names(known, WEB, AUTHORIZATION_POLICY) == ["app/p".replace("app", "mesh-root")]
    assert not known.set_config(None)
    assert names(known, WEB, MESH_CONFIG_URL) == ["mesh"]
    assert known.root == "mesh-root"


def test_groups_are_for_the_control_plane_alone() -> None:
    group = resource("WorkloadGroup", "app/g", {"template": {"serviceAccount": "web"}})
    known = world(group)
    assert set(known.groups) == {"app/g"}
    for url in SERVED:
        assert "app/g" not in known.all_of(url)
    assert known.update([change(group, None)]) == {}
    assert known.groups == {}


def test_versions_tell_contents_apart_and_survive_a_restart() -> None:
    one, same = held_of(authz("app/p")), held_of(authz("app/p"))
    other = held_of(authz("app/p", action="DENY"))
    assert one.version == same.version == one.envelope.version
    assert one.version != other.version
    assert held_of(request_authn("app/p")).url == REQUEST_AUTHENTICATION
