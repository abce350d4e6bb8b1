from __future__ import annotations

from datetime import timedelta

import pytest

from ca.discovery.errors import SubscriptionRefused
from ca.discovery.held import AUTHORIZATION_POLICY, SERVICE_ENTRY
from ca.discovery.subscription import MAX_NAMES, MAX_REPORTED, Ask, Meaning, Sending, Subscription
from ca.discovery.world import World
from tests.ca.discovery.builders import authz, change, service, viewer, world
from tests.pki import NOW

WEB = viewer()
P, Q = authz("app/p"), authz("app/q")
P2 = authz("app/p", action="DENY")


def begun(known: World, *names: str, url: str = AUTHORIZATION_POLICY) -> Subscription:
    subscription = Subscription(url)
    assert subscription.take(Ask(subscribe=names), NOW) is Meaning.NEW
    return subscription


def push(subscription: Subscription, known: World, nonce: str = "1") -> Sending | None:
    sending = subscription.due(known, WEB)
    if sending is not None:
        subscription.sending(sending, version=f"v{nonce}", nonce=nonce, now=NOW)
    return sending


def told(sending: Sending | None) -> tuple[list[str], list[str]] | None:
    if sending is None:
        return None
    return [held.name for held in sending.resources], list(sending.removed)


def test_nothing_is_due_before_it_was_asked_for() -> None:
    subscription = Subscription(AUTHORIZATION_POLICY)
    subscription.touch("app/p")
    subscription.touch_everything()
    assert subscription.due(world(P), WEB) is None


@pytest.mark.parametrize("names", [(), ("*",)])
def test_everything_is_sent_once(names: tuple[str, ...]) -> None:
    known = world(P, Q)
    subscription = begun(known, *names)
    assert told(push(subscription, known)) == (["app/p", "app/q"], [])
    assert subscription.take(Ask(nonce="1"), NOW) is Meaning.ACK
    assert push(subscription, known) is None


def test_a_subscription_is_answered_also_with_nothing() -> None:
    known = world()
    subscription = begun(known, "*")
    assert told(push(subscription, known)) == ([], [])
    subscription.take(Ask(nonce="1"), NOW)
    assert push(subscription, known) is None
    subscription.take(Ask(subscribe=["*"]), NOW)
    assert told(push(subscription, known, "2")) == ([], [])


def test_names_that_are_not_there_are_said_to_be_gone() -> None:
    known = world(P, Q)
    subscription = begun(known, "app/p", "app/none")
    assert told(push(subscription, known)) == (["app/p"], ["app/none"])


def test_only_changes_are_sent_after_that() -> None:
    known = world(P, Q)
    subscription = begun(known, "*")
    push(subscription, known)
    subscription.take(Ask(nonce="1"), NOW)
    known.update([change(P, P2), change(Q, None)])
    for name in ("app/p", "app/q", "app/nothing"):
        subscription.touch(name)
    assert told(push(subscription, known, "2")) == (["app/p"], ["app/q"])


def test_what_was_touched_and_is_the_same_is_not_sent() -> None:
    known = world(P)
    subscription = begun(known, "*")
    push(subscription, known)
    subscription.take(Ask(nonce="1"), NOW)
    subscription.touch("app/p")
    assert push(subscription, known) is None
    subscription.touch_everything()
    assert push(subscription, known) is None


def test_a_client_that_does_not_acknowledge_gets_the_newest_state_later_and_no_queue() -> None:
    known = world(P)
    subscription = begun(known, "*")
    push(subscription, known)
    before = P
    for action in ("DENY", "ALLOW", "AUDIT"):
        after = authz("app/p", action=action)
        known.update([change(before, after)])
        subscription.touch("app/p")
        before = after
        assert push(subscription, known) is None
    assert subscription.waits
    assert subscription.take(Ask(nonce="wrong"), NOW) is Meaning.STALE
    assert push(subscription, known) is None
    assert subscription.take(Ask(nonce="1"), NOW) is Meaning.ACK
    sending = push(subscription, known, "2")
    assert sending is not None
    assert [held.value for held in sending.resources] == [before]


def test_a_refusal_is_remembered_and_the_same_is_not_sent_again() -> None:
    known = world(P)
    subscription = begun(known, "*")
    push(subscription, known)
    later = NOW + timedelta(seconds=3)
    assert subscription.take(Ask(nonce="1", error="what is this"), later) is Meaning.NACK
    assert subscription.status.complaint == "what is this"
    assert (subscription.status.nacked_version, subscription.status.nacked_at) == ("v1", later)
    assert push(subscription, known) is None
    known.update([change(P, P2)])
    subscription.touch("app/p")
    assert told(push(subscription, known, "2")) == (["app/p"], [])
    assert subscription.take(Ask(nonce="2"), NOW) is Meaning.ACK
    assert (subscription.status.complaint, subscription.status.acked_version) == ("", "v2")


def test_a_client_that_comes_back_is_sent_the_difference() -> None:
    known = world(P, Q)
    subscription = begun(known, "*")
    sent = push(subscription, known)
    assert sent is not None
    versions = {held.name: held.version for held in sent.resources} | {"app/old": "x"}
    known.update([change(P, P2)])
    again = Subscription(AUTHORIZATION_POLICY)
    again.take(Ask(subscribe=["*"], versions=versions, nonce="of another stream"), NOW)
    assert told(push(again, known)) == (["app/p"], ["app/old"])


def test_names_come_and_go() -> None:
    known = world(P, Q)
    subscription = begun(known, "app/p")
    push(subscription, known)
    subscription.take(Ask(nonce="1", subscribe=["app/q"], unsubscribe=["app/p"]), NOW)
    assert told(push(subscription, known, "2")) == (["app/q"], [])
    subscription.take(Ask(nonce="2", subscribe=["app/q"]), NOW)
    assert told(push(subscription, known, "3")) == (["app/q"], []), "asked for again"
    subscription.take(Ask(nonce="3", subscribe=["*"]), NOW)
    assert told(push(subscription, known, "4")) == (["app/p"], [])
    subscription.take(Ask(nonce="4", unsubscribe=["*"]), NOW)
    assert told(push(subscription, known, "5")) == ([], ["app/p"])


def test_names_of_services_are_hosts_that_the_viewer_has() -> None:
    known = world(service("data/db", "db.example"))
    subscription = begun(known, "db.example", "none.example", url=SERVICE_ENTRY)
    assert told(push(subscription, known)) == (["data/db"], [])


def test_huge_subscriptions_are_refused() -> None:
    names = [f"app/{number}" for number in range(MAX_NAMES + 1)]
    with pytest.raises(SubscriptionRefused, match="10001 names of AuthorizationPolicy"):
        Subscription(AUTHORIZATION_POLICY).take(Ask(subscribe=names), NOW)
    subscription = begun(world(), *names[:-1])
    with pytest.raises(SubscriptionRefused):
        subscription.take(Ask(subscribe=names[-1:]), NOW)
    versions = dict.fromkeys(map(str, range(MAX_REPORTED + 1)), "v")
    with pytest.raises(SubscriptionRefused, match="100001 versions"):
        Subscription(AUTHORIZATION_POLICY).take(Ask(versions=versions), NOW)


def test_only_losing_is_told_apart() -> None:
    known = world(P, Q)
    subscription = begun(known, "*")
    assert not subscription.only_loses(known, WEB)
    push(subscription, known)
    subscription.take(Ask(nonce="1"), NOW)
    known.update([change(P, None)])
    subscription.touch("app/p")
    assert subscription.only_loses(known, WEB)
    known.update([change(Q, authz("app/q", action="DENY"))])
    subscription.touch("app/q")
    assert not subscription.only_loses(known, WEB)
