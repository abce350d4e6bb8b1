"""Durations in Go's notation."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.duration import format_duration, parse_duration
from mesh.errors import ConfigError

GOOD = {
    "0s": timedelta(0),
    "30s": timedelta(seconds=30),
    "10m": timedelta(minutes=10),
    "24h": timedelta(hours=24),
    "2160h": timedelta(days=90),
    "1h30m": timedelta(minutes=90),
    "1h0m5s": timedelta(seconds=3605),
    "250ms": timedelta(milliseconds=250),
    "1.5h": timedelta(minutes=90),
    "0.5s": timedelta(milliseconds=500),
    "1m1ms": timedelta(seconds=60, milliseconds=1),
}

BAD = ["", "s", "30", "30 s", " 30s", "30s\n", "-30s", "+30s", "30S", "1d", "1us", "1h-30m", ".5s",
       "5.s", "1e3s", "1_0s", "0x10s", "30s30", "٣s", "inf", "nan"]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_durations_are_read(text: str) -> None:
    assert parse_duration(text) == GOOD[text]


@pytest.mark.parametrize("text", BAD, ids=repr)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="write it like 30s"):
        parse_duration(text)


@pytest.mark.parametrize("digits", [12, 30, 400])
def test_a_duration_no_calendar_holds_is_refused(digits: int) -> None:
    with pytest.raises(ConfigError, match="longer duration than can be used"):
        parse_duration("9" * digits + "h")


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(0), "0s"),
        (timedelta(microseconds=400), "0s"),
        (timedelta(milliseconds=250), "250ms"),
        (timedelta(seconds=90), "1m30s"),
        (timedelta(days=90), "2160h"),
        (timedelta(hours=1, milliseconds=5), "1h5ms"),
    ],
)
def test_durations_are_written(duration: timedelta, text: str) -> None:
    assert format_duration(duration) == text


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=36500)))
def test_what_is_written_is_read_back(duration: timedelta) -> None:
    read = parse_duration(format_duration(duration))
    assert abs(read - duration) <= timedelta(milliseconds=1)
