"""Trees to typed values: every mismatch becomes a finding, and nothing unknown is passed over.

msgspec could convert the data itself, but stops at the first error and forgets the lines; so the
readers here are built from msgspec's own description of each struct, and the structs remain the
only place where fields are written down.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from enum import Enum
from typing import Any, TypeVar, cast

from msgspec import NODEFAULT, UNSET, inspect

from mesh.resources.problem import Finding
from mesh.resources.tree import Node, Path, describe, plain
from mesh.resources.values import Value

Reader = Callable[[Node, Path, list[Finding]], Any]
"""Reads one node: returns its value, or notes a finding and returns UNSET."""

_INTEGER = re.compile(r"-?[0-9]{1,19}")

T = TypeVar("T", bound=Value)


def reader_of(kind: type[Value]) -> Reader:
    """Build the reader of a struct and of everything in it."""
    info = inspect.type_info(kind)
    if not isinstance(info, inspect.StructType):
        raise TypeError(f"{kind} is not a struct")
    return _struct(info)


def read_value(
    reader: Reader, kind: type[T], node: Node, path: Path
) -> tuple[T | None, list[Finding]]:
    """Read a node with a reader of `kind`; the value is None if there are findings."""
    findings: list[Finding] = []
    value = reader(node, path, findings)
    return (value if isinstance(value, kind) and not findings else None), findings


def nearest(name: str, known: Sequence[str]) -> str:
    """Write `: did you mean X?` for the known name nearest to `name`, or an empty text."""
    close = closest(name, known, 0.6)
    return f": did you mean {close}?" if close else ""


def closest(name: str, known: Sequence[str], cutoff: float) -> str:
    """Return the known name nearest to `name`, empty if none is alike as `cutoff`, from 0 to 1."""
    by_fold = {other.replace("_", "").casefold(): other for other in known}
    close = get_close_matches(name.replace("_", "").casefold(), list(by_fold), n=1, cutoff=cutoff)
    return by_fold[close[0]] if close else ""


def _reader(info: inspect.Type) -> Reader:
    match info:
        case inspect.StructType():
            return _struct(info)
        case inspect.VarTupleType():
            return _list(info)
        case inspect.DictType():
            return _mapping(info)
        case inspect.UnionType():
            present = [member for member in info.types if not isinstance(member, inspect.NoneType)]
            return _reader(present[0])
        case inspect.EnumType():
            return _enum(info.cls)
        case _:
            return _scalar(info)


def _scalar(info: inspect.Type) -> Reader:
    match info:
        case inspect.StrType():
            return _text(info.min_length or 0, info.max_length)
        case inspect.IntType():
            return _integer(info)
        case inspect.BoolType():
            return _boolean
        case inspect.DateTimeType():
            return _timestamp
        case inspect.AnyType():
            return _anything
        case _:
            raise TypeError(f"no reader for {info}")


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a struct accepts: its fields by Istio's names, the required ones, and the ignored."""

    kind: type[Value]
    fields: Mapping[str, tuple[str, Reader]]
    required: tuple[tuple[str, str], ...]
    passed_over: frozenset[str]

    def read(self, node: Node, path: Path, findings: list[Finding]) -> Any:
        if not isinstance(node.value, Mapping):
            return _mismatch("a mapping", node, path, findings)
        before = len(findings)
        values: dict[str, Any] = {}
        for key, child in node.value.items():
            if key not in self.fields:
                self._unknown(key, path, findings)
            elif child.value is not None:  # Kubernetes drops a null field before all else.
                name, reader = self.fields[key]
                if name in values:
                    findings.append(Finding((*path, key), "is given under two spellings"))
                values[name] = reader(child, (*path, key), findings)
        for shown, name in self.required:
            if name not in values:
                findings.append(Finding(path, f"the field {shown!r} is required"))
        return self.kind(**values) if len(findings) == before else UNSET

    def _unknown(self, key: str, path: Path, findings: list[Finding]) -> None:
        if key not in self.passed_over:
            hint = nearest(key, [*self.fields, *self.passed_over])
            findings.append(Finding((*path, key), f"there is no field {key!r} here{hint}"))


def _struct(info: inspect.StructType) -> Reader:
    kind = cast("type[Value]", info.cls)
    by_name = {field.name: (field.name, _reader(field.type)) for field in info.fields}
    fields = {field.encode_name: by_name[field.name] for field in info.fields}
    fields |= {other: by_name[name] for other, name in kind.aliases.items()}
    required = tuple(
        (field.encode_name, field.name)
        for field in info.fields
        if field.default is NODEFAULT and field.default_factory is NODEFAULT
    )
    # A tagged struct's `kind` has been read already: it chose this reader.
    tag = frozenset({info.tag_field}) if info.tag_field else frozenset[str]()
    return _Shape(kind, fields, required, kind.also_known | tag).read


def _list(info: inspect.VarTupleType) -> Reader:
    item_reader = _reader(info.item_type)

    def read(node: Node, path: Path, findings: list[Finding]) -> Any:
        if not isinstance(node.value, tuple):
            return _mismatch("a list", node, path, findings)
        _bound(len(node.value), info.min_length, info.max_length, path, findings)
        return tuple(
            item_reader(item, (*path, index), findings) for index, item in enumerate(node.value)
        )

    return read


def _mapping(info: inspect.DictType) -> Reader:
    value_reader = _reader(info.value_type)
    integer_keys = isinstance(info.key_type, inspect.IntType)

    def read(node: Node, path: Path, findings: list[Finding]) -> Any:
        if not isinstance(node.value, Mapping):
            return _mismatch("a mapping", node, path, findings)
        _bound(len(node.value), info.min_length, info.max_length, path, findings)
        entries: dict[Any, Any] = {}
        for key, child in node.value.items():
            place = (*path, key)
            if not integer_keys:
                entries[key] = value_reader(child, place, findings)
            elif not _INTEGER.fullmatch(key):
                findings.append(Finding(place, f"the key {key!r} must be a number"))
            elif int(key) in entries:
                findings.append(Finding(place, f"the key {int(key)} is given twice"))
            else:
                entries[int(key)] = value_reader(child, place, findings)
        return entries

    return read


def _enum(kind: type[Enum]) -> Reader:
    members: dict[str, Enum] = {str(member.value): member for member in kind}

    def read(node: Node, path: Path, findings: list[Finding]) -> Any:
        if isinstance(node.value, str) and node.value in members:
            return members[node.value]
        hint = nearest(node.value, list(members)) if isinstance(node.value, str) else ""
        findings.append(
            Finding(path, f"must be one of {', '.join(members)}, not {describe(node)}{hint}")
        )
        return UNSET

    return read


def _text(least: int, most: int | None) -> Reader:
    def read(node: Node, path: Path, findings: list[Finding]) -> Any:
        value = node.value
        if not isinstance(value, str):
            quote = ": put it in quotes" if isinstance(value, int | float) else ""
            return _mismatch("text", node, path, findings, quote)
        if len(value) < least:
            findings.append(Finding(path, "must not be empty"))
        elif most is not None and len(value) > most:
            findings.append(Finding(path, f"has {len(value)} characters, more than {most}"))
        return value

    return read


def _integer(info: inspect.IntType) -> Reader:
    least, most = info.ge, info.le if info.lt is None else info.lt - 1

    def read(node: Node, path: Path, findings: list[Finding]) -> Any:
        value = node.value
        if isinstance(value, bool) or not isinstance(value, int):
            return _mismatch("a whole number", node, path, findings)
        if (least is not None and value < least) or (most is not None and value > most):
            findings.append(Finding(path, f"{value} must be from {least} to {most}"))
        return value

    return read


def _boolean(node: Node, path: Path, findings: list[Finding]) -> Any:
    if isinstance(node.value, bool):
        return node.value
    return _mismatch("true or false", node, path, findings)


def _timestamp(node: Node, path: Path, findings: list[Finding]) -> Any:
    """Read RFC 3339; without an offset a time could mean anything, so that is refused."""
    try:
        moment = datetime.fromisoformat(str(node.value))
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        return _mismatch("a time such as 2024-05-01T12:00:00Z", node, path, findings)
    return moment


def _anything(node: Node, _path: Path, _findings: list[Finding]) -> Any:
    return plain(node)


def _mismatch(wanted: str, node: Node, path: Path, findings: list[Finding], hint: str = "") -> Any:
    findings.append(Finding(path, f"must be {wanted}, not {describe(node)}{hint}"))
    return UNSET


def _bound(
    size: int, least: int | None, most: int | None, path: Path, findings: list[Finding]
) -> None:
    if least is not None and size < least:
        findings.append(Finding(path, "must not be empty: leave it out instead"))
    elif most is not None and size > most:
        findings.append(Finding(path, f"has {size} entries, more than the {most} allowed"))
