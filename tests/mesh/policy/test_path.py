from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.errors import PathRefused
from mesh.policy.path import normalize_target
from mesh.resources.mesh_config import Normalization

BASE = Normalization.BASE
MERGE = Normalization.MERGE_SLASHES
DECODE = Normalization.DECODE_AND_MERGE_SLASHES
NONE = Normalization.NONE


@pytest.mark.parametrize(
    ("target", "base", "merge", "decode"),
    [
        ("/", "/", "/", "/"),
        ("//", "//", "//", "//"),  # Envoy leaves a path of nothing but slashes two of them.
        ("///", "///", "//", "//"),
        ("//a//b/", "//a//b/", "/a/b/", "/a/b/"),
        ("/a/../b", "/b", "/b", "/b"),
        ("/..", "/", "/", "/"),
        ("/../a", "/a", "/a", "/a"),
        ("/a/.", "/a/", "/a/", "/a/"),
        ("/a/..", "/", "/", "/"),
        ("/a/b/..", "/a/", "/a/", "/a/"),
        ("/a/b/../..//c", "//c", "/c", "/c"),
        ("/a/...", "/a/...", "/a/...", "/a/..."),
        ("/a/%2e%2E/b", "/b", "/b", "/b"),
        ("/a/%2e.", "/", "/", "/"),
        ("/a\\..\\b", "/b", "/b", "/b"),
        ("/a%2f..%2fb", "/a%2f..%2fb", "/a%2f..%2fb", "/b"),
        ("/a%5C..", "/a%5C..", "/a%5C..", "/"),
        ("/a%2F%2fb", "/a%2F%2fb", "/a%2F%2fb", "/a/b"),
        ("/a%2F/../b", "/b", "/b", "/a/b"),
        ("/%252e/", "/%252e/", "/%252e/", "/%252e/"),
        ("/%41%7e%2d", "/A~-", "/A~-", "/A~-"),
        ("/%c3%A9%20", "/%c3%A9%20", "/%c3%A9%20", "/%c3%A9%20"),
        ("/%zz%2%", "/%zz%2%", "/%zz%2%", "/%zz%2%"),
        ("/%4%31", "/%2541", "/%2541", "/%2541"),  # Decoding makes no new escape.
        ("/%%34%31", "/%2541", "/%2541", "/%2541"),
        ('/a"<>^`{|}', "/a%22%3C%3E%5E%60%7B%7C%7D", "/a%22%3C%3E%5E%60%7B%7C%7D",
         "/a%22%3C%3E%5E%60%7B%7C%7D"),
        ("/a;b/../c", "/c", "/c", "/c"),
        ("/a/..;x/b", "/b", "/b", "/b"),
        ("/a/.;x/b", "/a/b", "/a/b", "/a/b"),
        ("/a/%2e%2e;x/b", "/a/..;x/b", "/a/..;x/b", "/a/..;x/b"),
        ("/A/b", "/A/b", "/A/b", "/A/b"),
        ("/a?b/../%41\\", "/a?b/../%41\\", "/a?b/../%41\\", "/a?b/../%41\\"),
        ("/a/../b?c#d", "/b?c", "/b?c", "/b?c"),
        ("/a#b?c", "/a", "/a", "/a"),
        ("/a?", "/a?", "/a?", "/a?"),
    ],
)  # fmt: skip
def test_paths_in_every_mode(target: str, base: str, merge: str, decode: str) -> None:
    assert normalize_target(target, BASE) == base
    assert normalize_target(target, Normalization.DEFAULT) == base
    assert normalize_target(target, MERGE) == merge
    assert normalize_target(target, DECODE) == decode
    assert normalize_target(target, NONE) == target.partition("#")[0]


@pytest.mark.parametrize("mode", [BASE, MERGE, DECODE])
@pytest.mark.parametrize("target", ["/%00", "/a%00b?c", "/a/%00/.."])
def test_an_escaped_nul_is_refused_where_paths_are_read(target: str, mode: Normalization) -> None:
    with pytest.raises(PathRefused) as refused:
        normalize_target(target, mode)
    assert refused.value.status == 400
    assert normalize_target(target, NONE) == target


@pytest.mark.parametrize("mode", list(Normalization))
@pytest.mark.parametrize("target", ["", "*", "a", "?a", "/a b", "/é", "/\x00", "/a\n", "/\x7f"])
def test_targets_that_are_no_paths_are_refused(target: str, mode: Normalization) -> None:
    with pytest.raises(PathRefused):
        normalize_target(target, mode)


ATOMS = ["/", "//", ".", "..", "%2e", "%2f", "%5C", "\\", "a", "%41", "%", "%2", ";", "%25", "?"]


@given(st.lists(st.sampled_from(ATOMS), max_size=12), st.sampled_from([BASE, MERGE, DECODE]))
def test_no_dot_segment_survives_and_case_does(parts: list[str], mode: Normalization) -> None:
    path = normalize_target("/" + "".join(parts), mode).partition("?")[0]
    assert path.startswith("/")
    assert not {".", ".."} & set(path.split("/"))
    assert "\\" not in path
    if mode is not BASE:
        assert "//" not in path or path == "//"
