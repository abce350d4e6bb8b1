"""YAML text to trees, one document at a time, so that a bad document harms no other.

The text is cut at its document marks before any parser sees it, and each piece is read from the
parser's flat event stream. Nothing here recurses, so depth, size and aliases are bounded before
they cost anything; tags are refused, so no object is ever built from text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import yaml

from mesh.resources.errors import ResourceError, UnreadableDocument
from mesh.resources.tree import Node, Scalar

MAX_TEXT = 64 * 1024 * 1024
"""Characters in one text: some 100,000 policies. More than that is not configuration."""

MAX_DEPTH = 64
"""Nested lists and mappings in one document: the deepest Istio resource needs about 15."""

MAX_NODES = 200_000
"""Values in one document with every alias counted as often as it is used, so that ten lines of
aliases cannot stand for a billion values. Kubernetes stores no object over about 1.5 MiB."""

MAX_NUMBER = 40
"""Characters of the longest number that is read as one: no field holds more than 64 bits, and
Python refuses integers of thousands of digits with an error of its own."""

Document = Node | UnreadableDocument

# The C parser is many times faster where PyYAML was built with it; the events are the same.
_PARSER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MARK = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSE = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
_DECIMAL = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)")
_BASED = re.compile(r"[-+]?(?:0x[0-9a-fA-F_]+|0b[01_]+|0o?[0-7_]+)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*\.[0-9_]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")


def read_documents(text: str) -> Iterator[Document]:
    """Yield each document of `text` as a tree, or as the error that makes it unreadable.

    Empty documents are left out. Raises ResourceError if the text as a whole is too long.
    """
    if len(text) > MAX_TEXT:
        raise ResourceError(
            f"the text has {len(text)} characters, more than the {MAX_TEXT} allowed: split it"
        )
    for piece, first_line in cut_at_marks(text):
        yield from _read_piece(piece, first_line)


def cut_at_marks(text: str) -> Iterator[tuple[str, int]]:
    """Cut a text into its documents, each with the line it starts on; together they are the text.

    The cuts are at `---`: YAML lets nothing, not even a block of text, run across that mark.
    """
    starts = [0, *(match.start() for match in _MARK.finditer(text)), len(text)]
    line = 1
    pending = ""
    for start, end in pairwise(starts):
        piece = pending + text[start:end]
        if _only_directives(piece):
            pending = piece
            continue
        pending = ""
        yield piece, line
        line += piece.count("\n")
    if pending:
        yield pending, line


def _only_directives(piece: str) -> bool:
    """Tell whether a piece is `%YAML 1.2` and the like, which belong to the next document."""
    lines = [line for line in piece.splitlines() if line.strip() and not line.startswith("#")]
    return bool(lines) and all(line.startswith("%") for line in lines)


def _read_piece(piece: str, first_line: int) -> Iterator[Document]:
    builder = _Builder(first_line)
    try:
        for event in yaml.parse(piece, Loader=_PARSER):
            document = builder.feed(event)
            if document is not None and document.value is not None:
                yield document
    except UnreadableDocument as error:
        yield error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem or error.context)
        hint = ": a text with colons may need quotes" if "':'" in problem else ""
        yield UnreadableDocument(
            f"this is not YAML: {problem}{hint}",
            first_line + (mark.line if mark else 0),
        )
    except yaml.YAMLError as error:
        yield UnreadableDocument(f"this is not YAML: {' '.join(str(error).split())}", first_line)


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not been seen yet."""

    line: int
    anchor: str | None
    items: list[Node] | None
    entries: dict[str, Node] = field(default_factory=dict[str, Node])
    key: str | None = None
    size: int = 1


class _Builder:
    """Turns parser events into one tree at a time."""

    def __init__(self, first_line: int) -> None:
        self._first_line = first_line
        self._stack: list[_Open] = []
        self._open_size = 0  # The sizes of all that is on the stack, together.
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._handlers: dict[type[yaml.Event], Callable[..., Node | None]] = {
            yaml.DocumentStartEvent: self._start_document,
            yaml.ScalarEvent: self._scalar,
            yaml.AliasEvent: self._alias,
            yaml.SequenceStartEvent: self._open_sequence,
            yaml.MappingStartEvent: self._open_mapping,
            yaml.SequenceEndEvent: self._close,
            yaml.MappingEndEvent: self._close,
        }

    def feed(self, event: yaml.Event) -> Node | None:
        """Take the next event; return the root of the document when it is complete."""
        handler = self._handlers.get(type(event))
        return handler(event) if handler else None

    def _start_document(self, _event: yaml.DocumentStartEvent) -> None:
        self._anchors.clear()

    def _line(self, event: yaml.Event) -> int:
        mark = event.start_mark
        return self._first_line + (mark.line if mark else 0)

    def _refuse_tag(self, tag: str | None, line: int) -> None:
        if tag not in {None, "!", "tag:yaml.org,2002:str"}:
            raise UnreadableDocument(
                f"the tag {tag!r} is not allowed here: write a plain value", line
            )

    def _scalar(self, event: yaml.ScalarEvent) -> Node | None:
        line = self._line(event)
        if event.tag is not None:
            self._refuse_tag(event.tag, line)
        # An event is plain when its first `implicit` flag is set: only then may it be a number.
        value = resolve_scalar(event.value) if event.implicit[0] else event.value
        return self._add(Node(value, line), 1, event.anchor)

    def _alias(self, event: yaml.AliasEvent) -> Node | None:
        line = self._line(event)
        if event.anchor not in self._anchors:
            raise UnreadableDocument(
                f"the alias *{event.anchor} has no complete anchor before it", line
            )
        node, size = self._anchors[event.anchor]
        return self._add(node, size, None)

    def _open_sequence(self, event: yaml.SequenceStartEvent) -> None:
        self._open(_Open(self._line(event), event.anchor, []), event.tag)

    def _open_mapping(self, event: yaml.MappingStartEvent) -> None:
        self._open(_Open(self._line(event), event.anchor, None), event.tag)

    def _open(self, opened: _Open, tag: str | None) -> None:
        self._refuse_tag(tag, opened.line)
        if self._stack and self._stack[-1].items is None and self._stack[-1].key is None:
            raise UnreadableDocument(
                "a key must be a single value, not a list or a mapping", opened.line
            )
        if len(self._stack) >= MAX_DEPTH:
            raise UnreadableDocument(f"values are nested more than {MAX_DEPTH} deep", opened.line)
        self._stack.append(opened)
        self._open_size += opened.size

    def _close(self, _event: yaml.Event) -> Node | None:
        done = self._stack.pop()
        self._open_size -= done.size
        value = done.entries if done.items is None else tuple(done.items)
        return self._add(Node(value, done.line), done.size, done.anchor)

    def _add(self, node: Node, size: int, anchor: str | None) -> Node | None:
        if anchor is not None:
            self._anchors[anchor] = (node, size)
        if not self._stack:
            return node
        parent = self._stack[-1]
        parent.size += size
        self._open_size += size
        if self._open_size > MAX_NODES:
            raise UnreadableDocument(
                f"the document stands for more than {MAX_NODES} values", node.line
            )
        if parent.items is not None:
            parent.items.append(node)
        elif parent.key is None:
            parent.key = _key(node)
            if parent.key in parent.entries:
                raise UnreadableDocument(f"the key {parent.key!r} is given twice", node.line)
        else:
            parent.entries[parent.key] = node
            parent.key = None
        return None


def _key(node: Node) -> str:
    if isinstance(node.value, bool) or not isinstance(node.value, str | int):
        raise UnreadableDocument(
            "a key must be text or a whole number: put it in quotes", node.line
        )
    if node.value == "<<":
        raise UnreadableDocument("merge keys (<<) are not read here: repeat the values", node.line)
    return str(node.value)


def resolve_scalar(text: str) -> Scalar:
    """Resolve a plain scalar by YAML 1.1 as Kubernetes reads it; dates and 1:30 stay text."""
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if text[0] not in "+-.0123456789" or len(text) > MAX_NUMBER:
        return text
    return _number(text)


def _number(text: str) -> Scalar:
    digits = text.replace("_", "")
    if _DECIMAL.fullmatch(text):
        return int(digits)
    if _BASED.fullmatch(text):
        return _based(digits)
    if _FLOAT.fullmatch(text):
        return float(digits)
    return text


def _based(digits: str) -> Scalar:
    sign = -1 if digits.startswith("-") else 1
    bare = digits.lstrip("+-")
    prefix, base = bare[:2], {"0x": 16, "0b": 2, "0o": 8}.get(bare[:2], 8)
    body = bare[2:] if prefix in {"0x", "0b", "0o"} else bare[1:]
    return sign * int(body, base) if body else bare
