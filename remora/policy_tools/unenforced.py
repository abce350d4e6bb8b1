"""What the proxies of this version do not enforce, or enforce otherwise than Istio's."""

from __future__ import annotations

from mesh.resources.problem import Problem
from mesh.resources.security import Action, AuthorizationPolicy, RequestAuthentication
from mesh.resources.values import Resource

AS_TCP = "proxies judge it as plain TCP until they parse HTTP"
"""They see connections only, and decide before the first request."""


def unenforced(resource: Resource) -> str:
    """Say what proxies do not enforce of a resource yet, nothing if they enforce it."""
    match resource:
        case RequestAuthentication():
            return "proxies do not look at it yet: no token is verified, and none is refused"
        case AuthorizationPolicy() if resource.spec.action is Action.CUSTOM:
            return (
                "proxies ask no external authorizer yet: whatever its rules match is denied, with "
                "custom_unsupported"
            )
        case _:
            return ""


def unenforced_problem(resource: Resource) -> Problem | None:
    """Return the same as a warning on the resource, None if there is nothing to warn of."""
    message = unenforced(resource)
    if not message:
        return None
    name = f"{type(resource).__name__} {resource.key}"
    return Problem(file="", line=0, resource=name, field="", message=message)
