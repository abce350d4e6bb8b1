"""Which endpoint is chosen, and which are left alone: chance and time are the test's."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from random import Random

import pytest

from mesh.policy.outbound import OutboundTls, Security
from mesh.resources.networking import Balancing
from proxy.balancer import MAX_EJECTION, Balancer
from proxy.route import Candidate, Ejection, Forward

TLS = OutboundTls(security=Security.PLAINTEXT, why="")
EJECTION = Ejection(failures=1, base=30.0, interval=10.0, max_percent=100)


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def endpoint(name: str, weight: int = 1) -> Candidate:
    return Candidate(address=name, port=80, tls=TLS, weight=weight)


A, B, C = endpoint("a"), endpoint("b"), endpoint("c")


def way(*candidates: Candidate, balancing: Balancing = Balancing.ROUND_ROBIN) -> Forward:
    return Forward(
        name="x", host="x", candidates=candidates, balancing=balancing, ejection=EJECTION
    )


def balancer(time: Time | None = None, seed: int = 1) -> Balancer:
    return Balancer(Random(seed).random, time or Time())


def names(made: Balancer, route: Forward, count: int) -> str:
    chosen = [made.choose(route) for _ in range(count)]
    return "".join(one.address for one in chosen if one is not None)


def test_round_robin_takes_turns() -> None:
    assert names(balancer(), way(A, B, C), 6) == "abcabc"


def test_round_robin_goes_by_weight_smoothly() -> None:
    assert names(balancer(), way(endpoint("a", 2), B), 6) == "abaaba"


def test_random_goes_by_weight() -> None:
    route = way(endpoint("a", 3), B, balancing=Balancing.RANDOM)
    counted = Counter(names(balancer(), route, 4000))
    assert 2.7 < counted["a"] / counted["b"] < 3.3


def test_least_request_never_takes_the_busiest() -> None:
    made, route = balancer(), way(A, B, C, balancing=Balancing.LEAST_REQUEST)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(made.using(route, A))
        stack.enter_context(made.using(route, B))
        assert "a" not in names(made, route, 200)
        assert set(names(made, route, 200)) == {"b", "c"}
    assert set(names(made, route, 200)) == {"a", "b", "c"}


def test_least_request_weighs_busyness_by_weight() -> None:
    big = endpoint("a", 10)
    made, route = balancer(), way(big, B, balancing=Balancing.LEAST_REQUEST)
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(made.using(route, big))
        stack.enter_context(made.using(route, B))
        assert set(names(made, route, 50)) == {"a"}


@pytest.mark.parametrize("balancing", list(Balancing))
def test_what_was_tried_is_not_chosen_again(balancing: Balancing) -> None:
    made, route = balancer(), way(A, B, C, balancing=balancing)
    tried: list[Candidate] = []
    while (chosen := made.choose(route, tried)) is not None:
        assert chosen not in tried
        tried.append(chosen)
    assert len(tried) == 3


def test_a_failed_endpoint_is_left_alone_and_comes_back() -> None:
    time = Time()
    made, route = balancer(time), way(A, B)
    assert made.failed(route, A) == 30.0
    assert set(names(made, route, 10)) == {"b"}
    time.now += 29.9
    assert set(names(made, route, 10)) == {"b"}
    time.now += 0.1
    assert set(names(made, route, 10)) == {"a", "b"}


def test_each_ejection_is_longer_up_to_a_limit() -> None:
    time = Time()
    made, route = balancer(time), way(A, B)
    lengths: list[float] = []
    for _ in range(12):
        ejected = made.failed(route, A)
        assert ejected is not None
        lengths.append(ejected)
        time.now += ejected
    assert lengths[:4] == [30.0, 60.0, 90.0, 120.0]
    assert lengths[-1] == MAX_EJECTION


def test_old_ejections_are_forgotten_one_by_one() -> None:
    time = Time()
    made, route = balancer(time), way(A, B)
    for _ in range(3):
        time.now += made.failed(route, A) or 0
    time.now += 2 * EJECTION.interval
    assert made.failed(route, A) == 60.0
    time.now += 1000
    assert made.failed(route, A) == 30.0


def test_only_failures_in_a_row_eject() -> None:
    made = balancer()
    route = replace(way(A, B), ejection=replace(EJECTION, failures=3))
    assert [made.failed(route, A), made.failed(route, A)] == [None, None]
    made.succeeded(route, A)
    assert [made.failed(route, A), made.failed(route, A)] == [None, None]
    assert made.failed(route, A) == 30.0


def test_no_more_than_the_percentage_are_ejected_but_always_one() -> None:
    made = balancer()
    route = replace(way(A, B, C), ejection=replace(EJECTION, max_percent=10))
    assert made.failed(route, A) == 30.0
    assert made.failed(route, B) is None
    assert set(names(made, route, 10)) == {"b", "c"}
    half = replace(way(A, B, C, endpoint("d")), name="y")
    half = replace(half, ejection=replace(EJECTION, max_percent=50))
    assert [made.failed(half, one) for one in (A, B, C)] == [30.0, 30.0, None]


def test_when_all_are_ejected_the_one_that_is_due_first_is_better_than_none() -> None:
    time = Time()
    made, route = balancer(time), way(A, B)
    made.failed(route, B)
    time.now += 1
    made.failed(route, A)
    assert names(made, route, 3) == "bbb"
    assert made.choose(route, [B]) == A


def test_without_ejection_nobody_is_ejected() -> None:
    made, route = balancer(), replace(way(A, B), ejection=None)
    assert [made.failed(route, A) for _ in range(10)] == [None] * 10
    assert set(names(made, route, 10)) == {"a", "b"}


def test_a_record_outlives_a_change_of_the_registry_and_goes_with_its_endpoint() -> None:
    made = balancer()
    made.failed(way(A, B), A)
    assert set(names(made, way(A, B, C), 10)) == {"b", "c"}
    assert names(made, way(B), 1) == "b"
    assert set(names(made, way(A, B), 10)) == {"a", "b"}


def test_of_an_address_nothing_is_remembered() -> None:
    made = balancer()
    for number in range(100):
        route = replace(way(endpoint(str(number))), kept=False, name="PassthroughCluster")
        with made.using(route, route.candidates[0]):
            assert made.failed(route, route.candidates[0]) is None
            made.succeeded(route, route.candidates[0])
    assert made._clusters == {}


def test_a_way_without_endpoints_has_nothing_to_choose() -> None:
    assert balancer().choose(way()) is None
