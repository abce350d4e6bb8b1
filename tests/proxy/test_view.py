"""The compiled policies of one workload, and that nothing is compiled twice."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address

import pytest

from mesh.discovery.codec import encode_resource, encode_unreadable
from mesh.discovery.node import ProxyNode
from mesh.discovery.types import URL_OF
from mesh.policy.decision import Why
from mesh.policy.facts import Connection
from mesh.policy.rules import compile_policy
from mesh.policy.selection import Workload
from mesh.resources.mesh_config import ExtensionProvider, MeshConfig
from mesh.resources.networking import ServiceEntry, WorkloadEntry
from mesh.resources.problem import Refused
from mesh.resources.security import AuthorizationPolicy, PeerAuthentication
from proxy.discovery_state import DiscoveryState
from proxy.mode import MtlsMode
from proxy.received import Received
from proxy.view import PortMode, Registered, ViewCompiler, fixed_view
from tests.proxy.control import NODE, resources, respond, told

WORKLOAD = Workload(namespace=NODE.namespace, labels=NODE.labels)

PORTS = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: ports, namespace: foo}
spec:
  selector: {matchLabels: {app: httpbin}}
  mtls: {mode: STRICT}
  portLevelMtls: {8080: {mode: DISABLE}}
"""

POLICIES = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: one, namespace: foo}
spec: {action: DENY, rules: [{to: [{operation: {ports: ["1"]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: two, namespace: foo}
spec: {action: DENY, rules: [{to: [{operation: {ports: ["2"]}}]}]}
"""


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the policies that get compiled."""
    names: list[str] = []

    def compile_and_note(policy: AuthorizationPolicy, *rest: object) -> object:
        names.append(policy.metadata.name)
        return compile_policy(policy, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("proxy.view.compile_policy", compile_and_note)
    return names


def test_modes_are_per_port_and_say_who_decided() -> None:
    modes = ViewCompiler(WORKLOAD).compile(told(*resources(PORTS)).received).modes
    assert modes.of_port(8080) == PortMode(mode=MtlsMode.DISABLE, decided_by="foo/ports")
    assert modes.of_port(9090) == PortMode(mode=MtlsMode.STRICT, decided_by="foo/ports")


def test_without_policies_istios_default_holds() -> None:
    view = ViewCompiler(WORKLOAD).compile(told().received)
    assert view.modes.of_port(80) == PortMode(mode=MtlsMode.PERMISSIVE)
    assert view.unread == ()


def test_a_flag_holds_for_every_port() -> None:
    assert fixed_view(MtlsMode.STRICT).modes.of_port(80) == PortMode(mode=MtlsMode.STRICT)


def test_only_the_changed_policy_is_compiled_again(compiled: list[str]) -> None:
    state = told(*resources(POLICIES))
    compiler = ViewCompiler(WORKLOAD)
    compiler.compile(state.received)
    assert sorted(compiled) == ["one", "two"]
    changed = resources(POLICIES.replace('"2"', '"3"'))[1]
    state.take(respond(URL_OF[AuthorizationPolicy], encode_resource(changed, "2")))
    compiler.compile(state.received)
    assert sorted(compiled) == ["one", "two", "two"]


def test_a_change_of_modes_leaves_authorization_as_it_is(compiled: list[str]) -> None:
    state = told(*resources(POLICIES))
    compiler = ViewCompiler(WORKLOAD)
    before = compiler.compile(state.received)
    strict = encode_resource(resources(PORTS)[0], "2")
    state.take(respond(URL_OF[PeerAuthentication], strict))
    after = compiler.compile(state.received)
    assert after.authorization is before.authorization
    assert after.modes.of_port(1).mode is MtlsMode.STRICT
    assert len(compiled) == 2


def test_other_mesh_settings_compile_everything_again(compiled: list[str]) -> None:
    compiler = ViewCompiler(WORKLOAD)
    given = resources(POLICIES)
    compiler.compile(told(*given).received)
    view = compiler.compile(told(*given, config=MeshConfig(trust_domain="td1")).received)
    assert len(compiled) == 4
    assert view.trust_domains is not None
    assert view.trust_domains.names == ("td1",)


def test_policies_of_other_workloads_are_left_out(compiled: list[str]) -> None:
    other = Workload(namespace="bar")
    ViewCompiler(other).compile(told(*resources(POLICIES)).received)
    assert compiled == []


@pytest.mark.parametrize("kind", ["AuthorizationPolicy", "PeerAuthentication"])
def test_a_policy_that_is_not_understood_is_named(kind: str) -> None:
    state = told()
    url = URL_OF[AuthorizationPolicy if kind == "AuthorizationPolicy" else PeerAuthentication]
    state.take(respond(url, encode_unreadable(Refused(kind, "foo", "new"), "1")))
    assert ViewCompiler(WORKLOAD).compile(state.received).unread == (f"{kind} foo/new",)


def test_a_service_that_is_not_understood_closes_no_door_to_the_app() -> None:
    state = told()
    broken = encode_unreadable(Refused("ServiceEntry", "foo", "new"), "1")
    state.take(respond(URL_OF[ServiceEntry], broken))
    assert ViewCompiler(WORKLOAD).compile(state.received).unread == ()


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(None, None), ("0s", math.inf), ("250ms", 0.25), ("1m", timedelta(minutes=1).total_seconds())],
)
def test_the_detection_timeout_is_the_mesh_settings(
    written: str | None, seconds: float | None
) -> None:
    received = replace(Received(), config=MeshConfig(protocol_detection_timeout=written))
    assert ViewCompiler(WORKLOAD).compile(received).detect_timeout == seconds


REGISTERED = Registered(group="web", addresses=("10.0.0.1",))

ENTRY = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: web-10.0.0.1
  namespace: foo
  annotations: {istio.io/autoRegistrationGroup: GROUP}
spec: {address: ADDRESS, labels: {app: httpbin, team: a}, serviceAccount: httpbin}
"""

OF_THE_TEAM = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: foo}
spec:
  selector: {matchLabels: {team: TEAM}}
  action: DENY
  rules: [{}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: foo}
spec: {selector: {matchLabels: {team: TEAM}}, mtls: {mode: STRICT}}
"""

ANYBODY = Connection(
    peer=None,
    source_ip=ip_address("10.0.0.9"),
    destination_ip=ip_address("10.0.0.1"),
    destination_port=80,
)


def own_entry(group: str = "web", address: str = "10.0.0.1", team: str = "a") -> str:
    text = ENTRY.replace("GROUP", group).replace("ADDRESS", address)
    return text.replace("team: a", f"team: {team}")


@pytest.mark.parametrize("team", ["a", "b"])
def test_a_registered_workload_is_selected_by_the_labels_of_its_entry(team: str) -> None:
    """A policy for a label of the group must not be missed, whatever the proxy's own flags say."""
    text = own_entry() + "---" + OF_THE_TEAM.replace("TEAM", team)
    view = ViewCompiler(WORKLOAD, REGISTERED).compile(told(*resources(text)).received)
    assert view.unread == ()
    assert view.authorization.decide(ANYBODY).allowed is (team == "b")
    assert (view.modes.of_port(80).mode is MtlsMode.STRICT) is (team == "a")


def test_labels_that_change_are_taken_over() -> None:
    compiler = ViewCompiler(WORKLOAD, REGISTERED)
    policy = OF_THE_TEAM.replace("TEAM", "b")
    before = compiler.compile(told(*resources(own_entry() + "---" + policy)).received)
    assert before.authorization.decide(ANYBODY).allowed
    after = compiler.compile(told(*resources(own_entry(team="b") + "---" + policy)).received)
    assert not after.authorization.decide(ANYBODY).allowed
    assert after.modes.of_port(80).mode is MtlsMode.STRICT


@pytest.mark.parametrize(("group", "address"), [("other", "10.0.0.1"), ("web", "10.0.0.2")])
def test_without_its_entry_a_registered_workload_lets_nobody_in(group: str, address: str) -> None:
    received = told(*resources(own_entry(group, address))).received
    view = ViewCompiler(WORKLOAD, REGISTERED).compile(received)
    assert view.unread == ("WorkloadEntry of the group web",)


def test_a_proxy_that_registers_asks_for_its_entry_even_if_it_calls_nobody() -> None:
    def asked(node: ProxyNode) -> set[str]:
        return {request.type_url for request in DiscoveryState(node, ()).subscribe()}

    assert asked(replace(NODE, group="web")) - asked(NODE) == {URL_OF[WorkloadEntry]}


CUSTOM = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: foo}
spec: {action: CUSTOM, provider: {name: ask}, rules: [{}]}
"""


@pytest.mark.parametrize("kind", ["envoy_ext_authz_http", "envoy_ext_authz_grpc"])
def test_nobody_passes_a_provider_that_is_never_asked(kind: str) -> None:
    """HTTP comes as TCP here, by which Istio passes a provider that speaks HTTP alone."""
    provider = ExtensionProvider(name="ask", **{kind: {"service": "x", "port": 1}})
    config = MeshConfig(extension_providers=(provider,))
    view = ViewCompiler(WORKLOAD).compile(told(*resources(CUSTOM), config=config).received)
    decision = view.authorization.decide(ANYBODY)
    assert not decision.allowed
    assert decision.why is Why.CUSTOM_UNSUPPORTED
