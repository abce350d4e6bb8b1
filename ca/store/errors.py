"""Why a change of resources is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ca.errors import CaError
from mesh.resources.problem import Problem


class ChangeRefused(CaError):
    """Nothing was changed."""

    reason: ClassVar[str] = "change_refused"


class ResourcesInvalid(ChangeRefused):
    """What was given cannot be used; `problems` says where and why."""

    reason = "resources_invalid"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ResourceConflict(ChangeRefused):
    """A resource has another version than the change was made for."""

    reason = "resource_conflict"


class ResourceNotFound(ChangeRefused):
    """There is no such resource."""

    reason = "resource_not_found"


class EditRefused(ChangeRefused):
    """A resource stands where it can only be changed by hand."""

    reason = "edit_refused"
