from __future__ import annotations

from datetime import timedelta

import pytest

from agent.answer import Issued
from agent.errors import BadSubscription
from agent.grants import NOTHING, Grant, Grants, grants_of
from agent.offer import Offer
from agent.registration import Entry
from agent.resources import AllRoots, KeyPair, Roots
from agent.store import SecretStore
from mesh.bundle import TrustBundle
from mesh.bundle_document import BundleDocument
from mesh.spiffe import SpiffeId, TrustDomain
from tests.pki import NOW, make_root

HTTPBIN = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/httpbin")
SLEEP = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/sleep")
OWN, FRIEND, STRANGER = TrustDomain("cluster.local"), TrustDomain("friend"), TrustDomain("stranger")


def full_store() -> SecretStore:
    store, root = SecretStore(), make_root()
    for identity in (HTTPBIN, SLEEP):
        bundle = TrustBundle.of(OWN, [root.certificate])
        store.put(Issued(svid=root.issue(str(identity)), bundle=bundle, created=NOW))
    for domain in (FRIEND, STRANGER):
        roots = TrustBundle.of(domain, [make_root(domain.name).certificate])
        store.put_bundle(BundleDocument(roots=roots, jwt_keys={}))
    return store


STORE = full_store()


def offer(grants: Grants | None, *, late: timedelta = timedelta()) -> Offer:
    return Offer(holdings=STORE.holdings, grants=grants, trust_domain=OWN, now=NOW + late)


def grants(*identities: SpiffeId, friends: frozenset[TrustDomain] | None = frozenset()) -> Grants:
    return Grants(tuple(Grant(identity=one, federates_with=friends) for one in identities))


def held(offer: Offer, name: str) -> object:
    offer.check(name)
    resource = offer.get(name)
    return None if resource is None else resource.value


def pair_of(identity: SpiffeId) -> KeyPair:
    return STORE.holdings.svids[identity].pair


def roots_of(domain: TrustDomain) -> Roots:
    return STORE.holdings.roots[domain].roots


def test_default_is_the_first_identity() -> None:
    assert held(offer(grants(HTTPBIN, SLEEP)), "default") == pair_of(HTTPBIN)
    assert held(offer(grants(SLEEP, HTTPBIN)), "default") == pair_of(SLEEP)


def test_an_identity_by_its_name() -> None:
    assert held(offer(grants(HTTPBIN, SLEEP)), str(SLEEP)) == pair_of(SLEEP)


def test_roots_by_the_names_of_istio_and_of_spire() -> None:
    assert held(offer(grants(SLEEP)), "ROOTCA") == roots_of(OWN)
    assert held(offer(grants(SLEEP)), OWN.id) == roots_of(OWN)


def test_a_foreign_trust_domain_only_for_those_that_deal_with_it() -> None:
    mine = offer(grants(SLEEP, friends=frozenset({FRIEND})))
    assert held(mine, FRIEND.id) == roots_of(FRIEND)
    with pytest.raises(BadSubscription):
        mine.check(STRANGER.id)
    assert mine.get(STRANGER.id) is None


def test_all_roots_are_those_of_the_domains_one_deals_with() -> None:
    by_domain = {OWN: roots_of(OWN), FRIEND: roots_of(FRIEND)}
    friendly = offer(grants(SLEEP, friends=frozenset({FRIEND})))
    assert held(friendly, "ALL") == AllRoots(by_domain=by_domain)
    assert held(offer(grants(SLEEP)), "ALL") == AllRoots(by_domain={OWN: roots_of(OWN)})
    everyone = held(offer(grants(SLEEP, friends=None)), "ALL")
    assert isinstance(everyone, AllRoots)
    assert set(everyone.by_domain) == {OWN, FRIEND, STRANGER}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Default",
        "rootca",
        str(HTTPBIN),
        "spiffe://cluster.local/",
        "spiffe://elsewhere",
        "spiffe://",
        "file-cert:/etc/shadow~/etc/shadow",
    ],
)
def test_what_a_caller_may_not_have(name: str) -> None:
    mine = offer(grants(SLEEP))
    with pytest.raises(BadSubscription, match="only default, ROOTCA, ALL, "):
        mine.check(name)
    assert mine.get(name) is None


def test_expired_certificates_are_not_there() -> None:
    late = offer(grants(SLEEP), late=timedelta(hours=1))
    assert held(late, "default") is None
    assert held(late, str(SLEEP)) is None
    assert held(late, "ROOTCA") == roots_of(OWN)


def test_while_the_identity_is_not_known_yet() -> None:
    early = offer(None)
    assert held(early, "default") is None
    assert held(early, "ROOTCA") == roots_of(OWN)
    with pytest.raises(BadSubscription):
        early.check(str(SLEEP))


def test_an_unknown_caller_is_offered_no_certificate() -> None:
    assert offer(NOTHING).get("default") is None


def test_everything() -> None:
    assert offer(grants(SLEEP, HTTPBIN)).everything() == ("default", "ROOTCA", str(HTTPBIN))
    assert offer(None).everything() == ("default", "ROOTCA")


def entry(identity: SpiffeId, hint: str = "", *friends: TrustDomain) -> Entry:
    return Entry(
        identity=identity, selectors=frozenset(), hint=hint, federates_with=frozenset(friends)
    )


def test_entries_of_one_identity_are_one_grant() -> None:
    made = grants_of([entry(SLEEP, "a", FRIEND), entry(HTTPBIN), entry(SLEEP, "b", STRANGER)])
    assert made.identities == (SLEEP, HTTPBIN)
    assert made.all[0].hint == "a"
    assert made.all[0].federates_with == frozenset({FRIEND, STRANGER})


def test_of_two_identities_with_one_hint_the_first_keeps_it() -> None:
    made = grants_of([entry(SLEEP, "a"), entry(HTTPBIN, "a")])
    assert [grant.hint for grant in made.all] == ["a", ""]
