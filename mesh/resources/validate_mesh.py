"""Istio's rules for the mesh settings, as far as they concern what is read here."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.resources.checks import MILLISECOND, go_duration, namespace_name, trust_domain
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.problem import Finding
from mesh.resources.validate_common import each


def mesh_findings(config: MeshConfig) -> Iterator[Finding]:
    """Yield what is wrong in the mesh settings."""
    if wrong := trust_domain(config.trust_domain):
        yield Finding(("trustDomain",), wrong)
    yield from each(("trustDomainAliases",), config.trust_domain_aliases, trust_domain)
    if wrong := namespace_name(config.root_namespace):
        yield Finding(("rootNamespace",), wrong)
    timeout = config.protocol_detection_timeout
    if timeout is not None:
        length = go_duration(timeout)
        if length is None or length < 0 or length % MILLISECOND:
            message = f"{timeout!r} is not a duration of whole milliseconds, such as 5s"
            yield Finding(("protocolDetectionTimeout",), message)
    names: set[str] = set()
    for index, provider in enumerate(config.extension_providers):
        if provider.name in names:
            path = ("extensionProviders", index, "name")
            yield Finding(path, f"the provider {provider.name!r} is given twice")
        names.add(provider.name)
