"""Installing and removing the rules, in the network namespace that this process is in.

Every step can be repeated: what is there already is left alone, and what an interrupted run left
half-done is completed by the next. The rules come last, so traffic is led to the proxy only when
everything else that this needs is in place.
"""

from __future__ import annotations

import enum
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from proxy.capture import iptables, nftables
from proxy.capture.errors import CaptureError, CaptureNotPermitted, CaptureToolMissing
from proxy.capture.options import (
    INBOUND_SOURCES,
    TPROXY_MARK,
    TPROXY_TABLE,
    CaptureOptions,
    Family,
    InterceptionMode,
)
from proxy.capture.rule import Table

CAP_NET_ADMIN = 12
"""Its bit in the kernel's capability sets (linux/capability.h)."""

COMMAND_TIMEOUT = 60.0
"""Seconds. These tools take milliseconds; iptables may wait for another's lock."""

LOCK_SECONDS = 30
"""How long iptables waits for whoever holds its lock."""

_COMMANDS = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}


class Backend(enum.StrEnum):
    """The program that installs the rules."""

    AUTO = "auto"
    NFT = "nft"
    IPTABLES = "iptables"


def choose_backend(wanted: Backend) -> Backend:
    """Return nft if it is there, else iptables, unless told. Raises CaptureToolMissing."""
    if wanted is Backend.AUTO:
        wanted = Backend.NFT if shutil.which("nft") else Backend.IPTABLES
    tool = "nft" if wanted is Backend.NFT else "iptables-restore"
    if shutil.which(tool) is None:
        raise CaptureToolMissing(
            f"{tool} is not installed: install nftables (or iptables), or run with explicit ports"
        )
    return wanted


def permitted() -> bool:
    """Tell whether this process has CAP_NET_ADMIN."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> CAP_NET_ADMIN & 1)
    return False


def require_permission() -> None:
    """Raise CaptureNotPermitted unless this process may change the network."""
    if not permitted():
        raise CaptureNotPermitted(
            "capture needs the capability CAP_NET_ADMIN: run as root, or use explicit ports"
        )


def apply(options: CaptureOptions, backend: Backend) -> bool:
    """Put exactly these rules in force; return whether anything had to be changed.

    Raises CaptureError.
    """
    require_permission()
    chosen = choose_backend(backend)
    if options.mode is InterceptionMode.NONE:
        return clean()
    _prepare_network(options)
    # The new rules first: while the other program's are still there, too, nothing leaks.
    if chosen is Backend.NFT:
        changed = _apply_nft(options)
        removed = _restore_all(None)
    else:
        changed = _restore_all(options)
        removed = _clean_nft()
    return changed or removed


def clean() -> bool:
    """Remove all that `apply` made, as far as it is there; return whether anything was.

    Connections that go through the proxy are reset. Raises CaptureError.
    """
    require_permission()
    _cut_captured()
    found = [_clean_nft(), _restore_all(None), _clean_routing(), _clean_source()]
    return any(found)


def in_force() -> bool:
    """Tell whether there are capture rules. Raises CaptureError."""
    if shutil.which("nft") and any(map(_listed, nftables.TABLES.values())):
        return True
    return any(
        iptables.present(_run([f"{tool}-save"])) for family in Family for tool in _variants(family)
    )


def _cut_captured() -> None:
    """Reset what goes through the proxy, while its addresses are still being translated.

    With the last rule that needs it the kernel stops tracking connections, and so translating
    them, and the next bytes of the app would go out as they are, in plaintext. So first the jumps
    go, and nothing new is captured; then the connections; and last what else there is. Needs ss,
    of iproute2 like ip.
    """
    ports: set[str] = set()
    table = _listed(nftables.TABLES[Table.NAT]) if shutil.which("nft") else ""
    if found := _REDIRECTED.findall(table):
        ports.update(found)
        _run(["nft", "-f", "-"], nftables.stop())
    for family in Family:
        for tool in _variants(family):
            saved = _run([f"{tool}-save"])
            if text := iptables.stop_input(iptables.present(saved)):
                ports.update(_REDIRECTED.findall(saved))
                _run([f"{tool}-restore", "--noflush", f"--wait={LOCK_SECONDS}"], text)
    if ports and shutil.which("ss"):
        which = " or ".join(f"sport = :{port}" for port in sorted(ports))
        _run(["ss", "--kill", "--tcp", "--numeric", "--no-header", "state", "connected", which])


_REDIRECTED = re.compile(r"(?:redirect to :|-j REDIRECT --to-ports )([0-9]+)")


# nftables.


def _apply_nft(options: CaptureOptions) -> bool:
    wanted = nftables.tables(options)
    current = {name: _listed(name) for name in nftables.TABLES.values()}
    if all(current[name] == wanted.get(name, "") for name in current):
        return False
    _run(["nft", "-f", "-"], nftables.transaction(options))
    return True


def _clean_nft() -> bool:
    if shutil.which("nft") is None or not any(map(_listed, nftables.TABLES.values())):
        return False
    _run(["nft", "-f", "-"], nftables.removal())
    return True


def _listed(table: str) -> str:
    """Return a table as the kernel has it, empty if it is not there."""
    command = ["nft", "--stateless", "--numeric-priority", "list", "table", "inet", table]
    done = _completed(command)
    return done.stdout.strip() if done.returncode == 0 else ""


# iptables.


def _restore_all(options: CaptureOptions | None) -> bool:
    """Make the rules of `options`, or none, be all that iptables has of ours."""
    changed = False
    for family in Family:
        variants = list(_variants(family))
        saved = {tool: iptables.present(_run([f"{tool}-save"])) for tool in variants}
        target = _preferred(variants, saved) if options and _usable(family) else None
        for tool in variants:
            wanted = iptables.wanted(options, family) if options and tool == target else {}
            if text := iptables.restore_input(wanted, saved[tool]):
                _run([f"{tool}-restore", "--noflush", f"--wait={LOCK_SECONDS}"], text)
                changed = True
    return changed


def _variants(family: Family) -> Iterator[str]:
    """Name the programs there are: both of iptables' two forms, or the only one."""
    name = _COMMANDS[family]
    if not _usable(family):
        return
    found = [f"{name}-{kind}" for kind in ("nft", "legacy") if shutil.which(f"{name}-{kind}-save")]
    if not found and shutil.which(f"{name}-save"):
        found = [name]
    yield from found


def _preferred(variants: Sequence[str], saved: dict[str, dict[Table, list[str]]]) -> str:
    """Choose the form that has rules here already: two forms at once confuse everybody."""
    if not variants:
        raise CaptureToolMissing("iptables-save is not installed: install iptables")
    ours = [tool for tool in variants if saved[tool]]
    others = [tool for tool in variants if "\n-A " in _run([f"{tool}-save"])]
    return (*ours, *others, *variants)[0]


# The network around the rules.


def _prepare_network(options: CaptureOptions) -> None:
    if Family.IPV6 in options.families and _usable(Family.IPV6):
        _ip(Family.IPV6, "address", "replace", str(INBOUND_SOURCES[1]), "dev", "lo", "nodad")
    if options.mode is not InterceptionMode.TPROXY:
        _clean_routing()
        return
    for family in options.families:
        if not _usable(family):
            continue
        if not _has_rule(family):
            _ip(family, "rule", "add", "fwmark", f"{TPROXY_MARK}", "lookup", f"{TPROXY_TABLE}")
        _ip(family, "route", "replace", "local", "default", "dev", "lo", *_IN_TABLE)


_IN_TABLE = ("table", f"{TPROXY_TABLE}")


def _clean_routing() -> bool:
    found = False
    for family in Family:
        if not (shutil.which("ip") and _usable(family)):
            continue
        while _has_rule(family):
            _ip(family, "rule", "del", "fwmark", f"{TPROXY_MARK}", "lookup", f"{TPROXY_TABLE}")
            found = True
        if _completed(_ip_command(family, "route", "show", *_IN_TABLE)).stdout.strip():
            _ip(family, "route", "flush", *_IN_TABLE)
            found = True
    return found


def _has_rule(family: Family) -> bool:
    rules = _ip(family, "rule", "show", *_IN_TABLE)
    return f"fwmark {TPROXY_MARK:#x}" in rules


def _clean_source() -> bool:
    source = str(INBOUND_SOURCES[1])
    if not (shutil.which("ip") and _usable(Family.IPV6)):
        return False
    if source not in _ip(Family.IPV6, "address", "show", "dev", "lo"):
        return False
    _ip(Family.IPV6, "address", "del", source, "dev", "lo")
    return True


def _usable(family: Family) -> bool:
    """Tell whether the namespace has the family at all; without it nothing can leave by it."""
    if family is Family.IPV4:
        return True
    try:
        disabled = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").read_text(encoding="ascii")
    except OSError:
        return False
    return disabled.strip() == "0"


def _ip(family: Family, *arguments: str) -> str:
    return _run(_ip_command(family, *arguments))


def _ip_command(family: Family, *arguments: str) -> list[str]:
    return ["ip", "-4" if family is Family.IPV4 else "-6", *arguments]


def _run(command: Sequence[str], text: str | None = None) -> str:
    """Run a tool and return its output. Raises CaptureError with its own words."""
    done = _completed(command, text)
    if done.returncode:
        words = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise CaptureError(f"{' '.join(command)} failed: {words[:400]}")
    return done.stdout


def _completed(command: Sequence[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 - fixed programs, arguments of ours
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )
    except FileNotFoundError as error:
        raise CaptureToolMissing(
            f"{command[0]} is not installed, and capture needs it "
            f"({'iproute2' if command[0] == 'ip' else command[0]})"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise CaptureError(
            f"{' '.join(command)} did not end within {COMMAND_TIMEOUT:g} s: who holds its lock?"
        ) from error
