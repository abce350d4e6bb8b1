"""Members of a federated trust domain get in only by a policy that names it."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from mesh.policy.authorization import Authorization
from mesh.policy.rules import compile_policy
from mesh.policy.trust_domains import TrustDomains
from mesh.resources.loader import load_resources
from mesh.resources.security import AuthorizationPolicy
from mesh.spiffe import SpiffeId
from proxy.admission import Known, refusal
from proxy.errors import WrongTrustDomain
from proxy.mode import MtlsMode
from proxy.policy_errors import AccessDenied
from proxy.report import Transport
from proxy.view import FixedMode, View

OWN = TrustDomains(("west.test",))
FRIEND = SpiffeId.parse("spiffe://east.test/ns/foo/sa/sleep")
MEMBER = SpiffeId.parse("spiffe://west.test/ns/foo/sa/sleep")

POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p{number}, namespace: foo}}
spec:
  action: {action}
  rules: [{{from: [{{source: {{principals: ["{principal}"]}}}}]}}]
"""


def view(*principals: str, action: str = "ALLOW") -> View:
    texts = [
        POLICY.format(number=number, action=action, principal=principal)
        for number, principal in enumerate(principals)
    ]
    loaded = load_resources("---\n".join(texts))
    assert not loaded.problems
    policies = [one for one in loaded.resources if isinstance(one, AuthorizationPolicy)]
    compiled = [compile_policy(policy, OWN) for policy in policies]
    return View(
        modes=FixedMode(MtlsMode.STRICT),
        authorization=Authorization(compiled),
        trust_domains=OWN,
    )


def known(identity: SpiffeId) -> Known:
    local = ip_address("127.0.0.1")
    return Known(
        peer="client",
        port=80,
        source_ip=local,
        destination_ip=local,
        transport=Transport.MTLS,
        peer_id=identity,
        identified=True,
    )


def test_without_policies_only_the_mesh_gets_in() -> None:
    assert refusal(view(), known(MEMBER)) is None
    assert isinstance(refusal(view(), known(FRIEND)), WrongTrustDomain)


@pytest.mark.parametrize(
    "principal", ["east.test/ns/foo/sa/sleep", "east.test/*", "east.test/ns/foo/*"]
)
def test_a_policy_that_names_the_trust_domain_lets_its_members_in(principal: str) -> None:
    assert refusal(view(principal), known(FRIEND)) is None


@pytest.mark.parametrize("principal", ["*", "*/ns/foo/sa/sleep", "east*"])
def test_wildcards_name_no_trust_domain(principal: str) -> None:
    assert isinstance(refusal(view(principal), known(FRIEND)), WrongTrustDomain)


def test_a_policy_that_names_somebody_else_there_does_not_help() -> None:
    assert isinstance(refusal(view("east.test/ns/foo/sa/other"), known(FRIEND)), AccessDenied)
    both = view("east.test/ns/foo/sa/other", "*")
    assert isinstance(refusal(both, known(FRIEND)), WrongTrustDomain)
    assert refusal(both, known(MEMBER)) is None


def test_naming_in_order_to_deny_does_not_let_in() -> None:
    deny = view("east.test/ns/foo/sa/other", action="DENY")
    assert isinstance(refusal(deny, known(FRIEND)), WrongTrustDomain)
    assert refusal(deny, known(MEMBER)) is None
