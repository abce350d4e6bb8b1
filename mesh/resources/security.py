"""The kinds of security.istio.io: who must use mutual TLS, who may call, whose tokens count."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar

from msgspec import Meta, field

from mesh.resources.values import Resource, TargetRef, Text, Value, WorkloadSelector

SECURITY_VERSIONS = ("security.istio.io/v1", "security.istio.io/v1beta1")

MAX_RULES = 512
"""Istio: rules in a policy, and sources in a rule."""

MAX_SERVICE_ACCOUNTS = 16
"""Istio: service accounts in one list, against unbounded configuration."""

MAX_TARGET_REFS = 16
"""Istio: targets of one policy."""

MAX_JWT_RULES = 4096
"""Istio: rules in a RequestAuthentication."""

MAX_SPACE_DELIMITED_CLAIMS = 64
"""Istio: claims that one rule splits at spaces."""

MAX_JWKS_URI = 2048
"""Istio: characters in the address of a key set."""

Texts = tuple[str, ...]
Accounts = Annotated[tuple[str, ...], Meta(max_length=MAX_SERVICE_ACCOUNTS)]
TargetRefs = Annotated[tuple[TargetRef, ...], Meta(max_length=MAX_TARGET_REFS)]


class MtlsMode(StrEnum):
    """How a workload takes connections; UNSET asks the next wider policy."""

    UNSET = "UNSET"
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


class MutualTls(Value, frozen=True, kw_only=True):
    """The `mtls` block of a PeerAuthentication, or one port of it."""

    mode: MtlsMode = MtlsMode.UNSET


class PeerAuthenticationSpec(Value, frozen=True, kw_only=True):
    """Modes for a mesh, a namespace or the selected workloads; ports are workload ports."""

    selector: WorkloadSelector | None = None
    mtls: MutualTls = MutualTls()
    port_level_mtls: Annotated[Mapping[int, MutualTls], Meta(min_length=1)] = {}


class PeerAuthentication(Resource, frozen=True, kw_only=True, tag_field="kind", tag=True):
    """Which connections a workload accepts: plaintext, mutual TLS, or both."""

    spec: PeerAuthenticationSpec = PeerAuthenticationSpec()
    groups: ClassVar[tuple[str, ...]] = SECURITY_VERSIONS


class Action(StrEnum):
    """What a matching AuthorizationPolicy does."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"
    CUSTOM = "CUSTOM"


class Source(Value, frozen=True, kw_only=True):
    """Who is calling: all given fields must hold, and in each any value suffices."""

    principals: Texts = ()
    not_principals: Texts = ()
    request_principals: Texts = ()
    not_request_principals: Texts = ()
    namespaces: Texts = ()
    not_namespaces: Texts = ()
    service_accounts: Accounts = ()
    not_service_accounts: Accounts = ()
    trust_domains: Texts = ()
    not_trust_domains: Texts = ()
    ip_blocks: Texts = ()
    not_ip_blocks: Texts = ()
    remote_ip_blocks: Texts = ()
    not_remote_ip_blocks: Texts = ()


class Operation(Value, frozen=True, kw_only=True):
    """What is being done: all given fields must hold, and in each any value suffices."""

    hosts: Texts = ()
    not_hosts: Texts = ()
    ports: Texts = ()
    not_ports: Texts = ()
    methods: Texts = ()
    not_methods: Texts = ()
    paths: Texts = ()
    not_paths: Texts = ()


class From(Value, frozen=True, kw_only=True):
    """One entry of a rule's `from`."""

    source: Source


class To(Value, frozen=True, kw_only=True):
    """One entry of a rule's `to`."""

    operation: Operation


class Condition(Value, frozen=True, kw_only=True):
    """One entry of a rule's `when`: an attribute, and values it must or must not have."""

    key: Text
    values: Texts = ()
    not_values: Texts = ()


class Rule(Value, frozen=True, kw_only=True):
    """Matches when some source, some operation and every condition match; `{}` always does."""

    from_: Annotated[tuple[From, ...], Meta(min_length=1, max_length=MAX_RULES)] = field(
        name="from", default=()
    )
    to: Annotated[tuple[To, ...], Meta(min_length=1)] = ()
    when: tuple[Condition, ...] = ()


class ExtensionProviderRef(Value, frozen=True, kw_only=True):
    """The external authorizer that a CUSTOM policy asks, by its name in the mesh settings."""

    name: str = ""


class AuthorizationPolicySpec(Value, frozen=True, kw_only=True):
    """An action and the rules that trigger it; ALLOW without rules allows nothing."""

    selector: WorkloadSelector | None = None
    target_ref: TargetRef | None = None
    target_refs: TargetRefs = ()
    action: Action = Action.ALLOW
    rules: Annotated[tuple[Rule, ...], Meta(max_length=MAX_RULES)] = ()
    provider: ExtensionProviderRef | None = None


class AuthorizationPolicy(Resource, frozen=True, kw_only=True, tag_field="kind", tag=True):
    """Who may do what with the selected workloads."""

    spec: AuthorizationPolicySpec = AuthorizationPolicySpec()
    groups: ClassVar[tuple[str, ...]] = SECURITY_VERSIONS


class JwtHeader(Value, frozen=True, kw_only=True):
    """A header that may carry a token, after `prefix`."""

    name: Text
    prefix: str = ""


class ClaimToHeader(Value, frozen=True, kw_only=True):
    """A claim of a good token that is copied to a request header."""

    header: Text
    claim: Text


class Presence(StrEnum):
    """Whether a token must be there; not acted on yet, in Istio neither."""

    OPTIONAL = "OPTIONAL"
    REQUIRED = "REQUIRED"


class JwtRule(Value, frozen=True, kw_only=True):
    """One issuer of tokens: its keys, its audiences, and where its tokens are found."""

    issuer: Annotated[str, Meta(min_length=1)] | None = None
    audiences: tuple[Text, ...] = ()
    jwks_uri: Annotated[str, Meta(min_length=1, max_length=MAX_JWKS_URI)] | None = None
    jwks: str | None = None
    from_headers: tuple[JwtHeader, ...] = ()
    from_params: tuple[Text, ...] = ()
    from_cookies: tuple[Text, ...] = ()
    output_payload_to_header: str = ""
    output_claim_to_headers: tuple[ClaimToHeader, ...] = ()
    forward_original_token: bool = False
    timeout: str | None = None
    space_delimited_claims: Annotated[
        tuple[Text, ...], Meta(max_length=MAX_SPACE_DELIMITED_CLAIMS)
    ] = ()
    presence: Presence = Presence.OPTIONAL

    aliases: ClassVar[Mapping[str, str]] = {"jwks_uri": "jwks_uri"}


class RequestAuthenticationSpec(Value, frozen=True, kw_only=True):
    """The token issuers that the selected workloads know."""

    selector: WorkloadSelector | None = None
    target_ref: TargetRef | None = None
    target_refs: TargetRefs = ()
    jwt_rules: Annotated[tuple[JwtRule, ...], Meta(max_length=MAX_JWT_RULES)] = ()


class RequestAuthentication(Resource, frozen=True, kw_only=True, tag_field="kind", tag=True):
    """Which request tokens the selected workloads accept."""

    spec: RequestAuthenticationSpec = RequestAuthenticationSpec()
    groups: ClassVar[tuple[str, ...]] = SECURITY_VERSIONS
