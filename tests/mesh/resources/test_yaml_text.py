from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.resources.errors import ResourceError, UnreadableDocument
from mesh.resources.tree import Node, line_of, plain, show_path
from mesh.resources.yaml_text import MAX_DEPTH, MAX_TEXT, read_documents, resolve_scalar


def only(text: str) -> Node:
    (document,) = read_documents(text)
    assert isinstance(document, Node), document
    return document


def refusal(text: str) -> UnreadableDocument:
    errors = [one for one in read_documents(text) if isinstance(one, UnreadableDocument)]
    assert len(errors) == 1
    return errors[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("null", None), ("NULL", None), ("nUll", "nUll"),
        ("true", True), ("Yes", True), ("on", True), ("off", False), ("FALSE", False), ("y", "y"),
        ("0", 0), ("8080", 8080), ("-1", -1), ("1_000", 1000), ("0x1F", 31), ("0b101", 5),
        ("0o17", 15), ("017", 15), ("08", "08"), ("-0x10", -16),
        ("1.5", 1.5), (".5", 0.5), ("1e3", 1000.0), ("1.2.3.4", "1.2.3.4"), ("1:30", "1:30"),
        ("2020-02-02T02:02:02Z", "2020-02-02T02:02:02Z"), ("1.10.0", "1.10.0"), (".", "."),
        ("10.0.0.0/8", "10.0.0.0/8"), ("9" * 5000, "9" * 5000), ("abc", "abc"), ("+", "+"),
    ],
)  # fmt: skip
def test_plain_scalars_are_read_as_kubernetes_reads_them(text: str, value: object) -> None:
    read = resolve_scalar(text)
    assert read == value
    assert type(read) is type(value)


def test_quotes_keep_a_scalar_text() -> None:
    assert plain(only("a: '80'\nb: \"true\"\nc: !!str 80\nd: |\n  1\n")) == {
        "a": "80", "b": "true", "c": "80", "d": "1\n",
    }  # fmt: skip


def test_lines_are_those_of_the_whole_text() -> None:
    text = "# comment\na: 1\n---\n\nb:\n- c: 2\n- d: 3\n"
    first, second = read_documents(text)
    assert isinstance(first, Node)
    assert isinstance(second, Node)
    assert line_of(first, ("a",)) == 2
    assert line_of(second, ("b", 1, "d")) == 7
    assert line_of(second, ("b", 7, "e")) == 6  # the nearest thing that exists


def test_empty_documents_are_left_out() -> None:
    assert list(read_documents("---\n---\n# only a comment\n---\n")) == []
    assert list(read_documents("")) == []


def test_directives_belong_to_the_document_after_them() -> None:
    assert plain(only("%YAML 1.1\n---\na: 1\n")) == {"a": 1}


def test_a_mark_inside_a_text_block_is_only_text_when_indented() -> None:
    assert plain(only("a: |\n  x\n  ---\n  y\n")) == {"a": "x\n---\ny\n"}


def test_a_bad_document_leaves_its_neighbours_alone() -> None:
    first, bad, last = read_documents("a: 1\n---\nb: [1,\n---\nc: 3\n")
    assert isinstance(first, Node)
    assert isinstance(last, Node)
    assert isinstance(bad, UnreadableDocument)
    assert plain(first) == {"a": 1}
    assert plain(last) == {"c": 3}
    assert 3 <= bad.line <= 4
    assert line_of(last, ("c",)) == 5


@pytest.mark.parametrize(
    ("text", "sentence", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "'a' is given twice", 3),
        ("'80': 1\n80: 2\n", "'80' is given twice", 2),
        ("a: !!python/object:os.system {}\n", "tag", 1),
        ("a: !!binary aGk=\n", "tag", 1),
        ("true: 1\n", "a key must be text", 1),
        ("? [a]\n: 1\n", "a key must be a single value", 1),
        ("base: &b {x: 1}\nc:\n  <<: *b\n", "merge keys", 3),
        ("a: *nowhere\n", "alias", 1),
        ("a: &a\n  b: *a\n", "alias", 2),
        ("a: \t\x00b\n", "not YAML", 1),
        ("a: b: c\n", "not YAML", 1),
    ],
)
def test_what_is_refused_and_where(text: str, sentence: str, line: int) -> None:
    error = refusal(text)
    assert sentence in str(error)
    assert error.line == line


def test_depth_is_bounded() -> None:
    assert "nested" in str(refusal("[" * 100_000))
    fits = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert isinstance(only(fits), Node)
    assert "nested" in str(refusal(f"[{fits}]"))


def test_aliases_are_counted_as_what_they_stand_for() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "values" in str(refusal("\n".join(levels)))


def test_aliases_in_reason_are_fine() -> None:
    assert plain(only("a: &a [1, 2]\nb: *a\n")) == {"a": [1, 2], "b": [1, 2]}


def test_an_anchor_does_not_reach_the_next_document() -> None:
    assert "alias" in str(refusal("a: &a 1\n---\nb: *a\n"))


def test_a_text_that_is_too_long_is_refused_whole() -> None:
    with pytest.raises(ResourceError, match="split it"):
        list(read_documents("#" * (MAX_TEXT + 1)))


def test_paths_read_as_operators_write_them() -> None:
    assert show_path(("spec", "rules", 0, "from")) == "spec.rules[0].from"


@given(st.text(alphabet="abk:-[]{}&*!|>'\"#%,?\n \t~<0189.", max_size=80))
def test_no_text_raises(text: str) -> None:
    for document in read_documents(text):
        assert isinstance(document, Node | UnreadableDocument)
