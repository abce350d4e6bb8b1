"""What a proxy holds of its control plane's words, and what it answers."""

from __future__ import annotations

import pytest

from mesh.discovery.codec import encode_mesh_config, encode_resource, encode_unreadable
from mesh.discovery.node import decode_node
from mesh.discovery.types import MESH_CONFIG_URL, URL_OF
from mesh.protos.discovery_pb2 import Resource as Enveloped
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.networking import DestinationRule, ServiceEntry
from mesh.resources.problem import Refused
from mesh.resources.security import AuthorizationPolicy, PeerAuthentication
from proxy.discovery_state import POLICY_TYPES, SUBSCRIBED, DiscoveryState
from tests.proxy.control import NODE, everything, resources, respond, told

POLICY_URL = URL_OF[AuthorizationPolicy]

DENY, STRICT = resources("""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: foo}
spec: {action: DENY, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: foo}
spec: {mtls: {mode: STRICT}}
""")


def unreadable(kind: str = "AuthorizationPolicy", name: str = "broken") -> Enveloped:
    return encode_unreadable(Refused(kind, "foo", name), "9")


def test_a_subscription_asks_for_every_type_and_introduces_the_proxy_once() -> None:
    first, *others = DiscoveryState(NODE).subscribe()
    assert decode_node(first.node) == NODE
    assert not any(request.HasField("node") for request in others)
    assert [request.type_url for request in [first, *others]] == list(SUBSCRIBED)
    assert all(list(request.resource_names_subscribe) == ["*"] for request in [first, *others])


def test_a_proxy_with_explicit_destinations_asks_for_those_services_only() -> None:
    requests = DiscoveryState(NODE, ["b.test", "a.test", "b.test"]).subscribe()
    asked = {one.type_url: list(one.resource_names_subscribe) for one in requests}
    assert asked.pop(URL_OF[ServiceEntry]) == ["a.test", "b.test"]
    assert set(map(tuple, asked.values())) == {("*",)}


def test_a_proxy_that_calls_no_services_asks_for_none() -> None:
    state = DiscoveryState(NODE, [])
    asked = [request.type_url for request in state.subscribe()]
    assert asked == list(POLICY_TYPES)
    for response in everything(DENY):
        if response.type_url in asked:
            assert not state.complete
            state.take(response)
    assert state.complete
    assert state.received.authorization_policies == (DENY,)


def test_nothing_is_complete_before_the_last_type_was_answered() -> None:
    state = DiscoveryState(NODE)
    *most, last = everything(DENY)
    for response in most:
        state.take(response)
        assert not state.complete
    state.take(last)
    assert state.complete
    assert state.received.authorization_policies == (DENY,)
    assert state.received.config == MeshConfig()
    assert state.received.unread == ()


def test_what_is_understood_is_acknowledged_with_its_nonce() -> None:
    answer = DiscoveryState(NODE).take(respond(POLICY_URL, encode_resource(DENY, "1"), nonce="n7"))
    assert answer.response_nonce == "n7"
    assert answer.type_url == POLICY_URL
    assert not answer.HasField("error_detail")
    assert not answer.resource_names_subscribe


def test_what_did_not_change_is_the_same_object() -> None:
    state = told(DENY, STRICT)
    before = state.received
    state.take(respond(URL_OF[PeerAuthentication], removed=["foo/strict"], version="2"))
    after = state.received
    assert after.version == "2"
    assert after.peer_authentications == ()
    assert after.authorization_policies is before.authorization_policies


def test_a_resource_that_is_sent_again_unchanged_is_the_same_object() -> None:
    state = told(DENY)
    before = state.received.authorization_policies
    state.take(respond(POLICY_URL, encode_resource(DENY, "1"), version="2"))
    assert state.received.authorization_policies is before


def test_removed_resources_are_gone() -> None:
    state = told(DENY)
    state.take(respond(POLICY_URL, removed=["foo/deny", "foo/never-there"]))
    assert state.received.authorization_policies == ()


def test_a_new_stream_tells_what_is_held_so_that_only_the_difference_is_sent() -> None:
    state = told(DENY, STRICT)
    state.take(respond(POLICY_URL, unreadable()))
    versions = {one.type_url: dict(one.initial_resource_versions) for one in state.subscribe()}
    assert versions[POLICY_URL] == {"foo/deny": "1", "foo/broken": "9"}
    assert versions[MESH_CONFIG_URL] == {"mesh": "1"}
    assert versions[URL_OF[ServiceEntry]] == {}


def test_what_is_not_understood_is_named_and_does_not_undo_the_rest() -> None:
    state = told()
    answer = state.take(respond(POLICY_URL, unreadable(), encode_resource(DENY, "1"), nonce="n2"))
    assert answer.response_nonce == "n2"
    assert answer.error_detail.code == 3
    assert "AuthorizationPolicy foo/broken: " in answer.error_detail.message
    assert state.received.authorization_policies == (DENY,)
    assert [str(one) for one in state.received.unread] == ["AuthorizationPolicy foo/broken"]


def test_a_good_version_heals_what_was_not_understood() -> None:
    state = told()
    state.take(respond(POLICY_URL, encode_unreadable(Refused("x", "foo", "deny"), "0")))
    assert state.received.unread
    state.take(respond(POLICY_URL, encode_resource(DENY, "1")))
    assert state.received.unread == ()
    assert state.received.authorization_policies == (DENY,)


def test_a_good_policy_that_becomes_unreadable_is_not_good_any_more() -> None:
    state = told(DENY)
    state.take(respond(POLICY_URL, encode_unreadable(Refused("x", "foo", "deny"), "2")))
    assert state.received.authorization_policies == ()
    assert [one.name for one in state.received.unread] == ["foo/deny"]


@pytest.mark.parametrize("kind", [ServiceEntry, DestinationRule])
def test_the_hosts_of_what_is_not_understood_are_told_when_they_can_be(kind: type) -> None:
    spec = "{hosts: [a.test]" if kind is ServiceEntry else "{host: a.test"
    (one,) = resources(f"""
apiVersion: networking.istio.io/v1
kind: {kind.__name__}
metadata: {{name: a, namespace: foo}}
spec: {spec}, exportTo: ["*"], {"ports: [{number: 80, name: a}]" if kind is ServiceEntry else ""}}}
""")
    envelope = encode_resource(one, "1")
    envelope.resource.value = envelope.resource.value.replace(b"exportTo", b"exportTx")
    state = told()
    answer = state.take(respond(URL_OF[kind], envelope))
    assert (
        "there is no field 'exportTx' here: did you mean exportTo?" in answer.error_detail.message
    )
    (unread,) = state.received.unread
    assert unread.hosts == ("a.test",)
    assert unread.namespace == "foo"


def test_the_hosts_of_what_has_no_body_are_unknown() -> None:
    state = told()
    state.take(respond(URL_OF[ServiceEntry], unreadable("ServiceEntry")))
    assert [one.hosts for one in state.received.unread] == [()]


def test_missing_mesh_settings_are_not_taken_for_the_defaults() -> None:
    state = told()
    state.take(respond(MESH_CONFIG_URL, removed=["mesh"]))
    assert state.complete
    assert state.received.config is None
    assert [str(one) for one in state.received.unread] == ["MeshConfig mesh"]


def test_mesh_settings_of_another_name_are_not_understood() -> None:
    envelope = encode_mesh_config(MeshConfig(trust_domain="evil.test"), "1")
    envelope.name = "other"
    state = told()
    assert state.take(respond(MESH_CONFIG_URL, envelope)).HasField("error_detail")
    assert state.received.config == MeshConfig()
    assert [one.name for one in state.received.unread] == ["other"]


def test_a_type_that_nobody_asked_for_is_refused() -> None:
    state = told()
    before = state.received
    answer = state.take(respond("type.test/Unknown", unreadable()))
    assert "nobody asked for the type 'type.test/Unknown'" in answer.error_detail.message
    assert state.received is before


def test_a_refusal_stays_short_however_much_is_wrong() -> None:
    answer = told().take(respond(POLICY_URL, *(unreadable(name=f"p{n}") for n in range(500))))
    assert len(answer.error_detail.message) < 2100
