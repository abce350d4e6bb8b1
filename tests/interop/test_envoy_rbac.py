"""A real Envoy, configured as Istio would, and our AuthorizationPolicies: the same decisions.

Many small meshes of random policies, each a route of its own with its own rules; random requests
are sent through Envoy and asked of us. Status and deciding rule must agree.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from mesh.policy.authorization import Authorization, authorization_for
from mesh.policy.facts import Connection, HttpRequest
from mesh.policy.path import normalize_target
from mesh.policy.selection import Workload
from mesh.policy.trust_domains import TrustDomains
from mesh.resources.mesh_config import MeshConfig, Normalization
from mesh.resources.security import (
    Action,
    AuthorizationPolicy,
    AuthorizationPolicySpec,
    Condition,
    From,
    Operation,
    Rule,
    Source,
    To,
)
from mesh.resources.validate import findings_in
from mesh.resources.values import Metadata
from mesh.spiffe import SCHEME, SpiffeId
from tests.interop.envoy import Json, running_with, socket_address
from tests.interop.istio_rbac import PEER_KEY, rules
from tests.interop.test_envoy import free_port
from tests.interop.test_envoy_tokens import typed

pytestmark = pytest.mark.e2e

SCENARIOS = 120
REQUESTS = 12
"""Requests to each scenario."""

MESH = MeshConfig(trust_domain="td", trust_domain_aliases=("old",))
HERE = ip_address("127.0.0.1")

PRINCIPALS = (
    "*", "td/ns/a/sa/a", "cluster.local/ns/a/sa/b", "old/ns/b/sa/a", "x/ns/a/sa/a", "td/ns/a*",
    "*/sa/a", "t*/ns/a/sa/b", "*d/ns/b/sa/a", "td/ns/a/sa/a*", "*a", "td*/ns/a/sa/a",
    "*/ns/a/sa/a", "td/ns/a/sa/a.b",
)  # fmt: skip
NAMESPACES = ("a", "b", "ab", "*", "a*", "*b", "*a*", "a*b", "ns", "sa")
ACCOUNTS = ("a", "b", "a/a", "a/b", "b/a", "ab")
METHODS = ("GET", "get", "*", "G*", "*T", "POST", "P*T", "*O*")
HOSTS = (
    "example.com", "EXAMPLE.com", "*.com", "example.*", "*", "example.com:*", "example.com:8080",
    "*:8080", "ex*le.com",
)  # fmt: skip
PATHS = (
    "*", "/", "/a", "/a*", "*/b", "*a/", "/a*b", "*/*b", "/A", "/a+b", "/{*}", "/{**}", "/a/{*}",
    "/a/{**}", "/{*}/b", "/a/{*}/b", "/a/{**}/b", "/{*}/{**}", "/a.b/{*}",
)  # fmt: skip
HEADERS = ("a", "*", "a*", "*a", "*a*", "A", "a,b", "a, b", "b")
CONDITIONS = {
    "source.principal": PRINCIPALS,
    "source.namespace": NAMESPACES,
    "source.serviceAccount": ACCOUNTS,
    "request.headers[x-a]": HEADERS,
    "request.headers[X-A]": HEADERS,
}
PEERS = (
    None, "td/ns/a/sa/a", "td/ns/a/sa/b", "old/ns/b/sa/a", "old/ns/a/sa/a", "x/ns/ab/sa/b", "td/x",
    "td/r/ns/a/sa/a/z", "td/ns/a/x/sa/a", "td/ns/ns/sa/sa", "td/ns/a.b/sa/a.b", "ns/a/sa/a",
)  # fmt: skip
TARGETS = (
    "/", "/a", "/a/", "/a/b", "/a?x=/b", "/a//b", "/a/x/b", "/a/x/y/b", "/x", "/x/b", "/A", "/ab",
    "/a*b", "/a.b/c", "/a+b", "/a/../b", "/a/x%2Fb", "//b", "/%61",
)  # fmt: skip
AUTHORITIES = ("example.com", "EXAMPLE.COM", "example.com:8080", "www.example.com", "b")
LINES = ((), ("",), ("a",), ("b",), ("ba",), ("A",), ("a,b",), ("a", "b"), ("b", "c"))


class Dice:
    """Makes random policies."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def some(self, values: Sequence[str]) -> tuple[str, ...]:
        return tuple(self.random.sample(values, self.random.choice((1, 1, 2))))

    def fields(self, values: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        count = min(len(values), self.random.choice((1, 1, 2, 3)))
        names = self.random.sample(sorted(values), count)
        return {self.random.choice(("", "", "not_")) + one: self.some(values[one]) for one in names}

    def source(self) -> From:
        if self.random.random() < 0.25:
            return From(source=Source(**self.fields({"service_accounts": ACCOUNTS})))
        given = self.fields({"principals": PRINCIPALS, "namespaces": NAMESPACES})
        return From(source=Source(**given))

    def operation(self) -> To:
        given = self.fields({"methods": METHODS, "hosts": HOSTS, "paths": PATHS})
        return To(operation=Operation(**given))

    def condition(self) -> Condition:
        key = self.random.choice(sorted(CONDITIONS))
        which = self.random.choice(("values", "not_values", "both"))
        return Condition(
            key=key,
            values=() if which == "not_values" else self.some(CONDITIONS[key]),
            not_values=() if which == "values" else self.some(CONDITIONS[key]),
        )

    def rule(self) -> Rule:
        choice = self.random.choice
        return Rule(
            from_=tuple(self.source() for _ in range(choice((0, 1, 1, 2)))),
            to=tuple(self.operation() for _ in range(choice((0, 1, 1, 2)))),
            when=tuple(self.condition() for _ in range(choice((0, 0, 1, 2)))),
        )

    def policy(self, index: int) -> AuthorizationPolicy:
        choice = self.random.choice
        policy = AuthorizationPolicy(
            api_version="security.istio.io/v1",
            metadata=Metadata(name=f"p{index}", namespace=choice(("a", "istio-system"))),
            spec=AuthorizationPolicySpec(
                action=choice((Action.ALLOW, Action.DENY)),
                rules=tuple(self.rule() for _ in range(choice((1, 1, 2, 3)))),
            ),
        )
        assert all(finding.warning for finding in findings_in(policy))
        return policy

    def policies(self) -> list[AuthorizationPolicy]:
        return [self.policy(index) for index in range(self.random.choice((1, 1, 2, 3)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to one scenario."""

    scenario: int
    peer: str | None
    target: str
    authority: str
    method: str
    lines: tuple[str, ...]


def route(index: int, policies: Sequence[AuthorizationPolicy]) -> Json:
    per_filter: Json = {}
    for name, action in (("deny", Action.DENY), ("allow", Action.ALLOW)):
        found = rules(policies, action, TrustDomains.of(MESH))
        kind = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"
        per_filter[name] = {"@type": kind} | ({"rbac": {"rules": found}} if found else {})
    selects = {"name": "x-scenario", "string_match": {"exact": str(index)}}
    return {
        "match": {"prefix": "/", "headers": [selects]},
        "direct_response": {"status": 200},
        "typed_per_filter_config": per_filter,
    }


def configuration(
    listen: int, log: Path, scenarios: Sequence[Sequence[AuthorizationPolicy]]
) -> Json:
    identity = {
        "object_key": PEER_KEY,
        "factory_key": "envoy.string",
        "format_string": {
            "text_format_source": {"inline_string": "%REQ(x-peer)%"},
            "omit_empty_values": True,
        },
        "skip_if_empty": True,
    }
    logged = {"text_format_source": {"inline_string": "%RESPONSE_CODE_DETAILS%\n"}}
    manager = typed(
        "http",
        "network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="http",
        normalize_path=True,
        access_log=[
            {
                "name": "file",
                "typed_config": {
                    "@type": "type.googleapis.com/"
                    "envoy.extensions.access_loggers.file.v3.FileAccessLog",
                    "path": str(log),
                    "log_format": logged,
                },
            }
        ],
        http_filters=[
            typed("peer", "http.set_filter_state.v3.Config", on_request_headers=[identity]),
            typed("deny", "http.rbac.v3.RBAC"),
            typed("allow", "http.rbac.v3.RBAC"),
            typed("router", "http.router.v3.Router"),
        ],
        route_config={
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [route(index, found) for index, found in enumerate(scenarios)],
                }
            ]
        },
    )
    listener = {
        "name": "inbound",
        "address": socket_address("127.0.0.1", listen),
        "filter_chains": [{"filters": [manager]}],
    }
    admin = {"address": socket_address("127.0.0.1", 0)}
    return {"admin": admin, "static_resources": {"listeners": [listener]}}


def statuses(port: int, requests: Sequence[Request]) -> list[int]:
    """Send every request over one connection."""
    found: list[int] = []
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as client:
        for one in requests:
            client.putrequest(one.method, one.target, skip_host=True, skip_accept_encoding=True)
            client.putheader("host", one.authority)
            client.putheader("x-scenario", str(one.scenario))
            if one.peer is not None:
                client.putheader("x-peer", SCHEME + one.peer)
            for line in one.lines:
                client.putheader("x-a", line)
            client.endheaders()
            response = client.getresponse()
            response.read()
            found.append(response.status)
    return found


def our_answer(authorization: Authorization, one: Request) -> tuple[int, str]:
    connection = Connection(
        peer=None if one.peer is None else SpiffeId.parse(SCHEME + one.peer),
        source_ip=HERE,
        destination_ip=HERE,
        destination_port=80,
    )
    request = HttpRequest.of(
        one.method,
        normalize_target(one.target, Normalization.BASE),
        one.authority,
        [("X-A", line) for line in one.lines],
    )
    decision = authorization.decide(connection, request)
    return (200, "direct_response") if decision.allowed else (403, decision.detail)


async def log_lines(log: Path, count: int) -> list[str]:
    """Read Envoy's access log when it has been written out."""
    with trio.fail_after(20):
        while not log.exists() or log.read_text().count("\n") < count:  # noqa: ASYNC110 - a foreign file
            await trio.sleep(0.05)
    return log.read_text().splitlines()


async def test_random_policies_decide_as_in_envoy() -> None:
    dice = Dice(20240501)
    scenarios = [dice.policies() for _ in range(SCENARIOS)]
    requests = [
        Request(
            scenario=index,
            peer=dice.random.choice(PEERS),
            target=dice.random.choice(TARGETS),
            authority=dice.random.choice(AUTHORITIES),
            method=dice.random.choice(("GET", "POST", "PUT")),
            lines=dice.random.choice(LINES),
        )
        for index in range(SCENARIOS)
        for _ in range(REQUESTS)
    ]
    ours = [authorization_for(found, Workload(namespace="a"), MESH) for found in scenarios]
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="remora-") as name:
        folder = Path(name)
        log = folder / "access.log"
        async with running_with(configuration(port, log, scenarios), folder):
            found = await trio.to_thread.run_sync(statuses, port, requests)
            details = await log_lines(log, len(requests))
    assert min(found.count(200), found.count(403)) > len(requests) / 4
    for one, status, detail in zip(requests, found, details, strict=True):
        answer = our_answer(ours[one.scenario], one)
        assert answer == (status, detail), (one, scenarios[one.scenario])
