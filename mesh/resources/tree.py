"""A document as a tree that remembers its lines: the step between text and typed values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

Scalar = str | int | float | bool | None
Key = str | int
Path = tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a document and the line it stands on; line 0 means that it came without text."""

    value: Scalar | tuple[Node, ...] | Mapping[str, Node]
    line: int = 0


def describe(node: Node) -> str:
    """Name the kind of a node's value as an operator would: `a list`, `the number 5`."""
    match node.value:
        case None:
            return "nothing"
        case bool():
            return f"the boolean {str(node.value).lower()}"
        case int() | float():
            return f"the number {node.value}"
        case str():
            return f"the text {node.value[:60]!r}"
        case tuple():
            return "a list"
        case _:
            return "a mapping"


def line_of(root: Node, path: Path) -> int:
    """Return the line of the node at `path`, or of its nearest ancestor that exists."""
    node = root
    for step in path:
        child = _child(node, step)
        if child is None:
            break
        node = child
    return node.line


def show_path(path: Path) -> str:
    """Write a path as an operator reads it: `spec.rules[0].from[1].source`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def tree_of(data: object) -> Node:
    """Wrap plain Python data, such as parsed JSON, in a tree without line numbers."""
    if isinstance(data, Mapping):
        items = cast("Mapping[object, object]", data)
        return Node({str(key): tree_of(value) for key, value in items.items()})
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        values = cast("Sequence[object]", data)
        return Node(tuple(tree_of(value) for value in values))
    if data is None or isinstance(data, str | int | float):
        return Node(data)
    return Node(str(data))


def plain(node: Node) -> object:
    """Return the tree's plain Python data, without lines."""
    match node.value:
        case tuple():
            return [plain(item) for item in node.value]
        case Mapping():
            return {key: plain(item) for key, item in node.value.items()}
        case scalar:
            return scalar


def _child(node: Node, step: Key) -> Node | None:
    match node.value:
        case tuple() if isinstance(step, int) and 0 <= step < len(node.value):
            return node.value[step]
        case Mapping():
            return node.value.get(str(step))
        case _:
            return None
