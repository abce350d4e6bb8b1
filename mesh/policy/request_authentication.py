"""RequestAuthentication: a token that is presented must be good; none at all passes.

Istio pools the rules of all policies for a workload, in the order of their issuers. The first rule
that finds tokens at its places and believes all of them decides who asks. If no rule believes any,
the request passes only if no rule found any.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from msgspec import json

from mesh.policy.errors import Fault, TokenRefused
from mesh.policy.facts import HttpRequest
from mesh.policy.token_places import Found, Places, without_parameter
from mesh.policy.tokens import KeySet, Token, audience_allowed, check_time, parse_token
from mesh.resources.security import JwtRule, RequestAuthentication

UNAUTHORIZED = 401
FORBIDDEN = 403

MAX_REALM_PATH = 256
"""Characters of the request target that a refusal repeats (Envoy: MaximumUriLength)."""

KeySource = Callable[[JwtRule], KeySet | None]
"""Returns the keys of a rule that names none itself; None while they cannot be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """The request as it goes on, with the claims of its token if it had one.

    `removed` are headers that must not reach the application as they came, `added` those that are
    set instead.
    """

    request: HttpRequest
    removed: frozenset[str] = frozenset()
    added: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The answer to a request whose token is no good."""

    fault: Fault
    realm: str

    @property
    def status(self) -> int:
        """Envoy: only a wrong audience is forbidden."""
        return FORBIDDEN if self.fault is Fault.AUDIENCE_REFUSED else UNAUTHORIZED

    @property
    def body(self) -> str:
        """The text of the answer."""
        return self.fault.value

    @property
    def www_authenticate(self) -> str:
        """The header of that name (RFC 6750, section 3)."""
        return f'Bearer realm="{self.realm}", error="invalid_token"'

    @property
    def detail(self) -> str:
        """Envoy's response code detail."""
        return f"jwt_authn_access_denied{{{self.body.replace(' ', '_')}}}"


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A rule that believes the tokens it found; the first of them says who asks."""

    provider: _Provider
    tokens: tuple[Token, ...]
    found: tuple[Found, ...]


class RequestAuthenticator:
    """The token rules of one workload: built once, asked for every request."""

    def __init__(self, policies: Iterable[RequestAuthentication], keys: KeySource) -> None:
        """Take the policies that apply to the workload."""
        rules = [rule for policy in policies for rule in policy.spec.jwt_rules]
        rules.sort(key=lambda rule: rule.issuer or "")
        self._providers = tuple(_Provider(rule, keys) for rule in rules)
        self._outputs = frozenset(name for provider in self._providers for name in provider.outputs)

    def authenticate(self, request: HttpRequest, now: float) -> Passed | Refused:
        """Judge a request's tokens; `now` is in seconds since the epoch."""
        removed = frozenset(name for name in self._outputs if name in request.headers)
        # The token is looked for before output headers go: a rule may read what another writes.
        if _is_preflight(request):
            return _passed(request, removed, {}, request.target)
        faults: list[Fault] = []
        for provider in self._providers:
            try:
                accepted = provider.judge(request, now)
            except TokenRefused as refused:
                faults.append(refused.fault)
                continue
            if accepted is not None:
                return _with_token(accepted, request, removed)
        if faults:
            return Refused(fault=_telling(faults), realm=_realm(request))
        return _passed(request, removed, {}, request.target)


class _Provider:
    """One rule, with its places and keys."""

    def __init__(self, rule: JwtRule, keys: KeySource) -> None:
        self.rule = rule
        self._places = Places.of(rule)
        self._keys = keys
        self._inline = None if rule.jwks is None else KeySet.parse(rule.jwks)
        payload = rule.output_payload_to_header
        self.outputs = frozenset(
            name.lower()
            for name in (*(one.header for one in rule.output_claim_to_headers), payload)
            if name
        )

    def judge(self, request: HttpRequest, now: float) -> _Accepted | None:
        """Judge all tokens at the rule's places; None if there are none. Raises TokenRefused."""
        found = tuple(self._places.find(request))
        tokens = tuple(self._believe(one.text, now) for one in found)
        return _Accepted(self, tokens, found) if tokens else None

    def _believe(self, text: str, now: float) -> Token:
        token = parse_token(text)
        rule = self.rule
        if rule.issuer and token.issuer != rule.issuer:
            raise TokenRefused(Fault.UNKNOWN_ISSUER)
        check_time(token, now)
        if not audience_allowed(rule.audiences, token.audiences):
            raise TokenRefused(Fault.AUDIENCE_REFUSED)
        keys = self._inline if self._inline is not None else self._keys(rule)
        # Keys that cannot be had are no keys: whoever shows a token is refused.
        (keys or KeySet()).check(token)
        return token


def _is_preflight(request: HttpRequest) -> bool:
    """Tell whether this is a browser's question before a request, which has no token."""
    return request.method == "OPTIONS" and all(
        any(request.header_lines(name)) for name in ("origin", "access-control-request-method")
    )


def _with_token(accepted: _Accepted, request: HttpRequest, removed: frozenset[str]) -> Passed:
    rule, token = accepted.provider.rule, accepted.tokens[0]
    target = request.target
    if not rule.forward_original_token:
        for found in accepted.found:
            if found.header:
                removed |= {found.header}
            if found.parameter:
                target = without_parameter(target, found.parameter)
    known = replace(
        request,
        claims=token.claims,
        space_delimited_claims=frozenset(rule.space_delimited_claims),
    )
    return _passed(known, removed, dict(_outputs(rule, token)), target)


def _passed(
    request: HttpRequest, removed: frozenset[str], added: Mapping[str, str], target: str
) -> Passed:
    headers = {name: lines for name, lines in request.headers.items() if name not in removed}
    headers |= {name: (value,) for name, value in added.items()}
    return Passed(
        request=replace(request, target=target, headers=headers), removed=removed, added=added
    )


def _outputs(rule: JwtRule, token: Token) -> Iterator[tuple[str, str]]:
    if rule.output_payload_to_header:
        yield rule.output_payload_to_header.lower(), token.payload_part
    for output in rule.output_claim_to_headers:
        if text := claim_text(_claim(token.claims, output.claim)):
            yield output.header.lower(), text


def _claim(claims: Mapping[str, Any], path: str) -> object:
    """Return a claim; dots lead into objects."""
    value: object = claims
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = cast("Mapping[str, object]", value).get(name)
    return value


def claim_text(value: object) -> str:
    """Write a claim as a header: texts as they are, the rest as Envoy does; empty is no header."""
    match value:
        case None:
            return ""
        case str():
            return value if value.isprintable() else ""
        case bool():
            return "true" if value else "false"
        case int() | float():
            return _number_text(value)
        case _:
            return b64encode(json.encode(value)).decode()


def _number_text(value: float) -> str:
    whole = 0 <= value < 2**64 and value == int(value)
    return str(int(value)) if whole else f"{value:.6f}"


def _telling(faults: list[Fault]) -> Fault:
    """Choose the fault to tell: an unknown issuer says least, since that rule was not meant."""
    meant = (fault for fault in faults if fault is not Fault.UNKNOWN_ISSUER)
    return next(meant, faults[0])


def _realm(request: HttpRequest) -> str:
    target = request.target[:MAX_REALM_PATH].replace('"', "%22")
    return f"{request.scheme}://{request.authority or ''}{target}"
