"""Registration entries: which callers of this node get which identity.

The file is YAML, its fields those of SPIRE's registration entries. The order of entries counts:
the first that fits a caller is its default identity.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from agent.selector import InvalidSelector, Selector
from mesh.errors import ConfigError
from mesh.resources.decode import read_value, reader_of
from mesh.resources.errors import ResourceError, UnreadableDocument
from mesh.resources.problem import Finding
from mesh.resources.tree import Node, line_of, show_path
from mesh.resources.values import Text, Value
from mesh.resources.yaml_text import read_documents
from mesh.spiffe import InvalidSpiffeId, SpiffeId, TrustDomain

MAX_ENTRIES = 1000
"""A node runs a hundred workloads; each entry costs a key and a certificate."""

MAX_HINT = 1024
"""SPIFFE Workload API, 5.2.1: bytes of a hint."""

RESERVED_PATH = "/spire/"
"""SPIRE keeps these paths for its own servers and agents; no workload may have one."""


class RegistrationInvalid(ConfigError):
    """The registration file cannot be used."""

    reason: ClassVar[str] = "registration_invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Callers that have all of `selectors` may be `identity`.

    `token_file` holds the identity's own token for the CA; without it the node's token is used,
    and the CA must trust the node to act for others. `federates_with` are the other trust domains
    whose bundles the caller gets. `hint` tells a workload of several identities what one is for.
    """

    identity: SpiffeId
    selectors: frozenset[Selector]
    token_file: Path | None = None
    federates_with: frozenset[TrustDomain] = frozenset()
    hint: str = ""


class _Entry(Value, frozen=True, kw_only=True):
    spiffe_id: Text
    selectors: tuple[str, ...]
    token_file: str = ""
    federates_with: tuple[str, ...] = ()
    hint: str = ""


class _File(Value, frozen=True, kw_only=True):
    entries: tuple[_Entry, ...]


_READER = reader_of(_File)


@dataclass(frozen=True, slots=True)
class Registrations:
    """All entries of a node, in the order of the file."""

    entries: tuple[Entry, ...] = ()

    def entries_of(self, selectors: Collection[Selector]) -> tuple[Entry, ...]:
        """Return the entries of a caller that has `selectors`; none if it is unknown."""
        return tuple(entry for entry in self.entries if entry.selectors <= set(selectors))

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of selectors in use: nothing else need be found out of a caller."""
        return frozenset(s.kind for entry in self.entries for s in entry.selectors)


def parse_registrations(data: bytes, path: Path, trust_domain: TrustDomain) -> Registrations:
    """Read a registration file. Token files are relative to its folder.

    Raises RegistrationInvalid with one line for each thing wrong.
    """
    document = _document(data, path)
    file, findings = read_value(_READER, _File, document, ())
    entries: list[Entry] = []
    if file is not None:
        for index, raw in enumerate(file.entries):
            _read_entry(raw, index, path.parent, trust_domain, entries, findings)
    if file is not None and not findings:
        findings += _disagreements(entries)
        if len(entries) > MAX_ENTRIES:
            findings.append(Finding(("entries",), f"has more than {MAX_ENTRIES} entries"))
    if findings:
        raise RegistrationInvalid(
            "\n".join(
                f"{path}:{line_of(document, found.path)}: {show_path(found.path)}: {found.message}"
                for found in findings
            )
        )
    return Registrations(tuple(entries))


def _document(data: bytes, path: Path) -> Node:
    try:
        documents = list(read_documents(data.decode("utf-8")))
    except (ResourceError, UnicodeDecodeError) as error:
        raise RegistrationInvalid(f"registration file {path}: {error}") from error
    if len(documents) != 1:
        raise RegistrationInvalid(
            f"registration file {path} has {len(documents)} documents, not one with `entries`"
        )
    [document] = documents
    if isinstance(document, UnreadableDocument):
        raise RegistrationInvalid(f"{path}:{document.line}: {document}")
    return document


def _read_entry(
    raw: _Entry,
    index: int,
    folder: Path,
    trust_domain: TrustDomain,
    entries: list[Entry],
    findings: list[Finding],
) -> None:
    before = len(findings)
    identity = _identity(raw.spiffe_id, index, trust_domain, findings)
    selectors = frozenset(_selectors(raw.selectors, index, findings))
    federates_with = frozenset(_domains(raw.federates_with, index, findings))
    if len(raw.hint.encode()) > MAX_HINT:
        findings.append(Finding(("entries", index, "hint"), f"has more than {MAX_HINT} bytes"))
    if identity is not None and len(findings) == before:
        entries.append(
            Entry(
                identity=identity,
                selectors=selectors,
                token_file=folder / raw.token_file if raw.token_file else None,
                federates_with=federates_with - {trust_domain},
                hint=raw.hint,
            )
        )


def _identity(
    text: str, index: int, trust_domain: TrustDomain, findings: list[Finding]
) -> SpiffeId | None:
    place = ("entries", index, "spiffeId")
    try:
        identity = SpiffeId.parse(text)
    except InvalidSpiffeId as error:
        findings.append(Finding(place, str(error)))
        return None
    if not identity.member_of(trust_domain):
        message = f"{identity} is not of this node's trust domain {trust_domain}"
        findings.append(Finding(place, message))
    elif not identity.path:
        findings.append(Finding(place, f"{identity} names a trust domain, not a workload"))
    elif identity.path.startswith(RESERVED_PATH):
        findings.append(Finding(place, f"paths that begin with {RESERVED_PATH} are reserved"))
    return identity


def _selectors(texts: tuple[str, ...], index: int, findings: list[Finding]) -> Iterator[Selector]:
    place = ("entries", index, "selectors")
    if not texts:
        findings.append(Finding(place, "must not be empty: every process would be this workload"))
    for position, text in enumerate(texts):
        try:
            yield Selector.parse(text)
        except InvalidSelector as error:
            findings.append(Finding((*place, position), str(error)))


def _domains(texts: tuple[str, ...], index: int, findings: list[Finding]) -> Iterator[TrustDomain]:
    for position, text in enumerate(texts):
        try:
            yield TrustDomain.parse(text)
        except InvalidSpiffeId as error:
            findings.append(Finding(("entries", index, "federatesWith", position), str(error)))


def _disagreements(entries: list[Entry]) -> Iterator[Finding]:
    """Find entries of one identity that would get it by different tokens."""
    first: dict[SpiffeId, Entry] = {}
    for index, entry in enumerate(entries):
        known = first.setdefault(entry.identity, entry)
        if known.token_file != entry.token_file:
            message = f"another entry of {entry.identity} has another tokenFile"
            yield Finding(("entries", index), message)
