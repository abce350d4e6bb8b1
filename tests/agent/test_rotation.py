from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
import structlog.testing
import trio
import trio.abc
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.answer import Issued
from agent.config import AgentConfig, CaAddress
from agent.rotation import ROOTS_CHANGED_SPREAD, Rotation
from agent.store import SecretStore, Wakeup
from mesh.bundle import TrustBundle
from mesh.bundle_document import BundleDocument
from mesh.clock import Now, trio_now
from mesh.grpc import GrpcError, Status
from tests.agent.fake_ca import DOMAIN, IDENTITY, FakeCa, make_client, make_config
from tests.mesh.test_revocation import revocation_list
from tests.pki import NOW, Authority, make_root, new_key

HOUR = 3600.0
DAY = 24 * HOUR

Clock = trio.testing.MockClock

EXPIRED = "certificate expired: new callers get none until the CA answers"


class Agent:
    """The agent without its socket, against a CA of its own, from NOW on."""

    def __init__(self, directory: Path, nursery: trio.Nursery, **changes: Any) -> None:
        self.now: Now = trio_now(NOW)
        self.ca = FakeCa(now=self.now, nursery=nursery)
        self.config: AgentConfig = make_config(directory, self.ca, **changes)
        self.store = SecretStore()
        self.nursery = nursery
        self.serials: list[int] = []
        self.rotation = Rotation(
            self.config,
            make_client(self.config, self.ca),
            self.store,
            now=self.now,
            random=Random(1),
        )

    def start(self) -> None:
        self.nursery.start_soon(self._watch)
        self.nursery.start_soon(self.rotation.run)

    async def _watch(self) -> None:
        wakeup = Wakeup()
        with self.store.subscribed(wakeup):
            while True:
                await wakeup.wait()
                self.serials.append(self.serial)

    @property
    def issued(self) -> Issued | None:
        identity = self.rotation.identity
        return None if identity is None else self.store.issued(identity)

    def serves(self) -> bool:
        identity = self.rotation.identity
        return identity is not None and self.store.holdings.svid(identity, self.now()) is not None

    @property
    def serial(self) -> int:
        assert self.issued is not None
        return self.issued.svid.serial


@pytest.fixture
def make_agent(tmp_path: Path, nursery: trio.Nursery) -> Callable[..., Agent]:
    return lambda **changes: Agent(tmp_path, nursery, **changes)


MakeAgent = Callable[..., Agent]
Log = Mapping[str, Any]


def events(logs: list[Any], event: str) -> list[Log]:
    return [line for line in logs if line["event"] == event]


async def test_first_certificate(make_agent: MakeAgent, autojump_clock: Clock) -> None:
    agent = make_agent()
    with structlog.testing.capture_logs() as logs:
        agent.start()
        await trio.sleep(1)
    assert agent.serves()
    assert agent.issued is not None
    assert agent.issued.svid.id == IDENTITY
    [line] = events(logs, "certificate obtained")
    assert line["identity"] == str(IDENTITY)
    assert line["serial"] == f"{agent.serial:x}"
    assert line["not_after"].startswith("2026-06-02T12:00:00")


async def test_a_week_of_rotations(make_agent: MakeAgent, autojump_clock: Clock) -> None:
    agent = make_agent()
    agent.start()
    for _ in range(7 * 24):
        await trio.sleep(HOUR)
        assert agent.serves()
    # At half of 24 h, 1 % up or down: the fourteenth renewal may be early or late.
    assert 14 <= len(agent.serials) <= 15
    assert len(set(agent.serials)) == len(agent.serials)
    keys = {
        seen.csr.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for seen in agent.ca.seen
    }
    assert len(keys) == len(agent.serials)


async def test_renewal_is_at_half_life(make_agent: MakeAgent, autojump_clock: Clock) -> None:
    agent = make_agent()
    agent.start()
    await trio.sleep(11.75 * HOUR)
    assert len(agent.serials) == 1
    await trio.sleep(0.5 * HOUR)
    assert len(agent.serials) == 2


async def test_ca_down_at_start(make_agent: MakeAgent, autojump_clock: Clock) -> None:
    agent = make_agent()
    agent.ca.up = False
    with structlog.testing.capture_logs() as logs:
        agent.start()
        await trio.sleep(HOUR)
        assert not agent.serves()
        agent.ca.up = True
        await trio.sleep(95)
        assert agent.serves()
    lines = events(logs, "no certificate yet")
    assert {line["reason"] for line in lines} == {"ca_unreachable"}
    assert "start it" in lines[0]["error"]
    pauses = [float(line["next_try_in"].removesuffix(" s")) for line in lines]
    assert pauses[0] < 1
    assert 30 <= max(pauses) <= 90
    # An hour of pauses of a minute, give or take, with five attempts each.
    assert len(lines) < 90
    assert agent.ca.dials <= 5 * 90


async def test_a_bug_in_one_request_does_not_end_the_agent(
    make_agent: MakeAgent, autojump_clock: Clock
) -> None:
    agent = make_agent()
    dial, failures = agent.ca.dial, iter([ZeroDivisionError()])

    async def dial_badly(address: CaAddress) -> trio.abc.Stream:
        for failure in failures:
            raise failure
        return await dial(address)

    agent.rotation._client._dial = dial_badly
    with structlog.testing.capture_logs() as logs:
        agent.start()
        await trio.sleep(60)
    assert agent.serves()
    [line] = events(logs, "no certificate yet")
    assert line["reason"] == "internal_error"
    [line] = events(logs, "asking the CA failed in an unforeseen way")
    assert line["exc_info"], "the traceback is in the log"


async def test_ca_down_at_renewal_and_back(make_agent: MakeAgent, autojump_clock: Clock) -> None:
    agent = make_agent()
    agent.ca.life = timedelta(hours=2)
    with structlog.testing.capture_logs() as logs:
        agent.start()
        await trio.sleep(0.5 * HOUR)
        first = agent.serial
        agent.ca.up = False
        await trio.sleep(1.4 * HOUR)
        assert agent.serves()
        assert agent.serial == first
        agent.ca.up = True
        await trio.sleep(95)
        assert agent.serves()
        assert agent.serial != first
    assert len(agent.serials) == 2
    mild = events(logs, "renewal failed")
    loud = events(logs, "renewal failed, and the certificate expires soon")
    assert {line["log_level"] for line in mild} == {"warning"}
    assert {line["log_level"] for line in loud} == {"error"}
    assert 1600 < float(loud[0]["expires_in"].removesuffix(" s")) <= 1800
    assert not events(logs, EXPIRED)


async def test_ca_down_beyond_expiry(make_agent: MakeAgent, autojump_clock: Clock) -> None:
    agent = make_agent()
    agent.ca.life = timedelta(hours=2)
    with structlog.testing.capture_logs() as logs:
        agent.start()
        await trio.sleep(0.5 * HOUR)
        agent.ca.up = False
        await trio.sleep(1.5 * HOUR - 1)
        assert agent.serves()
        await trio.sleep(2)
        assert not agent.serves()
        await trio.sleep(HOUR)
        assert agent.issued is None
        agent.ca.up = True
        await trio.sleep(95)
        assert agent.serves()
    assert len(events(logs, EXPIRED)) == 1
    assert events(logs, "the certificate has expired")
    assert not events(logs, "no certificate yet")


TWISTS: dict[str, Callable[[FakeCa], None]] = {
    "answer_foreign_identity": lambda ca: setattr(
        ca, "identity", "spiffe://cluster.local/ns/bar/sa/sleep"
    ),
    "answer_foreign_key": lambda ca: setattr(ca, "key", new_key().public_key()),
    "answer_incomplete": lambda ca: setattr(ca, "twist", lambda chain: chain[:1]),
    "answer_unreadable": lambda ca: setattr(ca, "twist", lambda chain: [*chain[:1], "nothing"]),
    "answer_untrusted": lambda ca: setattr(
        ca, "twist", lambda chain: [*chain[:1], make_root("other").pem.decode()]
    ),
    "answer_expired": lambda ca: setattr(ca, "life", -timedelta(minutes=1)),
    "answer_not_yet_valid": lambda ca: setattr(ca, "backdate", -timedelta(hours=30)),
    "ca_refused": lambda ca: setattr(
        ca, "failures", [GrpcError(Status.INVALID_ARGUMENT, "CSR signing error")] * 100_000
    ),
    "token_rejected": lambda ca: setattr(
        ca,
        "failures",
        [GrpcError(Status.UNAUTHENTICATED, "request authenticate failure")] * 100_000,
    ),
}


@pytest.mark.parametrize("reason", TWISTS)
async def test_bad_answer_at_renewal(
    make_agent: MakeAgent, autojump_clock: Clock, reason: str
) -> None:
    agent = make_agent()
    agent.ca.life = timedelta(hours=2)
    with structlog.testing.capture_logs() as logs:
        agent.start()
        await trio.sleep(0.5 * HOUR)
        first = agent.serial
        if reason == "answer_not_yet_valid":
            agent.ca.life = timedelta(hours=48)
        TWISTS[reason](agent.ca)
        await trio.sleep(0.75 * HOUR)
        assert agent.serves()
        assert agent.serial == first
    failed = events(logs, "renewal failed")
    assert {line["reason"] for line in failed} == {reason}
    # About a quarter of an hour of pauses that grow to a minute.
    assert 15 < len(agent.ca.seen) < 40


async def test_bad_answer_at_start_is_never_served(
    make_agent: MakeAgent, autojump_clock: Clock
) -> None:
    agent = make_agent()
    agent.ca.identity = "spiffe://cluster.local/ns/bar/sa/sleep"
    agent.start()
    await trio.sleep(HOUR)
    assert agent.serials == []
    assert not agent.serves()


@pytest.mark.parametrize("life", [1.0, 1.5])
async def test_short_lives_do_not_hammer_the_ca(
    make_agent: MakeAgent, autojump_clock: Clock, life: float
) -> None:
    agent = make_agent()
    agent.ca.life = timedelta(seconds=life)
    with structlog.testing.capture_logs() as logs:
        agent.start()
        await trio.sleep(HOUR)
        assert len(agent.ca.seen) < 80
        agent.ca.life = timedelta(hours=24)
        await trio.sleep(DAY)
    assert events(logs, "the CA issues certificates too short to be of use")
    assert agent.serves()
    assert len(agent.ca.seen) < 90


async def test_short_but_usable_lives_are_renewed_in_time(
    make_agent: MakeAgent, autojump_clock: Clock
) -> None:
    agent = make_agent(secret_ttl=timedelta(seconds=10))
    agent.ca.life = timedelta(seconds=10)
    agent.start()
    for _ in range(100):
        await trio.sleep(1)
        assert agent.serves()
    assert 15 <= len(agent.ca.seen) <= 25
    assert {seen.validity for seen in agent.ca.seen} == {10}


async def test_slow_ca_shortens_the_life_that_is_counted(
    make_agent: MakeAgent, autojump_clock: Clock
) -> None:
    agent = make_agent()
    agent.ca.latency = 9.0
    agent.start()
    await trio.sleep(10)
    assert agent.issued is not None
    assert agent.issued.created == NOW


def jwt(subject: str) -> str:
    payload = base64.urlsafe_b64encode(json.dumps({"sub": subject}).encode()).rstrip(b"=")
    return f"e30.{payload.decode()}.c2ln"


def asked_for(agent: Agent) -> list[str]:
    return [
        seen.csr.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value.get_values_for_type(x509.UniformResourceIdentifier)[0]
        for seen in agent.ca.seen
    ]


async def test_identity_is_read_from_the_token_when_it_comes(
    make_agent: MakeAgent, autojump_clock: Clock
) -> None:
    agent = make_agent(account=None)
    agent.config.token_file.unlink()
    with structlog.testing.capture_logs() as logs:
        agent.start()
        await trio.sleep(600)
        assert agent.ca.dials == 0
        agent.config.token_file.write_text(jwt("system:serviceaccount:foo:httpbin"))
        await trio.sleep(95)
    assert {line["reason"] for line in events(logs, "no certificate yet")} == {"token_missing"}
    assert agent.serves()
    assert asked_for(agent) == [str(IDENTITY)]


async def test_token_of_another_account_does_not_change_the_identity(
    make_agent: MakeAgent, autojump_clock: Clock
) -> None:
    agent = make_agent(account=None)
    agent.config.token_file.write_text(jwt("system:serviceaccount:foo:httpbin"))
    agent.start()
    await trio.sleep(1)
    agent.config.token_file.write_text(jwt("system:serviceaccount:bar:sleep"))
    await trio.sleep(13 * HOUR)
    assert len(agent.ca.seen) == 2
    assert set(asked_for(agent)) == {str(IDENTITY)}


async def test_changed_roots_are_announced_and_unchanged_ones_are_not(
    make_agent: MakeAgent, autojump_clock: Clock
) -> None:
    agent = make_agent()
    agent.start()
    await trio.sleep(HOUR)
    before = agent.store.holdings.roots[DOMAIN].version
    await trio.sleep(DAY)
    assert agent.store.holdings.roots[DOMAIN].version == before
    old = agent.ca.root
    agent.ca.root = make_root("new root")
    agent.config.ca_root_cert.write_bytes(old.pem + agent.ca.root.pem)
    await trio.sleep(DAY)
    assert agent.store.holdings.roots[DOMAIN].version != before


async def test_each_request_names_the_certificate_it_replaces(
    make_agent: MakeAgent, autojump_clock: Clock
) -> None:
    agent = make_agent()
    agent.start()
    await trio.sleep(2 * DAY)
    assert [seen.replaces for seen in agent.ca.seen] == [
        "",
        *(f"{serial:x}" for serial in agent.serials[:-1]),
    ]
    assert all(seen.takes_lists for seen in agent.ca.seen)


def bundle_of(*roots: Authority) -> BundleDocument:
    roots_of = TrustBundle.of(DOMAIN, [root.certificate for root in roots])
    return BundleDocument(roots=roots_of, jwt_keys={})


async def test_new_roots_are_reason_to_renew_at_once_and_once(
    make_agent: MakeAgent, autojump_clock: Clock
) -> None:
    """The CA signs with the next root only when it knows that everyone has it."""
    agent = make_agent()
    agent.start()
    await trio.sleep(HOUR)
    old, new = agent.ca.root, make_root("next")
    agent.ca.twist = lambda elements: [elements[0], (old.pem + new.pem).decode()]
    agent.store.put_bundle(bundle_of(old, new))
    await trio.sleep(ROOTS_CHANGED_SPREAD + 1)
    assert len(agent.ca.seen) == 2
    assert agent.ca.seen[1].replaces == f"{agent.serials[0]:x}"
    agent.store.put_bundle(bundle_of(new, old))
    await trio.sleep(HOUR)
    assert len(agent.ca.seen) == 2, "their order means nothing"
    await trio.sleep(11.5 * HOUR)
    assert len(agent.ca.seen) == 3, "and the time of the next renewal counts from this one"


async def test_new_revocation_lists_are_no_reason_to_renew(
    make_agent: MakeAgent, autojump_clock: Clock
) -> None:
    agent = make_agent()
    agent.start()
    await trio.sleep(HOUR)
    before = agent.store.holdings.roots[DOMAIN].version
    lists = [revocation_list(agent.ca.root, 1)]
    roots = TrustBundle.of(DOMAIN, [agent.ca.root.certificate], lists)
    agent.store.put_bundle(BundleDocument(roots=roots, jwt_keys={}))
    await trio.sleep(HOUR)
    assert agent.store.holdings.roots[DOMAIN].version != before
    assert len(agent.ca.seen) == 1


async def test_no_token_or_key_in_the_log(make_agent: MakeAgent, autojump_clock: Clock) -> None:
    agent = make_agent()
    secret = jwt("system:serviceaccount:foo:httpbin")
    agent.config.token_file.write_text(secret)
    agent.ca.failures = [
        GrpcError(Status.UNAUTHENTICATED, "no"),
        GrpcError(Status.INVALID_ARGUMENT, "no"),
        GrpcError(Status.UNAVAILABLE, "no"),
    ]
    with structlog.testing.capture_logs() as logs:
        agent.start()
        await trio.sleep(600)
    assert agent.serves()
    text = repr(logs)
    assert secret not in text
    assert "PRIVATE KEY" not in text
