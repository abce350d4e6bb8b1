"""What can go wrong while resources are read."""

from __future__ import annotations

from mesh.errors import RemoraError


class ResourceError(RemoraError):
    """A resource, or a text that should hold resources, cannot be used."""

    reason = "bad_resource"


class UnreadableDocument(ResourceError):
    """One document of a text is not acceptable YAML; the documents around it are untouched."""

    reason = "unreadable_document"

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line
