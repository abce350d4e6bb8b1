"""The mesh settings, which must agree with the certificate authority on who is who."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from mesh.errors import ConfigError
from mesh.resources.loader import load_mesh_config
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.problem import Problem
from mesh.resources.tree import Node
from mesh.resources.yaml_text import read_documents


def read_settings(
    text: str, *, file: str, trust_domain: str
) -> tuple[MeshConfig | None, tuple[Problem, ...]]:
    """Read the settings; a trust domain that is left out is the CA's, and any other is refused."""
    config, problems = load_mesh_config(text, file=file)
    if config is None:
        return None, problems
    line = _line_of_trust_domain(text)
    if not line:
        return replace(config, trust_domain=trust_domain), problems
    if config.trust_domain == trust_domain:
        return config, problems
    message = (
        f"{config.trust_domain!r} is not the CA's own trust domain {trust_domain!r}: correct it, "
        "or leave it out"
    )
    wrong = Problem(
        file=file, line=line, resource="MeshConfig", field="trustDomain", message=message
    )
    return None, (*problems, wrong)


class Settings:
    """The settings in force: the last good ones, and None only if there never were any.

    Without a file they are Istio's defaults.
    """

    def __init__(self, trust_domain: str) -> None:
        self.problems: tuple[Problem, ...] = ()
        self.good_text = ""
        self._trust_domain = trust_domain
        self._default = MeshConfig(trust_domain=trust_domain)
        self._good: MeshConfig | None = None
        self._absent = True

    @property
    def config(self) -> MeshConfig | None:
        """What is in force; None is for a file that is there and never was good."""
        return self._default if self._absent else self._good

    def remember(self, text: str) -> None:
        """Take what an earlier run kept as good; it counts only if the file is there and bad."""
        if text:
            self._good, _ = read_settings(text, file="memory", trust_domain=self._trust_domain)
            self.good_text = text if self._good is not None else ""

    def take(self, text: str | ConfigError | None, file: str) -> bool:
        """Take what the file holds now, None for no file; tell whether anything changes by it."""
        before = self.config
        self._absent = text is None
        if text == "" and self.good_text:
            text = ConfigError("the file is empty, and the settings stay: remove it for defaults")
        if text is None:
            self._good, self.problems, self.good_text = None, (), ""
        elif isinstance(text, ConfigError):
            problem = Problem(file=file, line=0, resource="MeshConfig", field="", message=str(text))
            self.problems = (problem,)
        else:
            config, self.problems = read_settings(text, file=file, trust_domain=self._trust_domain)
            if config is not None:
                self._good, self.good_text = config, text
        return self.config != before


def _line_of_trust_domain(text: str) -> int:
    """Return the line that says a trust domain, 0 if none does."""
    for document in read_documents(text):
        if isinstance(document, Node) and isinstance(document.value, Mapping):
            found = document.value.get("trustDomain")
            return 0 if found is None or found.value is None else found.line
    return 0
