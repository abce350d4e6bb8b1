"""A real Envoy, configured as Istio would, and our RequestAuthentication: the same answers.

Each scenario is a path prefix with its own rules; one Envoy answers them all.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.clock import system_now
from mesh.policy.facts import HttpRequest
from mesh.policy.request_authentication import Refused, RequestAuthenticator
from mesh.resources.security import RequestAuthentication
from tests.interop.envoy import Json, cluster, running_with, socket_address
from tests.interop.test_envoy import free_port
from tests.mesh.policy.builders import resource
from tests.token_makers import by_hand, jwks, section, token

pytestmark = pytest.mark.e2e

HOST = "b.ns1"
GOOD = token({"iss": "one", "sub": "me"})
OTHER = token({"iss": "two", "sub": "you"}, "key-2")
EXPIRED = token({"iss": "one", "exp": 1})
ONE: Json = {"issuer": "one", "jwks": jwks("key-1")}
TWO: Json = {"issuer": "two", "jwks": jwks("key-2")}
RS256 = {"alg": "RS256"}
CLAIMS = {
    "iss": "one", "n": 42, "f": 1.5, "m": -1, "t": True, "l": [1, "a"], "o": {"a": {"b": "x"}},
    "e": "", "z": None,
}  # fmt: skip
OUTPUTS = ("n", "f", "m", "t", "l", "o.a.b", "o.a", "e", "z", "x", "iss.y", "iss")
OUTPUT: Json = {
    **ONE,
    "outputPayloadToHeader": "X-Payload",
    "outputClaimToHeaders": [
        {"header": f"X-{index}", "claim": name} for index, name in enumerate(OUTPUTS)
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Rules, and a request: header lines in order, and a query."""

    rules: tuple[Json, ...]
    lines: tuple[tuple[str, str], ...] = ()
    query: str = ""
    method: str = "GET"


def ask(
    *rules: Json, query: str = "", method: str = "GET", **headers: str | Sequence[str]
) -> Scenario:
    lines = [
        (name.replace("_", "-"), line)
        for name, given in headers.items()
        for line in ([given] if isinstance(given, str) else given)
    ]
    return Scenario(rules=rules, lines=tuple(lines), query=query, method=method)


def bearers() -> Iterator[str]:
    """Yield what may follow `Bearer `: good tokens, and every way to be a bad one."""
    yield from (GOOD, "  " + GOOD, "x", "!", EXPIRED, OTHER, "a..b", "..", "!.e30.eA", "a.e30.eA")
    yield from (GOOD[:-8] + "AAAAAAAA", f"{GOOD}, Bearer {GOOD}", token({"sub": "no issuer"}))
    yield from (token({"iss": "one"}, "key-2"), token({"iss": "one"}, "key-2", kid=None))
    yield from (token({"iss": "one"}, kid=None), token({"iss": "one"}, kid="key-9"))
    yield from (token({"iss": "one"}, algorithm=name) for name in ("RS512", "PS256"))
    for header in ({"alg": "none"}, {**RS256, "kid": 5}, {}, b"{"):
        yield by_hand(header, {"iss": "one"})
    for claims in (
        b"\xff", {"iss": 5}, {"sub": 5}, {"jti": 5}, {"aud": 5}, {"aud": ["a", 5]}, {"exp": "1"},
        {"exp": -1}, {"nbf": True}, {"nbf": -1}, {"iat": "x"}, {"iat": -1}, {"exp": 1.5},
    ):  # fmt: skip
        yield by_hand(RS256, claims)
    yield f"{section(RS256)}.{section({})}.!"


def times() -> Iterator[str]:
    """Yield tokens that are good or bad at this moment."""
    now = int(system_now().timestamp())
    for claims in (
        {"exp": now + 1000}, {"exp": now - 30}, {"exp": now - 90}, {"exp": 0},
        {"nbf": now + 30}, {"nbf": now + 90},
    ):  # fmt: skip
        yield token({"iss": "one", **claims})


def places() -> Iterator[Scenario]:
    yield from (ask(ONE, authorization=text) for text in ("bearer " + GOOD, "Basic x", GOOD))
    yield ask(ONE, authorization=f"x Bearer {GOOD}")
    for query in (f"access_token={GOOD}", f"a=b&access%5Ftoken={GOOD}&c=d", "access_token="):
        yield ask(ONE, query=query)
    at_x = {**ONE, "fromHeaders": [{"name": "x"}]}
    for value in (GOOD, f"Bearer {GOOD}", "", [GOOD, GOOD], [GOOD, EXPIRED], [EXPIRED, GOOD]):
        yield ask(at_x, x=value)
    yield ask(at_x, authorization=f"Bearer {GOOD}")
    prefixed = {**ONE, "fromHeaders": [{"name": "x", "prefix": "Token "}]}
    yield from (ask(prefixed, x=value) for value in (f"Token {GOOD}", f"a Token {GOOD}", GOOD))
    in_cookie = {**ONE, "fromCookies": ["c"]}
    for cookie in (
        f"a=b; c={GOOD}",
        f'c="{GOOD}"',
        f"c=x; c={GOOD}",
        f"c={GOOD}; c=x",
        f"C={GOOD}",
    ):
        yield ask(in_cookie, cookie=cookie)


def several() -> Iterator[Scenario]:
    """Several tokens, rules and audiences."""
    for header, query in ((GOOD, EXPIRED), (EXPIRED, GOOD), (GOOD, GOOD)):
        yield ask(ONE, authorization=f"Bearer {header}", query=f"access_token={query}")
    at_y = {**TWO, "fromHeaders": [{"name": "y"}]}
    yield ask(ONE, TWO, authorization=f"Bearer {OTHER}")
    yield ask(ONE, at_y, authorization=f"Bearer {EXPIRED}", y=OTHER)
    yield ask(ONE, at_y, authorization=f"Bearer {GOOD}", y="bad")
    yield ask(ONE, at_y, authorization=f"Bearer {EXPIRED}")
    yield from (ask(ONE, at_y, y="bad"), ask(ONE, at_y))
    for text in (token({"iss": "three"}), EXPIRED, token({"iss": "two", "exp": 1}, "key-2")):
        yield ask(ONE, TWO, authorization=f"Bearer {text}")
    for text in (GOOD, token({"iss": "one"}, "key-3")):
        yield ask(ONE, {**ONE, "jwks": jwks("key-2")}, authorization=f"Bearer {text}")
    for_a = {**ONE, "audiences": ["a"]}
    for audience in ("a", "https://a/", "http://a", "a//", ["b", "a"], "b", []):
        yield ask(for_a, authorization=f"Bearer {token({'iss': 'one', 'aud': audience})}")
    yield ask(for_a, authorization=f"Bearer {token({'iss': 'one'})}")
    yield ask(for_a, authorization=f"Bearer {token({'iss': 'one'}, 'key-2')}")
    yield ask(for_a, TWO, authorization=f"Bearer {token({'iss': 'one', 'aud': 'c'})}")


def outputs() -> Iterator[Scenario]:
    spoofed = {"x_0": "spoof", "x_9": "spoof", "x_payload": "spoof"}
    yield ask(OUTPUT, authorization=f"Bearer {token(CLAIMS)}", **spoofed)
    yield ask(OUTPUT, **spoofed)
    yield ask(OUTPUT, TWO, authorization=f"Bearer {OTHER}", **spoofed)
    kept = {**OUTPUT, "forwardOriginalToken": True}
    yield ask(kept, authorization=f"Bearer {token(CLAIMS)}")
    asked = {"origin": "a", "access_control_request_method": "GET"}
    for headers in (asked, {"origin": "a"}, {**asked, "origin": ""}):
        yield ask(ONE, method="OPTIONS", authorization=f"Bearer {EXPIRED}", **headers)


def scenarios() -> list[Scenario]:
    texts = (*bearers(), *times())
    with_bearer = (ask(ONE, authorization=f"Bearer {text}") for text in texts)
    return [*with_bearer, *places(), *several(), *outputs()]


def target(index: int, scenario: Scenario) -> str:
    return f"/s{index}/p" + (f"?{scenario.query}" if scenario.query else "")


def provider(rule: Json) -> Json:
    """Write one rule as Istio does."""
    return {
        "issuer": rule["issuer"],
        "audiences": rule.get("audiences", []),
        "local_jwks": {"inline_string": rule["jwks"]},
        "forward": rule.get("forwardOriginalToken", False),
        "from_headers": [
            {"name": one["name"], "value_prefix": one.get("prefix", "")}
            for one in rule.get("fromHeaders", ())
        ],
        "from_cookies": rule.get("fromCookies", []),
        "forward_payload_header": rule.get("outputPayloadToHeader", ""),
        "claim_to_headers": [
            {"header_name": one["header"], "claim_name": one["claim"]}
            for one in rule.get("outputClaimToHeaders", ())
        ],
    }


def token_filter(found: Sequence[Scenario]) -> Json:
    providers: Json = {}
    rules: list[Json] = []
    for index, scenario in enumerate(found):
        ordered = sorted(scenario.rules, key=lambda rule: str(rule["issuer"]))
        named = {f"{index}-{number}": provider(rule) for number, rule in enumerate(ordered)}
        providers |= named
        one_each = [
            {"requires_any": {"requirements": [{"provider_name": name}, {"allow_missing": {}}]}}
            for name in named
        ]
        any_of = [{"provider_name": name} for name in named]
        requires: Json = one_each[0]
        if len(named) > 1:
            every = {"requires_all": {"requirements": one_each}}
            requires = {"requires_any": {"requirements": [*any_of, every]}}
        rules.append({"match": {"prefix": f"/s{index}/"}, "requires": requires})
    return {"providers": providers, "rules": rules, "bypass_cors_preflight": True}


def typed(name: str, kind: str, **config: Any) -> Json:
    path = f"type.googleapis.com/envoy.extensions.filters.{kind}"
    return {"name": name, "typed_config": {"@type": path, **config}}


def configuration(found: Sequence[Scenario], listen: int, forward: int) -> Json:
    authn = typed("authn", "http.jwt_authn.v3.JwtAuthentication", **token_filter(found))
    manager = typed(
        "http",
        "network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="http",
        http_filters=[authn, typed("router", "http.router.v3.Router")],
        route_config={
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "forward"}}],
                }
            ]
        },
    )
    listener = {
        "name": "inbound",
        "address": socket_address("127.0.0.1", listen),
        "filter_chains": [{"filters": [manager]}],
    }
    clusters = [cluster("forward", socket_address("127.0.0.1", forward))]
    return {
        "admin": {"address": socket_address("127.0.0.1", 0)},
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }


class App(BaseHTTPRequestHandler):
    """Answers with what it sees of a request."""

    def do_GET(self) -> None:
        seen = {"path": self.path, "headers": [*self.headers.items()]}
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_OPTIONS = do_GET  # noqa: N815 - the library calls it by the method's name

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def app() -> Iterator[int]:
    """Run the app in a thread of its own; yields its port."""
    with HTTPServer(("127.0.0.1", 0), App) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


Answer = tuple[int, str, object]
"""Status; body or path at the app; www-authenticate, or the headers that the app sees."""

ENVOYS_OWN = frozenset(
    {
        "content-length", "host", "transfer-encoding", "x-envoy-expected-rq-timeout-ms",
        "x-forwarded-proto", "x-request-id",
    }
)  # fmt: skip
"""Headers that Envoy writes for itself."""


def envoys_answer(port: int, index: int, scenario: Scenario) -> Answer:
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as client:
        client.putrequest(
            scenario.method, target(index, scenario), skip_host=True, skip_accept_encoding=True
        )
        for name, value in (("host", HOST), *scenario.lines):
            client.putheader(name, value)
        client.endheaders()
        response = client.getresponse()
        body = response.read().decode()
    if response.status != 200:
        return response.status, body, response.getheader("www-authenticate")
    seen: Mapping[str, Any] = json.loads(body)
    lines = [(name.lower(), value) for name, value in seen["headers"]]
    return 200, seen["path"], sorted(line for line in lines if line[0] not in ENVOYS_OWN)


def our_answer(index: int, scenario: Scenario) -> Answer:
    policy = resource("RequestAuthentication", "jwt", {"jwtRules": list(scenario.rules)})
    assert isinstance(policy, RequestAuthentication)
    request = HttpRequest.of(scenario.method, target(index, scenario), HOST, scenario.lines)
    outcome = RequestAuthenticator([policy], lambda _rule: None).authenticate(
        request, system_now().timestamp()
    )
    if isinstance(outcome, Refused):
        return outcome.status, outcome.body, outcome.www_authenticate
    headers = outcome.request.headers.items()
    return (
        200,
        outcome.request.target,
        sorted((name, one) for name, lines in headers for one in lines),
    )


async def test_tokens_are_judged_as_envoy_judges_them() -> None:
    port, found = free_port(), scenarios()
    with tempfile.TemporaryDirectory(prefix="remora-") as folder, app() as forward:
        async with running_with(configuration(found, port, forward), Path(folder)):
            for index, scenario in enumerate(found):
                theirs = await trio.to_thread.run_sync(envoys_answer, port, index, scenario)
                assert our_answer(index, scenario) == theirs, scenario
