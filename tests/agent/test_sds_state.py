from __future__ import annotations

from collections.abc import Sequence

import pytest

from agent.errors import BadSubscription
from agent.resources import Resource, Roots
from agent.sds_state import Ask, Meaning, StreamState

TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


class Offered:
    """Secrets by name and version; both names may be asked for before they are there."""

    def __init__(self, versions: dict[str, int]) -> None:
        self.versions = versions

    def everything(self) -> tuple[str, ...]:
        return ("default", "ROOTCA")

    def check(self, name: str) -> None:
        if name not in self.everything():
            raise BadSubscription(f"there is no secret {name[:120]!r}, only default, ROOTCA")

    def get(self, name: str) -> Resource | None:
        if name not in self.versions:
            return None
        return Resource(name=name, version=str(self.versions[name]), value=Roots(pem=b""))


class Conversation:
    """Plays requests and store changes against one stream; replies are lists of names."""

    def __init__(self, **versions: int) -> None:
        self.state = StreamState(TYPE)
        self.offered = Offered(versions)
        self.nonce = ""
        self._count = 0

    def ask(
        self,
        *names: str,
        nonce: str | None = "",
        error: str | None = None,
        node: str = "sidecar~1",
        type_url: str = TYPE,
    ) -> tuple[Meaning, list[str]]:
        """`nonce=None` stands for the one of the latest reply."""
        meaning = self.state.take(
            Ask(
                node_id=node,
                type_url=type_url,
                names=names,
                nonce=self.nonce if nonce is None else nonce,
                error=error,
            ),
            self.offered,
        )
        return meaning, self.reply()

    def change(self, **versions: int) -> list[str]:
        self.offered.versions |= versions
        return self.reply()

    def reply(self) -> list[str]:
        resources: Sequence[Resource] = self.state.due(self.offered)
        if resources:
            self._count += 1
            self.nonce = f"nonce-{self._count}"
            self.state.sending(resources, self.nonce)
        return [resource.name for resource in resources]


def both() -> Conversation:
    return Conversation(default=1, ROOTCA=2)


def test_subscribe_and_acknowledge() -> None:
    talk = both()
    assert talk.ask("default") == (Meaning.SUBSCRIBE, ["default"])
    assert talk.ask("default", nonce=None) == (Meaning.ACK, [])
    assert talk.reply() == []


def test_several_names_come_in_one_reply() -> None:
    assert both().ask("default", "ROOTCA") == (Meaning.SUBSCRIBE, ["default", "ROOTCA"])


def test_repeated_name_comes_once() -> None:
    assert both().ask("default", "default") == (Meaning.SUBSCRIBE, ["default"])


def test_push_of_the_changed_name_only() -> None:
    talk = both()
    talk.ask("default", "ROOTCA")
    talk.ask("default", "ROOTCA", nonce=None)
    assert talk.change(default=3) == ["default"]
    assert talk.ask("default", "ROOTCA", nonce=None) == (Meaning.ACK, [])
    assert talk.change(ROOTCA=4) == ["ROOTCA"]
    assert talk.change() == []


def test_no_push_of_a_name_nobody_asked_for() -> None:
    talk = both()
    talk.ask("ROOTCA")
    assert talk.change(default=3) == []


def test_push_does_not_wait_for_an_acknowledgement() -> None:
    talk = both()
    talk.ask("default")
    assert talk.change(default=3) == ["default"]


def test_answer_waits_until_there_is_a_secret() -> None:
    talk = Conversation()
    assert talk.ask("default") == (Meaning.SUBSCRIBE, [])
    assert talk.change(default=1) == ["default"]
    assert talk.ask("default", nonce=None) == (Meaning.ACK, [])


def test_what_is_there_does_not_wait_for_the_rest() -> None:
    talk = Conversation(ROOTCA=1)
    assert talk.ask("default", "ROOTCA") == (Meaning.SUBSCRIBE, ["ROOTCA"])
    assert talk.ask("default", "ROOTCA", nonce=None) == (Meaning.ACK, [])
    assert talk.change(default=2) == ["default"]


def test_nack_gets_no_reply_and_a_later_version_is_pushed() -> None:
    talk = both()
    talk.ask("default")
    assert talk.ask("default", nonce=None, error="bad key") == (Meaning.NACK, [])
    assert talk.change(default=3) == ["default"]


def test_nack_changes_no_subscription() -> None:
    talk = both()
    talk.ask("default")
    assert talk.ask("default", "ROOTCA", nonce=None, error="bad key") == (Meaning.NACK, [])


def test_stale_nonce_is_ignored_with_its_names() -> None:
    talk = both()
    talk.ask("default")
    old = talk.nonce
    talk.change(default=3)
    assert talk.ask("default", "ROOTCA", nonce=old) == (Meaning.STALE, [])
    assert talk.ask("default", "ROOTCA", nonce=None) == (Meaning.ACK, ["ROOTCA"])


def test_name_added_with_an_acknowledgement_comes_alone() -> None:
    talk = both()
    talk.ask("default")
    assert talk.ask("default", "ROOTCA", nonce=None) == (Meaning.ACK, ["ROOTCA"])


def test_name_left_out_is_not_pushed_and_comes_anew_when_added_again() -> None:
    talk = both()
    talk.ask("default", "ROOTCA")
    assert talk.ask("ROOTCA", nonce=None) == (Meaning.ACK, [])
    assert talk.change(default=3) == []
    assert talk.ask("default", "ROOTCA", nonce=None) == (Meaning.ACK, ["default"])


def test_unsubscribe_and_subscribe_again() -> None:
    talk = both()
    talk.ask("default")
    assert talk.ask(nonce=None) == (Meaning.UNSUBSCRIBE, [])
    assert talk.change(default=3) == []
    assert talk.ask("default", nonce=None) == (Meaning.SUBSCRIBE, ["default"])


def test_reconnect_with_an_old_nonce_gets_everything() -> None:
    assert both().ask("default", "ROOTCA", nonce="of-another-stream") == (
        Meaning.SUBSCRIBE,
        ["default", "ROOTCA"],
    )


def test_unsubscribe_on_a_fresh_stream() -> None:
    assert both().ask(nonce="of-another-stream") == (Meaning.UNSUBSCRIBE, [])


def test_empty_nonce_starts_over() -> None:
    talk = both()
    talk.ask("default")
    talk.ask("default", nonce=None)
    assert talk.ask("default", nonce="") == (Meaning.SUBSCRIBE, ["default"])


def test_no_names_from_the_start_means_everything() -> None:
    talk = both()
    assert talk.ask() == (Meaning.SUBSCRIBE, ["default", "ROOTCA"])
    assert talk.ask(nonce=None) == (Meaning.ACK, [])
    assert talk.change(ROOTCA=5) == ["ROOTCA"]


def test_node_is_needed_once() -> None:
    talk = both()
    talk.ask("default")
    assert talk.ask("default", nonce=None, node="") == (Meaning.ACK, [])
    assert talk.state.node_id == "sidecar~1"


def test_first_request_without_a_node() -> None:
    with pytest.raises(BadSubscription, match=r"node\.id"):
        both().ask("default", node="")


@pytest.mark.parametrize("name", ["", "Default", "file-cert:a~b", "x" * 10_000])
def test_unknown_name(name: str) -> None:
    with pytest.raises(BadSubscription, match="only default, ROOTCA") as caught:
        both().ask("default", name)
    assert len(str(caught.value)) < 300


def test_type_may_be_left_out_but_not_another() -> None:
    talk = both()
    assert talk.ask("default", type_url="") == (Meaning.SUBSCRIBE, ["default"])
    with pytest.raises(BadSubscription, match="this stream carries"):
        talk.ask("default", type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster")
