"""Capture options from text: flags, YAML files and Istio's pod annotations, in one table.

All three become the same mapping from setting to text, and one parser reads it, so that a value
means the same wherever it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from ipaddress import ip_network
from typing import Literal, TypeVar, cast

from mesh.errors import ConfigError
from proxy.capture.options import (
    MAX_ENTRIES,
    MAX_ID,
    MAX_INTERFACE_NAME,
    PROXY_ID,
    UNCAPTURED_INBOUND,
    WILDCARD,
    CaptureOptions,
    Family,
    InterceptionMode,
    Network,
)

Item = TypeVar("Item")
Settings = Mapping[str, str]
"""From a setting's name to its value, a list being comma-separated."""

SETTINGS = frozenset(
    {
        "interceptionMode",
        "ipFamilies",
        "outboundPort",
        "inboundPort",
        "proxyUID",
        "proxyGID",
        "includeOutboundIPRanges",
        "excludeOutboundIPRanges",
        "includeOutboundPorts",
        "excludeOutboundPorts",
        "includeInboundPorts",
        "excludeInboundPorts",
        "includeUsers",
        "excludeUsers",
        "includeGroups",
        "excludeGroups",
        "excludeInterfaces",
        "virtualInterfaces",
        "dropInvalid",
    }
)

TRAFFIC = "traffic.sidecar.istio.io/"

ANNOTATIONS: Mapping[str, str] = {
    "sidecar.istio.io/interceptionMode": "interceptionMode",
    "istio.io/reroute-virtual-interfaces": "virtualInterfaces",
    f"{TRAFFIC}kubevirtInterfaces": "virtualInterfaces",
    **{
        f"{TRAFFIC}{name}": name
        for name in (
            "includeOutboundIPRanges",
            "excludeOutboundIPRanges",
            "includeOutboundPorts",
            "excludeOutboundPorts",
            "includeInboundPorts",
            "excludeInboundPorts",
            "excludeInterfaces",
        )
    },
}
"""Istio's annotations and the settings they are."""


def from_annotations(annotations: Mapping[str, str]) -> dict[str, str]:
    """Pick the settings out of a pod's annotations; the others concern somebody else.

    Raises ConfigError for one of Istio's traffic annotations that it does not have: a misspelled
    exclusion must not be passed over.
    """
    chosen: dict[str, str] = {}
    for name, value in annotations.items():
        if name in ANNOTATIONS:
            chosen[ANNOTATIONS[name]] = value
        elif name.startswith(TRAFFIC):
            raise ConfigError(f"unknown annotation {name}{_nearest(name, ANNOTATIONS)}")
    return chosen


def from_document(tree: object, origin: str) -> dict[str, str]:
    """Take the settings from a YAML document: its own keys, or a Kubernetes object's annotations.

    An object with a pod template (a Deployment) is asked for the template's annotations. Raises
    ConfigError, naming `origin`.
    """
    document = _mapping(tree, origin)
    if "kind" in document and "metadata" in document:
        return from_annotations(_pod_annotations(document, origin))
    settings: dict[str, str] = {}
    for key, value in document.items():
        if key not in SETTINGS:
            raise ConfigError(f"{origin}: unknown setting {key!r}{_nearest(key, SETTINGS)}")
        settings[key] = _text(value, f"{origin}: {key}")
    return settings


def parse_options(settings: Settings) -> CaptureOptions:
    """Turn settings into options; what is not set has Istio's default. Raises ConfigError."""
    read = _Reader(settings)
    return CaptureOptions(
        mode=read.one("interceptionMode", _mode, InterceptionMode.REDIRECT),
        families=read.many("ipFamilies", _family, (Family.IPV4, Family.IPV6)),
        outbound_port=read.one("outboundPort", _port, CaptureOptions().outbound_port),
        inbound_port=read.one("inboundPort", _port, CaptureOptions().inbound_port),
        proxy_uids=(uids := read.many("proxyUID", _owner, (PROXY_ID,))),
        proxy_gids=read.many("proxyGID", _owner, uids),
        include_outbound_ranges=read.many_or_all("includeOutboundIPRanges", _network),
        exclude_outbound_ranges=read.many("excludeOutboundIPRanges", _network, ()),
        include_outbound_ports=read.many("includeOutboundPorts", _port, ()),
        exclude_outbound_ports=read.many("excludeOutboundPorts", _port, ()),
        include_inbound_ports=read.many_or_all("includeInboundPorts", _port),
        exclude_inbound_ports=_excluded_inbound(read.many("excludeInboundPorts", _port, ())),
        include_users=read.many_or_all("includeUsers", _owner),
        exclude_users=read.many("excludeUsers", _owner, ()),
        include_groups=read.many_or_all("includeGroups", _owner),
        exclude_groups=read.many("excludeGroups", _owner, ()),
        exclude_interfaces=read.many("excludeInterfaces", _interface, ()),
        virtual_interfaces=read.many("virtualInterfaces", _interface, ()),
        drop_invalid=read.one("dropInvalid", _boolean, False),  # noqa: FBT003 - a default value
    )


class _Reader:
    """Reads settings and names the one that is wrong."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def one(self, name: str, parse: Callable[[str], Item], default: Item) -> Item:
        if name not in self._settings:
            return default
        return _parsed(name, self._settings[name].strip(), parse)

    def many(
        self, name: str, parse: Callable[[str], Item], default: tuple[Item, ...]
    ) -> tuple[Item, ...]:
        if name not in self._settings:
            return default
        entries = [entry.strip() for entry in self._settings[name].split(",") if entry.strip()]
        if len(entries) > MAX_ENTRIES:
            raise ConfigError(
                f"{name} has {len(entries)} entries, more than the {MAX_ENTRIES} allowed: "
                "use ranges"
            )
        return tuple(dict.fromkeys(_parsed(name, entry, parse) for entry in entries))

    def many_or_all(
        self, name: str, parse: Callable[[str], Item]
    ) -> tuple[Item, ...] | Literal["*"]:
        if self._settings.get(name, WILDCARD).strip() == WILDCARD:
            return WILDCARD
        return self.many(name, parse, ())


def _parsed(name: str, text: str, parse: Callable[[str], Item]) -> Item:
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {text!r} {error}") from error


def _excluded_inbound(ports: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys((*UNCAPTURED_INBOUND, *ports)))


# Parsers of one value; each raises ValueError with the end of a sentence that begins with it.


def _number(text: str, least: int, most: int, what: str) -> int:
    if not (text.isascii() and text.isdigit()) or not least <= int(text[:20]) <= most:
        raise ValueError(f"is not {what} ({least} to {most})")
    return int(text)


def _port(text: str) -> int:
    return _number(text, 1, 65535, "a port")


def _owner(text: str) -> int:
    return _number(text, 0, MAX_ID, "a numeric user or group ID")


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(f"is not a range such as 10.0.0.0/8 or fd00::/8: {error}") from error


def _interface(text: str) -> str:
    good = text.isascii() and text.isprintable() and not set(text) & set(' /"\\*:!+')
    if not good or len(text) > MAX_INTERFACE_NAME or text in {".", ".."} or text.startswith("-"):
        raise ValueError("is not the name of a network interface")
    return text


def _mode(text: str) -> InterceptionMode:
    return InterceptionMode(_one_of(text, list(InterceptionMode)))


def _family(text: str) -> Family:
    return Family(_one_of(text, list(Family)))


def _boolean(text: str) -> bool:
    return _one_of(text, ["true", "false"]) == "true"


def _one_of(text: str, known: Sequence[str]) -> str:
    if text not in known:
        raise ValueError(f"is not one of {', '.join(known)}")
    return text


# YAML.


def _mapping(tree: object, origin: str) -> dict[str, object]:
    if not isinstance(tree, dict):
        raise ConfigError(f"{origin}: a mapping of settings is expected, such as mode: REDIRECT")
    items = cast("dict[object, object]", tree)
    return {str(key): value for key, value in items.items()}


def _pod_annotations(document: Mapping[str, object], origin: str) -> dict[str, str]:
    spec = _mapping(document.get("spec") or {}, f"{origin}: spec")
    holder = spec.get("template", document)
    metadata = _mapping(_mapping(holder, origin).get("metadata", {}), f"{origin}: metadata")
    found = _mapping(metadata.get("annotations", {}), f"{origin}: metadata.annotations")
    return {name: _text(value, f"{origin}: {name}") for name, value in found.items()}


def _text(value: object, where: str) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int():
            return str(value)
        case None:
            return ""
        case list():
            entries = cast("list[object]", value)
            return ",".join(_text(entry, where) for entry in entries)
        case _:
            raise ConfigError(f"{where}: a text, a number or a list is expected")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f": did you mean {near[0]}?" if near else f": known are {', '.join(sorted(known))}"
