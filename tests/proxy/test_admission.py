"""What is refused at which step of a connection, by what is known of it then."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from mesh.discovery.codec import encode_unreadable
from mesh.discovery.types import URL_OF
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.problem import Refused
from mesh.resources.security import RequestAuthentication
from mesh.spiffe import SpiffeId
from proxy.admission import Known, refusal
from proxy.policy_errors import AccessDenied, PolicyChanged
from proxy.report import Transport
from proxy.view import View, ViewCompiler
from tests.proxy.control import resources, respond, told
from tests.proxy.network import CLIENT_ID
from tests.proxy.test_view import WORKLOAD

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: foo}
spec: {mtls: {mode: STRICT}}
"""

ONLY_SLEEP = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-sleep, namespace: foo}
spec: {rules: [{from: [{source: {principals: [cluster.local/ns/foo/sa/sleep]}}]}]}
"""

NO_SNI = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: by-sni, namespace: foo}
spec: {action: DENY, rules: [{when: [{key: connection.sni, values: [secret.test]}]}]}
"""

CUSTOM = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: foo}
spec: {action: CUSTOM, provider: {name: opa}, rules: [{}]}
"""


def view_of(*texts: str, config: MeshConfig | None = None) -> View:
    given = resources("\n---\n".join(texts))
    return ViewCompiler(WORKLOAD).compile(told(*given, config=config).received)


def known(
    transport: Transport | None = None,
    peer: SpiffeId | None = None,
    *,
    sni: str | None = None,
    identified: bool = True,
) -> Known:
    return Known(
        peer="10.0.0.9:4242",
        port=8080,
        source_ip=ip_address("10.0.0.9"),
        destination_ip=ip_address("10.0.0.2"),
        transport=transport,
        sni=sni,
        peer_id=peer,
        identified=identified,
    )


def reason(view: View, what: Known) -> str | None:
    denial = refusal(view, what)
    return None if denial is None else denial.reason


JUST_ACCEPTED = known(identified=False)
SHAKING_HANDS = known(Transport.MTLS, identified=False)
MUTUAL = known(Transport.MTLS, CLIENT_ID)
PLAIN = known(Transport.PLAINTEXT)
PASSED = known(Transport.PASSTHROUGH, sni="secret.test")


@pytest.mark.parametrize("what", [JUST_ACCEPTED, SHAKING_HANDS, MUTUAL, PLAIN, PASSED])
def test_without_policies_everything_may_be(what: Known) -> None:
    assert refusal(view_of(), what) is None


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (JUST_ACCEPTED, None),
        (SHAKING_HANDS, None),
        (MUTUAL, None),
        (PLAIN, "plaintext_on_strict"),
        (PASSED, "plaintext_on_strict"),
    ],
)
def test_strict_takes_mutual_tls_only(what: Known, expected: str | None) -> None:
    assert reason(view_of(STRICT), what) == expected


def test_a_refusal_by_mode_names_the_policy() -> None:
    denial = refusal(view_of(STRICT), PLAIN)
    assert denial is not None
    assert denial.facts == {"policy": "foo/strict"}
    assert "which is STRICT by PeerAuthentication foo/strict" in str(denial)


def test_authorization_waits_until_it_is_known_who_the_peer_is() -> None:
    view = view_of(ONLY_SLEEP)
    assert refusal(view, JUST_ACCEPTED) is None
    assert refusal(view, SHAKING_HANDS) is None
    assert refusal(view, MUTUAL) is None
    other = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/other")
    assert reason(view, known(Transport.MTLS, other)) == "rbac_access_denied"
    assert reason(view, PLAIN) == "rbac_access_denied"


def test_a_denial_names_policy_rule_and_envoys_detail() -> None:
    denial = refusal(view_of(NO_SNI), PASSED)
    assert isinstance(denial, AccessDenied)
    assert denial.facts == {
        "response_code_details": "rbac_access_denied_matched_policy"
        "[ns[foo]-policy[by-sni]-rule[0]]",
        "policy": "foo/by-sni",
        "rule": 0,
    }
    assert "peer 10.0.0.9:4242 was denied by rule 0" in str(denial)


def test_a_default_denial_has_no_rule() -> None:
    denial = refusal(view_of(ONLY_SLEEP), PLAIN)
    assert denial is not None
    assert denial.facts == {"response_code_details": "rbac_access_denied_matched_policy[none]"}


def test_the_server_name_is_known_of_passed_tls_and_not_of_plaintext() -> None:
    assert reason(view_of(NO_SNI), PASSED) == "rbac_access_denied"
    assert reason(view_of(NO_SNI), PLAIN) is None


def test_custom_is_a_denial_that_says_what_is_missing() -> None:
    denial = refusal(view_of(CUSTOM), MUTUAL)
    assert denial is not None
    assert denial.reason == "custom_unsupported"
    assert "deny-due-to-bad-CUSTOM-action" in str(denial.facts["response_code_details"])


def test_a_trust_domain_that_is_not_the_meshs_is_refused() -> None:
    view = view_of(config=MeshConfig(trust_domain="td1", trust_domain_aliases=("td2",)))
    assert reason(view, MUTUAL) == "wrong_trust_domain"
    friend = SpiffeId.parse("spiffe://td2/ns/foo/sa/sleep")
    assert refusal(view, known(Transport.MTLS, friend)) is None


def test_while_a_policy_is_not_understood_nobody_comes_in() -> None:
    state = told()
    url = URL_OF[RequestAuthentication]
    state.take(respond(url, encode_unreadable(Refused("x", "foo", "jwt"), "1")))
    view = ViewCompiler(WORKLOAD).compile(state.received)
    for what in (JUST_ACCEPTED, MUTUAL, PLAIN):
        assert reason(view, what) == "policy_not_understood"
    assert "RequestAuthentication foo/jwt" in str(refusal(view, PLAIN))


def test_a_changed_policy_is_named_with_what_it_denies() -> None:
    denial = refusal(view_of(STRICT), PLAIN)
    assert denial is not None
    changed = PolicyChanged(denial)
    assert changed.reason == "policy_changed"
    assert changed.facts == {"policy": "foo/strict", "cause": "plaintext_on_strict"}
    assert str(denial) in str(changed)
