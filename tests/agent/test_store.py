from __future__ import annotations

from datetime import timedelta

import pytest
import trio
import trio.testing

from agent.answer import Issued
from agent.resources import KeyPair, Roots
from agent.store import SecretStore, Wakeup
from mesh.bundle import TrustBundle
from mesh.spiffe import TrustDomain
from mesh.svid import X509Svid
from tests.pki import NOW, Authority, make_root

IDENTITY = "spiffe://cluster.local/ns/foo/sa/httpbin"


def issued(root: Authority, *more: Authority, hours: int = 1) -> Issued:
    bundle = TrustBundle.of(TrustDomain("cluster.local"), [a.certificate for a in (root, *more)])
    svid = root.issue(IDENTITY, not_after=NOW + timedelta(hours=hours))
    return Issued(svid=svid, bundle=bundle, created=NOW)


def versions(store: SecretStore) -> dict[str, int]:
    return {name: resource.version for name, resource in store.available(NOW).items()}


async def test_empty_at_first() -> None:
    store = SecretStore()
    assert store.issued is None
    assert versions(store) == {}
    assert store.drop_expired(NOW) is None


async def test_what_is_served_can_be_loaded() -> None:
    store = SecretStore()
    mine = issued(make_root())
    store.put(mine)
    resources = store.available(NOW)
    pair, roots = resources["default"].value, resources["ROOTCA"].value
    assert isinstance(pair, KeyPair)
    assert isinstance(roots, Roots)
    assert X509Svid.parse_pem(pair.chain_pem, pair.key_pem).chain == mine.svid.chain
    assert roots.pem == mine.bundle.pem()
    assert pair.not_after == mine.svid.not_after


async def test_renewal_leaves_the_version_of_unchanged_roots() -> None:
    store, root, other = SecretStore(), make_root(), make_root("other")
    store.put(issued(root))
    first = versions(store)
    store.put(issued(root))
    second = versions(store)
    assert second["default"] > first["default"]
    assert second["ROOTCA"] == first["ROOTCA"]
    store.put(issued(root, other))
    assert versions(store)["ROOTCA"] > second["ROOTCA"]


async def test_order_of_roots_is_no_change() -> None:
    store, root, other = SecretStore(), make_root(), make_root("other")
    store.put(issued(root, other))
    before = versions(store)["ROOTCA"]
    store.put(issued(other, root))
    assert versions(store)["ROOTCA"] == before


async def test_expired_certificate_is_not_served_even_before_it_is_dropped() -> None:
    store = SecretStore()
    mine = issued(make_root())
    store.put(mine)
    end = mine.svid.not_after
    assert set(store.available(end - timedelta(seconds=1))) == {"default", "ROOTCA"}
    assert set(store.available(end)) == {"ROOTCA"}
    assert store.drop_expired(end - timedelta(seconds=1)) is None
    assert store.drop_expired(end) is mine
    assert store.issued is None
    assert set(store.available(NOW)) == {"ROOTCA"}


async def test_version_grows_across_a_drop() -> None:
    store, root = SecretStore(), make_root()
    store.put(issued(root))
    before = versions(store)["default"]
    store.drop_expired(NOW + timedelta(hours=2))
    store.put(issued(root))
    assert versions(store)["default"] > before


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
