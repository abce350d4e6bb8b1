from __future__ import annotations

from datetime import timedelta

import pytest
import trio
import trio.testing

from agent.answer import Issued
from agent.holdings import Holdings
from agent.resources import KeyPair
from agent.store import SecretStore, Wakeup
from mesh.bundle import TrustBundle
from mesh.bundle_document import BundleDocument
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.svid import X509Svid
from tests.pki import NOW, Authority, make_root, new_key

IDENTITY = "spiffe://cluster.local/ns/foo/sa/httpbin"
ID = SpiffeId.parse(IDENTITY)
DOMAIN = TrustDomain("cluster.local")


def issued(root: Authority, *more: Authority, hours: int = 1) -> Issued:
    bundle = TrustBundle.of(DOMAIN, [a.certificate for a in (root, *more)])
    svid = root.issue(IDENTITY, not_after=NOW + timedelta(hours=hours))
    return Issued(svid=svid, bundle=bundle, created=NOW)


def svid_version(store: SecretStore) -> str:
    return store.holdings.svids[ID].version


def roots_version(store: SecretStore) -> str:
    return store.holdings.roots[DOMAIN].version


async def test_empty_at_first() -> None:
    store = SecretStore()
    assert store.issued(ID) is None
    assert store.holdings == Holdings()
    assert store.drop_expired(ID, NOW) is None


async def test_what_is_served_can_be_loaded() -> None:
    store = SecretStore()
    mine = issued(make_root())
    store.put(mine)
    held = store.holdings.svid(ID, NOW)
    assert held is not None
    pair, roots = held.pair, store.holdings.roots[DOMAIN].roots
    assert X509Svid.parse_pem(pair.chain_pem, pair.key_pem).chain == mine.svid.chain
    assert roots.pem == mine.bundle.pem()
    assert pair.not_after == mine.svid.not_after


async def test_renewal_leaves_the_version_of_unchanged_roots() -> None:
    store, root, other = SecretStore(), make_root(), make_root("other")
    store.put(issued(root))
    svid, roots = svid_version(store), roots_version(store)
    store.put(issued(root))
    assert svid_version(store) != svid
    assert roots_version(store) == roots
    store.put(issued(root, other))
    assert roots_version(store) != roots


async def test_order_of_roots_is_no_change() -> None:
    store, root, other = SecretStore(), make_root(), make_root("other")
    store.put(issued(root, other))
    before = roots_version(store)
    store.put(issued(other, root))
    assert roots_version(store) == before


async def test_expired_certificate_is_not_served_even_before_it_is_dropped() -> None:
    store = SecretStore()
    mine = issued(make_root())
    store.put(mine)
    end = mine.svid.not_after
    assert store.holdings.svid(ID, end - timedelta(seconds=1)) is not None
    assert store.holdings.svid(ID, end) is None
    assert store.drop_expired(ID, end - timedelta(seconds=1)) is None
    assert store.drop_expired(ID, end) is mine
    assert store.issued(ID) is None
    assert set(store.holdings.roots) == {DOMAIN}


async def test_same_content_has_the_same_version_after_a_restart() -> None:
    mine = issued(make_root())
    stores = SecretStore(), SecretStore()
    for store in stores:
        store.put(mine)
    assert svid_version(stores[0]) == svid_version(stores[1])
    assert roots_version(stores[0]) == roots_version(stores[1])


async def test_identities_are_kept_apart() -> None:
    store, root = SecretStore(), make_root()
    other = root.issue(f"{IDENTITY}-2", not_after=NOW + timedelta(hours=1))
    bundle = TrustBundle.of(DOMAIN, [root.certificate])
    store.put(issued(root))
    store.put(Issued(svid=other, bundle=bundle, created=NOW))
    store.drop(ID)
    assert set(store.holdings.svids) == {other.id}


def document(domain: str, *roots: Authority) -> BundleDocument:
    bundle = TrustBundle.of(TrustDomain(domain), [root.certificate for root in roots])
    return BundleDocument(roots=bundle, jwt_keys={"k": new_key().public_key()})


async def test_bundles_of_other_trust_domains_come_and_go() -> None:
    store, wakeup, foreign = SecretStore(), Wakeup(), document("other", make_root())
    with store.subscribed(wakeup):
        store.put_bundle(foreign)
        await wakeup.wait()
        assert store.holdings.roots[TrustDomain("other")].bundle == foreign.roots
        assert store.holdings.jwt_keys[TrustDomain("other")] == foreign.jwt_keys
        store.put_bundle(foreign)
        with trio.move_on_after(0) as scope:
            await wakeup.wait()
        assert scope.cancelled_caught, "nothing had changed"
        store.drop_bundle(TrustDomain("other"))
        await wakeup.wait()
        assert store.holdings == Holdings()


async def test_subscribers_are_woken_once_for_many_changes() -> None:
    store, root = SecretStore(), make_root()
    wakeup = Wakeup()
    with store.subscribed(wakeup):
        store.put(issued(root))
        store.put(issued(root))
        await wakeup.wait()
        with trio.move_on_after(0) as scope:
            await wakeup.wait()
        assert scope.cancelled_caught
    store.put(issued(root))
    with trio.move_on_after(0) as scope:
        await wakeup.wait()
    assert scope.cancelled_caught


async def test_waiting_task_is_woken(nursery: trio.Nursery) -> None:
    store, woken = SecretStore(), trio.Event()
    wakeup = Wakeup()

    async def wait() -> None:
        await wakeup.wait()
        woken.set()

    nursery.start_soon(wait)
    with store.subscribed(wakeup):
        await trio.testing.wait_all_tasks_blocked()
        assert not woken.is_set()
        store.put(issued(make_root()))
        with trio.fail_after(1):
            await woken.wait()


def test_key_does_not_show_when_printed() -> None:
    pair = KeyPair.of(issued(make_root()))
    assert "PRIVATE KEY" in pair.key_pem.decode()
    assert "key_pem" not in repr(pair)


@pytest.mark.parametrize("hours", [1, 24])
def test_pair_knows_its_end(hours: int) -> None:
    assert KeyPair.of(issued(make_root(), hours=hours)).not_after == NOW + timedelta(hours=hours)
