from __future__ import annotations

from collections.abc import Mapping

import pytest

from agent.delta_state import DeltaAsk, DeltaState
from agent.errors import BadSubscription
from agent.sds_state import Meaning
from tests.agent.test_sds_state import TYPE, Offered


class Conversation:
    """Plays requests and store changes against one stream; replies are lists of names."""

    def __init__(self, **versions: int) -> None:
        self.state = DeltaState(TYPE)
        self.offered = Offered(versions)

    def ask(
        self,
        *names: str,
        drop: tuple[str, ...] = (),
        have: Mapping[str, str] | None = None,
        error: str | None = None,
        node: str = "sidecar~1",
        type_url: str = TYPE,
    ) -> tuple[Meaning, list[str]]:
        ask = DeltaAsk(
            node_id=node,
            type_url=type_url,
            subscribe=names,
            unsubscribe=drop,
            initial_versions=have or {},
            nonce="n",
            error=error,
        )
        return self.state.take(ask, self.offered), self.reply()

    def change(self, **versions: int) -> list[str]:
        self.offered.versions |= versions
        return self.reply()

    def reply(self) -> list[str]:
        resources = self.state.due(self.offered)
        self.state.sending(resources)
        return [resource.name for resource in resources]


def both() -> Conversation:
    return Conversation(default=1, ROOTCA=2)


def test_subscribe_acknowledge_and_push() -> None:
    talk = both()
    assert talk.ask("default") == (Meaning.SUBSCRIBE, ["default"])
    assert talk.ask() == (Meaning.ACK, [])
    assert talk.change(default=3, ROOTCA=4) == ["default"]


def test_subscriptions_add_up() -> None:
    talk = both()
    talk.ask("default")
    assert talk.ask("ROOTCA") == (Meaning.SUBSCRIBE, ["ROOTCA"])
    assert talk.change(default=3, ROOTCA=4) == ["default", "ROOTCA"]


def test_unsubscribed_name_is_not_pushed_and_comes_anew() -> None:
    talk = both()
    talk.ask("default", "ROOTCA")
    assert talk.ask(drop=("default",)) == (Meaning.UNSUBSCRIBE, [])
    assert talk.change(default=3) == []
    assert talk.ask("default") == (Meaning.SUBSCRIBE, ["default"])


def test_what_is_asked_for_again_comes_again() -> None:
    talk = both()
    talk.ask("default", "ROOTCA")
    assert talk.ask("default") == (Meaning.SUBSCRIBE, ["default"])


def test_what_the_client_still_has_is_not_sent() -> None:
    have = {"default": "1", "ROOTCA": "1", "junk": "9"}
    assert both().ask("default", "ROOTCA", have=have) == (Meaning.SUBSCRIBE, ["ROOTCA"])


def test_only_the_first_request_may_tell_what_the_client_has() -> None:
    talk = both()
    talk.ask("default")
    assert talk.ask("ROOTCA", have={"ROOTCA": "2"}) == (Meaning.SUBSCRIBE, ["ROOTCA"])


@pytest.mark.parametrize("names", [(), ("*",)])
def test_everything(names: tuple[str, ...]) -> None:
    talk = both()
    assert talk.ask(*names) == (Meaning.SUBSCRIBE, ["default", "ROOTCA"])
    assert talk.ask() == (Meaning.ACK, [])
    assert talk.change(ROOTCA=5) == ["ROOTCA"]
    assert talk.ask(drop=("*",)) == (Meaning.UNSUBSCRIBE, [])
    assert talk.change(ROOTCA=6) == []


def test_answer_waits_until_there_is_a_secret() -> None:
    talk = Conversation()
    assert talk.ask("default") == (Meaning.SUBSCRIBE, [])
    assert talk.change(default=1) == ["default"]


def test_nack_is_no_request_for_the_same_again() -> None:
    talk = both()
    talk.ask("default")
    assert talk.ask(error="bad key") == (Meaning.NACK, [])
    assert talk.change(default=2) == ["default"]


def test_refusals() -> None:
    with pytest.raises(BadSubscription, match="no secret 'x'"):
        both().ask("default", "x")
    with pytest.raises(BadSubscription, match=r"node\.id"):
        both().ask("default", node="")
    with pytest.raises(BadSubscription, match="this stream carries"):
        both().ask("default", type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster")
