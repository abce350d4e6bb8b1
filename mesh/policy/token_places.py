"""Where a request may carry tokens, and the request without them.

Istio's defaults are `Authorization: Bearer TOKEN` and the query parameter `access_token`; as soon
as a rule names any place, only those that it names count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from mesh.policy.facts import HttpRequest
from mesh.resources.security import JwtHeader, JwtRule

DEFAULT_HEADER = JwtHeader(name="authorization", prefix="Bearer ")
DEFAULT_PARAMETER = "access_token"

_TOKEN_START = re.compile(r"[-_.A-Za-z0-9]")


@dataclass(frozen=True, slots=True)
class Found:
    """A token as it was found, and the header or query parameter it is to be removed from."""

    text: str
    header: str = ""
    parameter: str = ""


@dataclass(frozen=True, slots=True)
class Places:
    """The places of one rule."""

    headers: tuple[JwtHeader, ...]
    parameters: tuple[str, ...]
    cookies: tuple[str, ...]

    @classmethod
    def of(cls, rule: JwtRule) -> Places:
        """Take a rule's places, or the defaults if it names none."""
        if not (rule.from_headers or rule.from_params or rule.from_cookies):
            return cls((DEFAULT_HEADER,), (DEFAULT_PARAMETER,), ())
        return cls(rule.from_headers, rule.from_params, rule.from_cookies)

    def find(self, request: HttpRequest) -> Iterator[Found]:
        """Yield every token at these places."""
        yield from self._in_headers(request)
        for parameter in self.parameters:
            values = (value for key, value in _parameters(request.target) if key == parameter)
            if (first := next(values, None)) is not None:
                yield Found(first, parameter=parameter)
        for cookie in self.cookies:
            values = (value for name, value in _cookies(request) if name == cookie)
            if (first := next(values, None)) is not None:
                yield Found(first)

    def _in_headers(self, request: HttpRequest) -> Iterator[Found]:
        for header in self.headers:
            name = header.name.lower()
            for line in request.header_lines(name):
                text = _after(header.prefix, line)
                if text is not None:
                    yield Found(text, header=name)


def without_parameter(target: str, parameter: str) -> str:
    """Remove a query parameter from a request target; all else stays as it is written."""
    path, _, query = target.partition("?")
    kept = [pair for pair in query.split("&") if pair and _key(pair) != parameter]
    return f"{path}?{'&'.join(kept)}" if kept else path


def _after(prefix: str, line: str) -> str | None:
    """Return what follows a prefix, which Envoy looks for anywhere in the line."""
    if not prefix:
        return line
    position = line.find(prefix)
    if position < 0:
        return None
    start = _TOKEN_START.search(line, position + len(prefix))
    return line if start is None else line[start.start() :]


def _parameters(target: str) -> Iterator[tuple[str, str]]:
    for pair in target.partition("?")[2].split("&"):
        yield _key(pair), unquote(pair.partition("=")[2])


def _key(pair: str) -> str:
    return unquote(pair.partition("=")[0])


def _cookies(request: HttpRequest) -> Iterator[tuple[str, str]]:
    for line in request.header_lines("cookie"):
        for pair in line.split(";"):
            name, equals, value = pair.strip().partition("=")
            if equals:
                yield name, value.strip('"')
