"""Requests as people write them, as the proxy would show them to policy."""

# ruff: noqa: RUF012  msgspec gives every instance an empty dict of its own

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh.policy.errors import PathRefused
from mesh.policy.facts import HttpRequest
from mesh.policy.path import normalize_target
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.values import Labels, Text, Value


class Request(Value, frozen=True, kw_only=True):
    """An HTTP request; `claims` is the payload of its token, taken as verified."""

    method: Text = "GET"
    path: Text = "/"
    host: str = ""
    headers: Labels = {}
    claims: Mapping[str, Any] | None = None
    space_delimited_claims: tuple[str, ...] = ()


def as_policy_sees_it(given: Request, host: str, config: MeshConfig) -> HttpRequest | PathRefused:
    """Normalise a request; `host` is its authority if it names none itself."""
    try:
        target = normalize_target(given.path, config.path_normalization.normalization)
    except PathRefused as refused:
        return refused
    return HttpRequest.of(
        given.method,
        target,
        given.host or host or None,
        given.headers.items(),
        claims=given.claims,
        space_delimited_claims=given.space_delimited_claims,
    )
