"""The last good configuration: kept whole and private, and never used when it is in doubt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.discovery.types import URL_OF
from mesh.errors import ConfigError
from mesh.resources.security import AuthorizationPolicy
from proxy.discovery_state import DiscoveryState
from proxy.last_good import (
    FILE_NAME,
    LastGoodRefused,
    decode_last_good,
    encode_last_good,
    read_last_good,
    write_last_good,
)
from tests.proxy.control import NODE, respond, told
from tests.proxy.test_discovery_state import DENY, STRICT, unreadable

POLICY_URL = URL_OF[AuthorizationPolicy]


def test_what_was_held_is_held_again(tmp_path: Path) -> None:
    state = told(DENY, STRICT)
    state.take(respond(POLICY_URL, unreadable(), version="8"))
    write_last_good(tmp_path, encode_last_good(state))
    again = DiscoveryState(NODE)
    assert read_last_good(tmp_path, again)
    assert again.complete
    assert again.received == state.received
    assert again.received.unread
    assert again.subscribe() == state.subscribe()


def test_the_file_is_private(tmp_path: Path) -> None:
    write_last_good(tmp_path, encode_last_good(told()))
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_without_a_file_there_is_nothing_to_begin_with(tmp_path: Path) -> None:
    state = DiscoveryState(NODE)
    assert not read_last_good(tmp_path, state)
    assert not state.complete


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="writable by others"):
        write_last_good(tmp_path, encode_last_good(told()))


def test_a_damaged_file_is_refused_with_a_sentence(tmp_path: Path) -> None:
    write_last_good(tmp_path, encode_last_good(told(DENY)))
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:-40])
    state = DiscoveryState(NODE)
    with pytest.raises(LastGoodRefused, match=r"is not used: it is damaged: .* control plane"):
        read_last_good(tmp_path, state)
    assert not state.complete
    assert state.received.config is None


@given(st.data())
def test_no_changed_byte_goes_unnoticed(data: st.DataObject) -> None:
    good = bytearray(encode_last_good(told(DENY)))
    where = data.draw(st.integers(0, len(good) - 1))
    good[where] ^= data.draw(st.integers(1, 255))
    state = DiscoveryState(NODE)
    try:
        decode_last_good(bytes(good), state)
    except LastGoodRefused:
        assert not state.complete
    else:  # the case of a letter in an escape, at most: the content is the very same
        assert state.received == told(DENY).received


@given(st.binary(max_size=200))
def test_whatever_is_in_the_file_there_is_only_one_error(junk: bytes) -> None:
    with pytest.raises(LastGoodRefused):
        decode_last_good(junk, DiscoveryState(NODE))


@pytest.mark.parametrize(
    "node",
    [
        replace(NODE, labels={"app": "other"}),
        replace(NODE, namespace="bar"),
        replace(NODE, service_account="other"),
    ],
)
def test_the_configuration_of_another_workload_is_refused(node: object) -> None:
    kept = encode_last_good(told(DENY))
    state = DiscoveryState(node)  # type: ignore[arg-type]
    with pytest.raises(LastGoodRefused, match="another workload"):
        decode_last_good(kept, state)
    assert not state.complete


def test_the_configuration_for_other_destinations_is_refused() -> None:
    with pytest.raises(LastGoodRefused, match="destinations"):
        decode_last_good(encode_last_good(told(DENY)), DiscoveryState(NODE, ["a.test"]))


def test_a_format_of_the_future_is_refused() -> None:
    file = json.loads(encode_last_good(told()))
    file["format"] = "remora-last-good/2"
    with pytest.raises(LastGoodRefused, match="its format is 'remora-last-good/2'"):
        decode_last_good(json.dumps(file).encode(), DiscoveryState(NODE))
