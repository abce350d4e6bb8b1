"""The documents are true: links lead somewhere, commands exist, reasons and packages are listed."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

import agent
import ca
import proxy
from mesh.errors import RemoraError
from remora.cli import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

BASES = {
    "agent_error",
    "authentication_error",
    "ca_error",
    "change_refused",
    "caller_unknown",
    "connection_failed",
    "outbound_refused",
    "discovery_refused",
    "relay_broken",
    "request_failed",
    "answer_refused",
    "signing_error",
}
"""Reasons of classes that are never raised themselves, or only carry others."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def commands() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("remora "):
                    yield document.name, line


@pytest.mark.parametrize(("document", "line"), list(commands()))
def test_commands_and_their_flags_exist(document: str, line: str) -> None:
    words = shlex.split(line.split(">", maxsplit=1)[0].split("#", maxsplit=1)[0])[1:]
    names = [word for word in words[:2] if not word.startswith("-")]
    result = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, f"{document}: {line}"
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"{word}\b", result.output), f"{document}: {word} in: {line}"


def test_there_are_commands_to_check() -> None:
    assert len(list(commands())) >= 4


@pytest.mark.parametrize("package", [agent, ca, proxy], ids=lambda module: module.__name__)
def test_every_reason_is_explained(package: ModuleType) -> None:
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    text = (ROOT / "docs/operations.md").read_text()
    for error in leaves(RemoraError):
        if error.__module__.startswith(f"{package.__name__}.") and error.reason not in BASES:
            assert f"`{error.reason}`" in text, f"{error.__name__} is not in operations.md"


def leaves(kind: type[RemoraError]) -> set[type[RemoraError]]:
    found = {kind}
    for child in kind.__subclasses__():
        found |= leaves(child)
    return found


def test_every_dependency_earns_its_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = (ROOT / "docs/architecture.md").read_text().partition("## Dependencies")[2]
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=\[; ]", requirement)[0]
        assert re.search(rf"^\|[^|]*\b{name}\b", table, re.MULTILINE), f"{name} is not explained"


@pytest.mark.parametrize("target", ["demo", "test", "lint", "types", "bench", "clean"])
def test_every_make_target_that_is_named_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
