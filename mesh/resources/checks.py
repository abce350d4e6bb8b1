"""Forms that single texts must have: names, hosts, addresses, ports, durations, templates.

Each function returns None for a good text, or the sentence's second half that says what is wrong
with it. The rules are those of Istio's admission webhook and of the schemas behind it.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

Network = tuple[int, int, int]
"""A block of addresses: IP version, network address with host bits cleared, mask."""

MAX_LABEL = 63
"""DNS-1123: the longest label, and Kubernetes' longest label value."""

MAX_HOST = 255
"""DNS: the longest host name (Istio: the longest domain)."""

MAX_NAME = 253
"""Kubernetes: the longest object name."""

MAX_SERVICE_ACCOUNT = 320
"""Istio: 253 for the account, 63 for the namespace, and a little room."""

MILLISECOND = 1_000_000
"""Nanoseconds: Istio's durations have at least one, and no finer step."""

_LABEL = re.compile(r"[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?")
_WILD_LABEL = re.compile(r"\*|(?:\*-?)?[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
_NAMESPACE = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_PREFIX_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}")
_PATH_LITERAL = re.compile(r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]+")
_DURATION = re.compile(r"([+-]?)((?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+)")
_DURATION_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {
    "ns": 1, "us": 1000, "µs": 1000, "μs": 1000, "ms": MILLISECOND,
    "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
}  # fmt: skip

MATCH_ONE = "{*}"
MATCH_ANY = "{**}"


def object_name(name: str) -> str | None:
    """Check a Kubernetes object name (RFC 1123 subdomain)."""
    if not name:
        return "must not be empty"
    if len(name) > MAX_NAME or not _SUBDOMAIN.fullmatch(name):
        return (
            f"{name[:80]!r} is not a name: use lower-case letters, digits, dashes and dots, "
            f"at most {MAX_NAME}"
        )
    return None


def namespace_name(name: str) -> str | None:
    """Check a Kubernetes namespace (RFC 1123 label)."""
    if len(name) > MAX_LABEL or not _NAMESPACE.fullmatch(name):
        return (
            f"{name[:80]!r} is not a namespace: use lower-case letters, digits and dashes, "
            f"at most {MAX_LABEL}"
        )
    return None


def dns_label(label: str) -> str | None:
    """Check one DNS-1123 label, in either case (Istio: IsDNS1123Label)."""
    if len(label) > MAX_LABEL or not _LABEL.fullmatch(label):
        return f"{label[:80]!r} is not a DNS label: use letters, digits and inner dashes"
    return None


def fqdn(host: str) -> str | None:
    """Check a full host name without wildcard; a trailing dot is fine."""
    if not host:
        return "must not be empty"
    if len(host) > MAX_HOST:
        return f"is longer than the {MAX_HOST} characters of a host name"
    labels = host.split(".")
    if _INTEGER.fullmatch(labels[-1]):
        return f"{host!r} ends in a number, so it is no host name"
    if labels[-1] == "" and len(labels) > 1:
        labels.pop()
    if any(dns_label(label) for label in labels):
        return f"{host!r} is not a host name"
    return None


def wildcard_host(host: str) -> str | None:
    """Check a host name whose first label may be or start with `*`."""
    if not host:
        return "must not be empty"
    if len(host) > MAX_HOST:
        return f"is longer than the {MAX_HOST} characters of a host name"
    first, dot, rest = host.partition(".")
    if len(first) > MAX_LABEL or not _WILD_LABEL.fullmatch(first):
        return f"{host!r} is not a host name: `*` may only begin its first label"
    return fqdn(rest) if dot else None


def trust_domain(name: str) -> str | None:
    """Check a trust domain of the mesh settings: DNS labels joined by dots."""
    labels = name.split(".")
    if labels[-1] == "" and len(labels) > 1:
        labels.pop()
    if any(dns_label(label) for label in labels):
        return f"{name!r} is not a trust domain: write it like a DNS name"
    return None


def label_pair(key: str, value: str) -> str | None:
    """Check a Kubernetes label: `[prefix/]name` and a value of at most 63 characters."""
    prefix, slash, name = key.rpartition("/")
    if slash and object_name(prefix):
        return f"the label key {key!r} has a prefix that is not a DNS name"
    if len(name) > MAX_LABEL or not _QUALIFIED.fullmatch(name):
        return f"{key!r} is not a label key"
    if value and (len(value) > MAX_LABEL or not _QUALIFIED.fullmatch(value)):
        return f"{value!r} is not a label value"
    return None


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Parse one IP address, or return None."""
    try:
        return ip_address(text)
    except (AddressValueError, ValueError):
        return None


def parse_network(text: str) -> Network | None:
    """Parse an address or a CIDR block; host bits are cleared. None if it is neither.

    Only a plain prefix length counts: Python would take netmasks, Istio does not.
    """
    host, slash, length = text.partition("/")
    address = parse_address(host)
    if address is None:
        return None
    bits = address.max_prefixlen
    if slash:
        if "%" in host or not _PREFIX_LENGTH.fullmatch(length) or int(length) > bits:
            return None
        mask = ((1 << int(length)) - 1) << (bits - int(length))
    else:
        mask = (1 << bits) - 1
    return address.version, int(address) & mask, mask


def network(text: str) -> str | None:
    """Check an address or CIDR block."""
    if parse_network(text) is None:
        return f"{text!r} is not an IP address or CIDR block"
    return None


def port_text(text: str) -> str | None:
    """Check a port written as text in an authorization rule: a plain number from 0 to 65535."""
    if not text.isascii() or not text.isdigit() or int(text[:10]) > 65535 or len(text) > 10:
        return f"{text[:40]!r} is not a port: write a number from 0 to 65535"
    return None


def go_duration(text: str) -> int | None:
    """Parse a duration as Go writes it (`1m30s`, `250ms`) to nanoseconds, or return None."""
    match = _DURATION.fullmatch(text)
    if match is None or len(text) > MAX_LABEL:
        return None
    total = 0
    for whole, fraction, unit in _DURATION_PART.findall(match[2]):
        total += int(whole or 0) * _UNITS[unit]
        if fraction:
            total += int(fraction) * _UNITS[unit] // 10 ** len(fraction)
    return -total if match[1] == "-" else total


def positive_duration(text: str) -> str | None:
    """Check a duration of whole milliseconds, at least one."""
    length = go_duration(text)
    if length is None:
        return f"{text[:40]!r} is not a duration: write it like 5s or 1m30s"
    if length < MILLISECOND:
        return f"{text!r} is shorter than a millisecond"
    if length % MILLISECOND:
        return f"{text!r} is finer than a millisecond"
    return None


def service_account(text: str) -> str | None:
    """Check `NAMESPACE/NAME` or `NAME` of a serviceAccounts list (Istio: CheckServiceAccount)."""
    if not text:
        return "must not be empty"
    if "*" in text:
        return f"{text!r} holds a wildcard, and service accounts are matched exactly"
    if len(text) > MAX_SERVICE_ACCOUNT:
        return f"{text[:40]!r}... is longer than {MAX_SERVICE_ACCOUNT} characters"
    parts = text.split("/")
    if len(parts) > 2 or not all(parts):
        return f"{text!r} is not a service account: write NAMESPACE/NAME or NAME"
    return None


def trust_domain_pattern(text: str) -> str | None:
    """Check a trustDomains pattern: exact, `prefix*`, `*suffix` or `*`."""
    if not text:
        return "must not be empty"
    if "/" in text:
        return f"{text!r} holds a slash: write only the trust domain"
    if text.count("*") > 1 or "*" in text[1:-1]:
        return f"{text!r} may have one `*`, at its start or its end"
    return None


def is_template(path: str) -> bool:
    """Tell whether a path pattern is a template: it holds `{*}` or `{**}`."""
    return MATCH_ONE in path or MATCH_ANY in path


def path_pattern(path: str) -> str | None:
    """Check a path pattern of an operation (Istio: CheckValidPathTemplate)."""
    template = is_template(path)
    seen_any = False
    for segment in path.strip("/").split("/"):
        if segment in {MATCH_ONE, MATCH_ANY}:
            if seen_any:
                return f"{path!r} has an operator after {MATCH_ANY}, which must be the last"
            seen_any = segment == MATCH_ANY
        elif "{" in segment or "}" in segment:
            return f"{path!r} has a brace outside the whole-segment operators {{*}} and {{**}}"
        elif template and not _PATH_LITERAL.fullmatch(segment):
            return f"{path!r} is a template, and its segment {segment!r} is not plain text"
    return None


def http_url(text: str) -> str | None:
    """Check the URL of a key set: http or https, with a good port if there is one."""
    try:
        parts = urlsplit(text)
        port = parts.netloc.rpartition("@")[2].rpartition("]")[2].partition(":")[2]
    except ValueError:
        return f"{text!r} is not a URL"
    if parts.scheme not in {"http", "https"} or text != text.strip() or "\\" in parts.netloc:
        return f"{text!r} must be a URL that starts with http:// or https://"
    if port and not (port.isascii() and port.isdigit()):
        return f"{text!r} has the port {port!r}, which is not a number"
    return None
