"""Reading of the policy case files, and the values that several runners build from a case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mesh.resources.loader import load_objects
from mesh.resources.mesh_config import (
    ExtensionProvider,
    MeshConfig,
    Normalization,
    PathNormalization,
)
from mesh.resources.values import Resource

FOLDER = Path(__file__).parent / "cases" / "policy"

Case = dict[str, Any]


@cache
def _load(name: str) -> Mapping[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    data: Mapping[str, Any] = yaml.load((FOLDER / f"{name}.yaml").read_text(), Loader=loader)
    return data


def read_cases(name: str, kind: str, *, entry: str = "cases") -> list[Case]:
    """Return the cases, or another list, of one case file."""
    data = _load(name)
    assert data["kind"] == kind
    cases: list[Case] = data.get(entry, [])
    assert cases, name
    return cases


def read_mesh(settings: Mapping[str, Any] | None) -> MeshConfig:
    """Build the mesh settings of a case."""
    given = settings or {}
    return MeshConfig(
        trust_domain=given.get("trustDomain", "cluster.local"),
        trust_domain_aliases=tuple(given.get("trustDomainAliases", ())),
        root_namespace=given.get("rootNamespace", "istio-system"),
        enable_auto_mtls=given.get("enableAutoMtls", True),
        path_normalization=PathNormalization(
            normalization=Normalization(given.get("pathNormalization", "BASE"))
        ),
        extension_providers=tuple(
            ExtensionProvider(name=name, envoy_ext_authz_grpc={})
            for name in given.get("extensionProviders", ())
        ),
    )


def read_policies(policies: Iterable[Case]) -> tuple[Resource, ...]:
    """Read the resources of a case, which must all be good."""
    loaded = load_objects(policies)
    assert loaded.problems == ()
    return loaded.resources
