"""Which requests pass with whose claims, which are refused, and what the application sees."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from mesh.policy.errors import Fault
from mesh.policy.facts import HttpRequest
from mesh.policy.request_authentication import (
    Passed,
    Refused,
    RequestAuthenticator,
    claim_text,
)
from mesh.policy.token_places import without_parameter
from mesh.policy.tokens import KeySet
from mesh.resources.security import JwtRule, RequestAuthentication
from tests.mesh.policy.builders import resource
from tests.token_makers import jwks, token

NOW = 1_700_000_000.0
GOOD = token({"iss": "one", "sub": "me"})
OTHER = token({"iss": "two", "sub": "you"}, "key-2")
EXPIRED = token({"iss": "one", "exp": 1})
ONE: dict[str, Any] = {"issuer": "one", "jwks": jwks("key-1")}
TWO: dict[str, Any] = {"issuer": "two", "jwks": jwks("key-2")}


def policy(*rules: dict[str, Any], name: str = "jwt") -> RequestAuthentication:
    found = resource("RequestAuthentication", name, {"jwtRules": list(rules)})
    assert isinstance(found, RequestAuthentication)
    return found


def no_keys(_rule: JwtRule) -> KeySet | None:
    return None


def ask(
    *rules: dict[str, Any],
    target: str = "/",
    method: str = "GET",
    keys: Any = no_keys,
    **headers: str,
) -> Passed | Refused:
    lines = [(name.replace("_", "-"), value) for name, value in headers.items()]
    request = HttpRequest.of(method, target, "b.ns1", lines)
    return RequestAuthenticator([policy(*rules)], keys).authenticate(request, NOW)


def passed(*rules: dict[str, Any], **given: Any) -> Passed:
    outcome = ask(*rules, **given)
    assert isinstance(outcome, Passed), outcome
    return outcome


def refused(*rules: dict[str, Any], **given: Any) -> Fault:
    outcome = ask(*rules, **given)
    assert isinstance(outcome, Refused), outcome
    return outcome.fault


def subject(*rules: dict[str, Any], **given: Any) -> Any:
    claims = passed(*rules, **given).request.claims
    return None if claims is None else claims.get("sub")


def bearer(text: str) -> str:
    return f"Bearer {text}"


@pytest.mark.parametrize(
    ("rule", "given", "who"),
    [
        ({}, {"authorization": bearer(GOOD)}, "me"),
        ({}, {"authorization": "x " + bearer(GOOD)}, "me"),
        ({}, {"authorization": "Bearer   " + GOOD}, "me"),
        ({}, {"authorization": "bearer " + GOOD}, None),
        ({}, {"authorization": "Basic dXNlcg=="}, None),
        ({}, {"authorization": GOOD}, None),
        ({}, {"target": f"/?access_token={GOOD}"}, "me"),
        ({}, {"target": f"/?a=b&access%5Ftoken={GOOD}&c"}, "me"),
        ({}, {"target": f"/?token={GOOD}"}, None),
        ({"fromHeaders": [{"name": "X"}]}, {"x": GOOD}, "me"),
        ({"fromHeaders": [{"name": "X"}]}, {"authorization": bearer(GOOD)}, None),
        ({"fromHeaders": [{"name": "X", "prefix": "Token "}]}, {"x": "Token " + GOOD}, "me"),
        ({"fromHeaders": [{"name": "X", "prefix": "Token "}]}, {"x": GOOD}, None),
        ({"fromParams": ["t"]}, {"target": f"/?t={GOOD}"}, "me"),
        ({"fromParams": ["t"]}, {"authorization": bearer(GOOD)}, None),
        ({"fromCookies": ["c"]}, {"cookie": f"a=b; c={GOOD}; c=x"}, "me"),
        ({"fromCookies": ["c"]}, {"cookie": f'c="{GOOD}"'}, "me"),
        ({"fromCookies": ["c"]}, {"cookie": f"cc={GOOD}"}, None),
        ({}, {}, None),
    ],
    ids=map(str, count()),
)  # fmt: skip
def test_places(rule: dict[str, Any], given: dict[str, str], who: str | None) -> None:
    assert subject({**ONE, **rule}, **given) == who


@pytest.mark.parametrize(
    ("rule", "given", "fault"),
    [
        ({}, {"authorization": "Bearer x"}, Fault.BAD_FORM),
        ({}, {"authorization": "Bearer !"}, Fault.BAD_FORM),
        ({}, {"authorization": bearer(EXPIRED)}, Fault.EXPIRED),
        ({}, {"authorization": bearer(OTHER)}, Fault.UNKNOWN_ISSUER),
        ({}, {"authorization": bearer(token({"iss": "one"}, "key-2"))}, Fault.NO_KEY),
        ({"audiences": ["a"]}, {"authorization": bearer(GOOD)}, Fault.AUDIENCE_REFUSED),
        # One bad token of several is one too many under a single rule, wherever it is.
        ({}, {"authorization": bearer(GOOD), "target": f"/?access_token={EXPIRED}"}, Fault.EXPIRED),
        ({}, {"authorization": bearer(EXPIRED), "target": f"/?access_token={GOOD}"}, Fault.EXPIRED),
        # The audience is looked at before the signature.
        ({"audiences": ["a"]}, {"authorization": bearer(token({"iss": "one"}, "key-2"))},
         Fault.AUDIENCE_REFUSED),
    ],
    ids=map(str, count()),
)  # fmt: skip
def test_tokens_that_are_no_good(rule: dict[str, Any], given: dict[str, str], fault: Fault) -> None:
    assert refused({**ONE, **rule}, **given) is fault


def test_a_refusal_is_envoys() -> None:
    outcome = ask(ONE, authorization=bearer(EXPIRED), target='/a"?b=' + "c" * 300)
    assert isinstance(outcome, Refused)
    assert (outcome.status, outcome.body) == (401, "Jwt is expired")
    assert outcome.www_authenticate.startswith('Bearer realm="http://b.ns1/a%22?b=ccc')
    assert outcome.www_authenticate.endswith('c", error="invalid_token"')
    assert len(outcome.www_authenticate) < 320
    assert outcome.detail == "jwt_authn_access_denied{Jwt_is_expired}"
    audience = ask({**ONE, "audiences": ["a"]}, authorization=bearer(GOOD))
    assert isinstance(audience, Refused)
    assert audience.status == 403


def test_several_rules_need_one_good_token() -> None:
    at_x = {**TWO, "fromHeaders": [{"name": "x"}]}
    assert subject(ONE, TWO, authorization=bearer(OTHER)) == "you"
    assert subject(ONE, at_x, authorization=bearer(EXPIRED), x=OTHER) == "you"
    assert subject(ONE, at_x, authorization=bearer(GOOD), x="bad") == "me"
    assert refused(ONE, at_x, authorization=bearer(EXPIRED)) is Fault.EXPIRED
    assert refused(ONE, at_x, x="bad") is Fault.BAD_FORM
    assert subject(ONE, at_x) is None
    stranger = token({"iss": "three"})
    assert refused(ONE, TWO, authorization=bearer(stranger)) is Fault.UNKNOWN_ISSUER
    assert refused(ONE, TWO, authorization=bearer(EXPIRED)) is Fault.EXPIRED


def test_an_issuer_may_have_several_rules() -> None:
    again = {**ONE, "jwks": jwks("key-2")}
    assert subject(ONE, again, authorization=bearer(GOOD)) == "me"
    assert (
        subject(again, ONE, authorization=bearer(token({"iss": "one", "sub": "a"}, "key-2"))) == "a"
    )


def test_rules_of_all_policies_are_pooled() -> None:
    request = HttpRequest.of("GET", "/", "b", [("authorization", bearer(OTHER))])
    both = [policy(ONE, name="a"), policy(TWO, name="b")]
    outcome = RequestAuthenticator(both, no_keys).authenticate(request, NOW)
    assert isinstance(outcome, Passed)
    none = RequestAuthenticator([], no_keys).authenticate(request, NOW)
    assert isinstance(none, Passed)
    assert none.request == request


def test_a_rule_without_issuer_takes_any() -> None:
    rule = {"jwksUri": "https://k"}
    found = KeySet.parse(jwks("key-1"))
    for claims in ({"iss": "x", "sub": "a"}, {"sub": "a"}):
        given = bearer(token(claims))
        assert subject(rule, authorization=given, keys=lambda _rule: found) == "a"


def test_keys_that_cannot_be_had_refuse_whoever_shows_a_token() -> None:
    rule = {"issuer": "one", "jwksUri": "https://k"}
    assert refused(rule, authorization=bearer(GOOD)) is Fault.NO_KEY
    assert subject(rule) is None


@pytest.mark.parametrize(
    ("method", "headers", "skipped"),
    [
        ("OPTIONS", {"origin": "a", "access_control_request_method": "GET"}, True),
        ("OPTIONS", {"origin": "", "access_control_request_method": "GET"}, False),
        ("OPTIONS", {"access_control_request_method": "GET"}, False),
        ("OPTIONS", {"origin": "a"}, False),
        ("GET", {"origin": "a", "access_control_request_method": "GET"}, False),
    ],
)
def test_a_preflight_is_not_asked(method: str, headers: dict[str, str], skipped: bool) -> None:
    outcome = ask(ONE, method=method, authorization=bearer(EXPIRED), **headers)
    assert isinstance(outcome, Passed) is skipped


CLAIMS = {
    "iss": "one", "n": 42, "f": 1.5, "m": -1, "t": True, "l": [1, "a"], "o": {"a": {"b": "x"}},
    "e": "", "z": None, "c": "a\r\nb",
}  # fmt: skip
NAMES = ("n", "f", "m", "t", "l", "o.a.b", "o.a", "e", "z", "c", "x", "iss.y", "iss")


def test_outputs_replace_whatever_the_client_sent() -> None:
    outputs = [{"header": f"X-{index}", "claim": name} for index, name in enumerate(NAMES)]
    rule = {**ONE, "outputPayloadToHeader": "X-Payload", "outputClaimToHeaders": outputs}
    spoofed = {f"x_{index}": "spoof" for index in range(len(NAMES))}
    text = token(CLAIMS)
    outcome = passed(rule, authorization=bearer(text), x_payload="spoof", x_other="kept", **spoofed)
    assert dict(outcome.added) == {
        "x-payload": text.split(".")[1],
        "x-0": "42",
        "x-1": "1.500000",
        "x-2": "-1.000000",
        "x-3": "true",
        "x-4": "WzEsImEiXQ==",
        "x-5": "x",
        "x-6": "eyJiIjoieCJ9",
        "x-12": "one",
    }
    seen = outcome.request.headers
    assert seen["x-0"] == ("42",)
    assert seen["x-other"] == ("kept",)
    assert "spoof" not in str(seen)
    without = passed(rule, x_payload="spoof", **spoofed)
    assert without.request.headers == {}
    assert "x-payload" in without.removed


def test_every_rule_protects_its_outputs() -> None:
    rule = {**TWO, "outputPayloadToHeader": "x-two"}
    assert "x-two" not in passed(ONE, rule, authorization=bearer(GOOD), x_two="a").request.headers


def test_an_accepted_token_goes_no_further_unless_that_is_wanted() -> None:
    outcome = passed(ONE, authorization=bearer(GOOD), target=f"/p?a=1&access_token={GOOD}&b=%2F")
    assert outcome.request.headers == {}
    assert outcome.request.target == "/p?a=1&b=%2F"
    assert "authorization" in outcome.removed
    kept = passed({**ONE, "forwardOriginalToken": True}, authorization=bearer(GOOD))
    assert kept.request.header_lines("authorization") == (bearer(GOOD),)


def test_claims_come_with_what_they_are_split_by() -> None:
    rule = {**ONE, "spaceDelimitedClaims": ["roles"]}
    text = token({"iss": "one", "roles": "a b"})
    request = passed(rule, authorization=bearer(text)).request
    assert request.claim(("roles",)) == ("a", "b")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/p?t=1", "/p"),
        ("/p?t=1&t=2", "/p"),
        ("/p?a&t=1&&b=", "/p?a&b="),
        ("/p?%74=1", "/p"),
        ("/p?tt=1", "/p?tt=1"),
        ("/p", "/p"),
    ],
)
def test_a_parameter_is_taken_out_and_the_others_left(target: str, expected: str) -> None:
    assert without_parameter(target, "t") == expected


def test_claims_as_text() -> None:
    assert claim_text(2**63) == str(2**63)
    assert claim_text(2.0) == "2"
    assert claim_text(False) == "false"
    assert claim_text([]) == "W10="
