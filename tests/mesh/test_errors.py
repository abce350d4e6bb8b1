"""Every error says why in one stable word, and no two facts share it."""

from __future__ import annotations

import re

import mesh.bundle
import mesh.svid
import mesh.tls_errors
import mesh.verify  # noqa: F401 - the imports make the classes known
from mesh.errors import ConfigError, RemoraError


def leaves(kind: type[RemoraError]) -> list[type[RemoraError]]:
    found = [kind]
    for child in kind.__subclasses__():
        found.extend(leaves(child))
    return found


def test_reasons_are_snake_case_and_distinct() -> None:
    ours = [kind for kind in leaves(RemoraError) if kind.__module__.startswith("mesh.")]
    reasons = [kind.reason for kind in ours]
    assert len(ours) > 10
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", reason) for reason in reasons)
    own = [kind for kind in ours if "reason" in vars(kind)]
    assert len({kind.reason for kind in own}) == len(own)


def test_bad_input_is_told_apart_from_a_failure() -> None:
    assert ConfigError.reason == "bad_config"
    assert issubclass(ConfigError, RemoraError)
    assert str(ConfigError("--listen needs a port")) == "--listen needs a port"
