"""What must hold for any policies and any connection, tried with many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from random import Random
from typing import Any, TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mesh.policy.authorization import authorization_for
from mesh.policy.decision import Decision
from mesh.policy.facts import Connection, HttpRequest
from mesh.policy.peer_authentication import PeerAuthentications
from mesh.policy.selection import Workload
from mesh.resources.loader import load_resources
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.security import (
    Action,
    AuthorizationPolicy,
    AuthorizationPolicySpec,
    Condition,
    From,
    MtlsMode,
    MutualTls,
    Operation,
    PeerAuthentication,
    PeerAuthenticationSpec,
    Rule,
    Source,
    To,
)
from mesh.resources.validate import findings_in
from mesh.resources.values import Metadata, WorkloadSelector
from mesh.spiffe import SpiffeId

T = TypeVar("T")

# Few and alike values, so that rules often match and often nearly match.
NAMES = ("a", "b", "ab", "*", "a*", "*b", "*a*")
PRINCIPALS = (
    "*", "td/ns/a/sa/a", "cluster.local/ns/a/sa/b", "old/ns/b/sa/a", "td/ns/a*", "*/sa/a",
    "t*/ns/a/sa/b",
)  # fmt: skip
ACCOUNTS = ("a", "b", "a/a", "a/b", "b/a")
BLOCKS = ("10.0.0.1", "10.0.0.0/8", "::/0", "::ffff:10.0.0.2", "0.0.0.0/0")
PORTS = ("80", "81")
TOKENS = ("*", "i/s", "i/*", "*/s", "i*", "*s", "i")
TEXTS = ("*", "a", "a*", "*a", "*a*", "/a", "/a*", "*/b", "GET", "get")
PATHS = ("*", "/a", "/a*", "*/b", "/{*}", "/a/{**}", "/{*}/b")
SOURCE_VALUES = {
    "principals": PRINCIPALS,
    "namespaces": NAMES,
    "ip_blocks": BLOCKS,
    "remote_ip_blocks": BLOCKS,
    "request_principals": TOKENS,
}
OPERATION_VALUES = {"ports": PORTS, "methods": TEXTS, "hosts": TEXTS, "paths": PATHS}
CONDITION_VALUES = {
    "source.principal": PRINCIPALS,
    "source.namespace": NAMES,
    "source.serviceAccount": ACCOUNTS,
    "source.ip": BLOCKS,
    "remote.ip": BLOCKS,
    "destination.ip": BLOCKS,
    "destination.port": PORTS,
    "connection.sni": TEXTS,
    "request.headers[x]": TEXTS,
    "request.auth.principal": TOKENS,
    "request.auth.claims[a][b]": TEXTS,
    "request.auth.audiences": TEXTS,
    "experimental.envoy.filters.a[b]": TEXTS,
}

DICE = Random(20240501)
POOL = 150
"""Sources, operations and conditions to choose from: made once, since making them is slow."""


def some(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(DICE.sample(values, DICE.choice((1, 1, 2))))


def fields(values: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    chosen = DICE.sample(sorted(values), min(len(values), DICE.choice((1, 1, 2, 3))))
    return {DICE.choice(("", "not_")) + name: some(values[name]) for name in chosen}


def condition() -> Condition:
    key = DICE.choice(sorted(CONDITION_VALUES))
    values, not_values = DICE.choice(((True, False), (False, True), (True, True)))
    return Condition(
        key=key,
        values=some(CONDITION_VALUES[key]) if values else (),
        not_values=some(CONDITION_VALUES[key]) if not_values else (),
    )


SOURCES = [
    *(From(source=Source(**fields(SOURCE_VALUES))) for _ in range(POOL)),
    *(From(source=Source(**fields({"service_accounts": ACCOUNTS}))) for _ in range(POOL // 4)),
]
OPERATIONS = [To(operation=Operation(**fields(OPERATION_VALUES))) for _ in range(POOL)]
CONDITIONS = [condition() for _ in range(POOL)]


def up_to(most: int, values: Sequence[T]) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(st.sampled_from(values), max_size=most).map(tuple)


RULES = st.builds(Rule, from_=up_to(2, SOURCES), to=up_to(2, OPERATIONS), when=up_to(2, CONDITIONS))


def valid(policy: AuthorizationPolicy) -> bool:
    return all(finding.warning for finding in findings_in(policy))


def policies(actions: Sequence[Action]) -> st.SearchStrategy[AuthorizationPolicy]:
    return st.builds(
        lambda name, namespace, action, rules: AuthorizationPolicy(
            api_version="security.istio.io/v1",
            metadata=Metadata(name=name, namespace=namespace),
            spec=AuthorizationPolicySpec(action=action, rules=tuple(rules)),
        ),
        st.text("pq", min_size=1, max_size=6),
        st.sampled_from(["a", "istio-system"]),
        st.sampled_from(list(actions)),
        st.lists(RULES, max_size=3),
    ).filter(valid)


ENFORCED = (Action.ALLOW, Action.DENY, Action.AUDIT)
MESH = MeshConfig(trust_domain="td", trust_domain_aliases=("old",))
WORKLOAD = Workload(namespace="a")
PEERS = st.sampled_from(
    [
        None,
        "td/ns/a/sa/a",
        "td/ns/a/sa/b",
        "old/ns/b/sa/a",
        "x/ns/ab/sa/b",
        "td/x",
        "td/r/ns/a/sa/a/z",
    ]
).map(lambda text: None if text is None else SpiffeId.parse(f"spiffe://{text}"))
ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "192.0.2.1", "::1", "::ffff:10.0.0.1"]).map(
    ip_address
)
CONNECTIONS = st.builds(
    Connection,
    peer=PEERS,
    source_ip=ADDRESSES,
    destination_ip=ADDRESSES,
    destination_port=st.sampled_from([80, 81]),
    sni=st.sampled_from([None, "", "a", "ba"]),
    remote_ip=st.one_of(st.none(), ADDRESSES),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from(["", "a", "i", "s", "a b"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.sampled_from(["a", "b", "iss", "sub", "aud"]), inner, max_size=3),
    ),
    max_leaves=5,
)
CLAIMS = st.dictionaries(st.sampled_from(["a", "iss", "sub", "aud"]), JSON, max_size=3)
REQUESTS = st.builds(
    HttpRequest.of,
    st.sampled_from(["GET", "a"]),
    st.sampled_from(["/", "/a", "/a/b", "/a?x=/b", "/a/%2F"]),
    st.sampled_from([None, "", "a", "A"]),
    st.lists(st.tuples(st.just("X"), st.sampled_from(["", "a", "ba"])), max_size=2),
    claims=st.one_of(st.none(), CLAIMS),
)
ASKED = st.one_of(st.none(), REQUESTS)


def decide(
    found: Sequence[AuthorizationPolicy], connection: Connection, request: HttpRequest | None
) -> Decision:
    return authorization_for(found, WORKLOAD, MESH).decide(connection, request)


def at_most(new: Decision, old: Decision) -> bool:
    return old.allowed or not new.allowed


MANY = st.lists(policies(ENFORCED), max_size=4)


@given(MANY, policies((Action.DENY,)), CONNECTIONS, ASKED)
def test_another_deny_never_allows_more(
    found: list[AuthorizationPolicy],
    deny: AuthorizationPolicy,
    connection: Connection,
    request: HttpRequest | None,
) -> None:
    assert at_most(decide([*found, deny], connection, request), decide(found, connection, request))


@given(MANY, policies((Action.ALLOW,)), st.data(), CONNECTIONS, ASKED)
def test_one_allow_rule_less_never_allows_more(
    found: list[AuthorizationPolicy],
    allow: AuthorizationPolicy,
    data: st.DataObject,
    connection: Connection,
    request: HttpRequest | None,
) -> None:
    rules = allow.spec.rules
    gone = data.draw(st.integers(0, len(rules)))
    less = replace(allow, spec=replace(allow.spec, rules=rules[:gone] + rules[gone + 1 :]))
    assert at_most(
        decide([*found, less], connection, request), decide([*found, allow], connection, request)
    )


@given(MANY, policies((Action.ALLOW, Action.DENY)), CONNECTIONS, ASKED)
def test_a_dry_run_or_an_audit_changes_no_answer(
    found: list[AuthorizationPolicy],
    extra: AuthorizationPolicy,
    connection: Connection,
    request: HttpRequest | None,
) -> None:
    meta = replace(extra.metadata, annotations={"istio.io/dry-run": "true"})
    trying = replace(extra, metadata=meta)
    audit = replace(extra, spec=replace(extra.spec, action=Action.AUDIT))
    before = decide(found, connection, request)
    after = decide([*found, trying, audit], connection, request)
    assert (after.allowed, after.why, after.policy_id) == (
        before.allowed, before.why, before.policy_id,
    )  # fmt: skip


@given(
    MANY.flatmap(lambda some: st.tuples(st.just(some), st.permutations(some))), CONNECTIONS, ASKED
)
def test_the_order_of_policies_does_not_matter(
    orders: tuple[list[AuthorizationPolicy], list[AuthorizationPolicy]],
    connection: Connection,
    request: HttpRequest | None,
) -> None:
    one, other = (decide(order, connection, request) for order in orders)
    assert (one.allowed, one.why, one.policy_id) == (other.allowed, other.why, other.policy_id)


@given(MANY, CONNECTIONS, REQUESTS)
def test_what_is_allowed_as_tcp_is_allowed_as_any_request(
    found: list[AuthorizationPolicy], connection: Connection, request: HttpRequest
) -> None:
    assert at_most(decide(found, connection, None), decide(found, connection, request))


TEXT = st.text(max_size=8)


@given(
    MANY,
    CONNECTIONS,
    st.builds(
        HttpRequest.of, TEXT, TEXT, st.one_of(st.none(), TEXT), st.lists(st.tuples(TEXT, TEXT)),
        claims=st.one_of(st.none(), st.dictionaries(TEXT, JSON, max_size=2)),
    ),
)  # fmt: skip
def test_every_connection_and_request_gets_an_answer(
    found: list[AuthorizationPolicy], connection: Connection, request: HttpRequest
) -> None:
    for asked in (None, request):
        answer = decide(found, connection, asked)
        assert answer.sentence
        assert answer.allowed is not bool(answer.detail)


MODES = st.sampled_from(MtlsMode)
START = datetime(2024, 1, 1, tzinfo=UTC)


@st.composite
def peer_authentications(draw: st.DrawFn) -> list[PeerAuthentication]:
    keys = draw(
        st.lists(
            st.tuples(st.sampled_from(["a", "istio-system"]), st.sampled_from(["p", "q", "r"])),
            unique=True,
            max_size=6,
        )
    )
    found: list[PeerAuthentication] = []
    for namespace, name in keys:
        selecting = draw(st.booleans())
        ports = draw(st.dictionaries(st.sampled_from([80, 81]), st.builds(MutualTls, mode=MODES)))
        age = draw(st.one_of(st.none(), st.integers(0, 2)))
        found.append(
            PeerAuthentication(
                api_version="security.istio.io/v1",
                metadata=Metadata(
                    name=name,
                    namespace=namespace,
                    creation_timestamp=None if age is None else START + timedelta(seconds=age),
                ),
                spec=PeerAuthenticationSpec(
                    selector=WorkloadSelector(match_labels={"x": "y"}) if selecting else None,
                    mtls=MutualTls(mode=draw(MODES)),
                    port_level_mtls=ports if selecting else {},
                ),
            )
        )
    return found


def modes_of(found: Sequence[PeerAuthentication]) -> Any:
    resolver = PeerAuthentications(found, root_namespace="istio-system")
    workload = Workload(namespace="a", labels={"x": "y"})
    effective = resolver.effective(workload)
    return effective, [resolver.namespace_mode(name) for name in ("a", "b", "istio-system")]


@given(peer_authentications().flatmap(lambda some: st.tuples(st.just(some), st.permutations(some))))
def test_the_order_of_peer_authentications_does_not_matter_but_their_age_does(
    orders: tuple[list[PeerAuthentication], list[PeerAuthentication]],
) -> None:
    one, other = (modes_of(order) for order in orders)
    assert one == other
    assert one[0].workload.mode is not MtlsMode.UNSET
    assert all(mode.mode is not MtlsMode.UNSET for mode in one[0].ports.values())


DOCUMENTS = [
    *(
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: "
        + name
        + "}}"
        for name in ("a", "b", "c")
    ),
    "{kind: Nonsense}",
    "- [",
    "a: &x [*x]",
]


@settings(max_examples=50)
@given(st.permutations(DOCUMENTS))
def test_bad_documents_harm_no_other_wherever_they_stand(documents: list[str]) -> None:
    loaded = load_resources("\n---\n".join(documents))
    assert {one.metadata.name for one in loaded.resources} == {"a", "b", "c"}
    assert len(loaded.problems) == 3
