"""Request paths made comparable, before policy sees them and before they are forwarded.

What is compared must be what the application gets: a proxy that matches one path and forwards
another has no policy. The rules are those of the proxies that Istio configures, found by asking
one: RFC 3986's dot segments and unreserved characters, backslashes as slashes, and characters that
no path may hold written as escapes. Nothing is decoded twice, and case is never changed.
"""

from __future__ import annotations

import re

from mesh.policy.errors import PathRefused
from mesh.resources.mesh_config import Normalization

BAD_REQUEST = 400
"""RFC 9110: the answer to a target that is none."""

_STRAY = "\x00"  # Stands for a percent sign that begins no escape; a target cannot hold it.
_PERCENT = re.compile(r"%([0-9a-fA-F]{2})?")
_NEW_ESCAPE = re.compile(r"\x00(?=[0-9a-fA-F]{2})")
_UNPRINTABLE = re.compile(r"[^\x21-\x7e]")
_TO_ESCAPE = re.compile(r"[\"<>^`{|}]")
_ENCODED_SLASH = re.compile(r"%2[fF]")
_ENCODED_BACKSLASH = re.compile(r"%5[cC]")
_DOT_PARAMETERS = re.compile(r"(?<=/)(\.\.?);[^/]*")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_DECODING = Normalization.DECODE_AND_MERGE_SLASHES
_MERGING = frozenset({Normalization.MERGE_SLASHES, _DECODING})


def normalize_target(target: str, mode: Normalization) -> str:
    """Normalise a request target: its path by `mode`, its query not at all, its fragment away.

    Raises PathRefused for a target that is no absolute path, holds bytes that HTTP does not allow
    there, or escapes a NUL.
    """
    if not target.startswith("/"):
        raise PathRefused(f"the request target {target[:80]!r} is not a path", BAD_REQUEST)
    if _UNPRINTABLE.search(target):
        raise PathRefused("the request target holds a character that must be escaped", BAD_REQUEST)
    path, mark, query = target.partition("#")[0].partition("?")
    if mode is not Normalization.NONE:
        path = _normalize_path(path, mode)
    return path + mark + query


def _normalize_path(path: str, mode: Normalization) -> str:
    if mode is _DECODING:
        path = _ENCODED_BACKSLASH.sub("\\\\", _ENCODED_SLASH.sub("/", path))
    path = _resolve(path)
    return _merge_slashes(path) if mode in _MERGING else path


def _resolve(path: str) -> str:
    """Remove dot segments and write every segment in its one canonical way."""
    # Servers that cut parameters off would take `..;x` for `..`, so that is what it is here.
    path = _DOT_PARAMETERS.sub(r"\1", path)
    _, *raw = path.replace("\\", "/").split("/")
    segments = [_canonical(segment) for segment in raw]
    kept: list[str] = []
    ends_open = False
    for segment in segments:
        ends_open = segment in {".", ".."}
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    # A path that ended in a dot segment named a folder, so it keeps its closing slash.
    return "/" + "/".join([*kept, ""] if ends_open and kept else kept)


def _canonical(segment: str) -> str:
    segment = _TO_ESCAPE.sub(lambda match: f"%{ord(match[0]):02X}", segment)
    if "%" not in segment:
        return segment
    # A percent sign that begins no escape stays as it is, unless what was decoded behind it would
    # now make it one: `%4%31` must not become `%41`.
    segment = _PERCENT.sub(_unescape, segment)
    return _NEW_ESCAPE.sub("%25", segment).replace(_STRAY, "%")


def _unescape(match: re.Match[str]) -> str:
    if match[1] is None:
        return _STRAY
    character = chr(int(match[1], 16))
    if character == "\x00":
        raise PathRefused("the request path escapes a NUL character", BAD_REQUEST)
    return character if character in _UNRESERVED else match[0]


def _merge_slashes(path: str) -> str:
    """Collapse runs of slashes; Envoy leaves two where there is nothing but slashes."""
    if "//" not in path:
        return path
    inner = "/".join(segment for segment in path.split("/") if segment)
    return f"/{inner}{'/' if path.endswith('/') else ''}"
