"""Proving that capture works: dial, and see who answers.

Each probe dials an address at which nobody listens. When the rules work, the connection arrives
at the proxy's port all the same, and the kernel still knows where it was going.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from mesh.address import Address
from proxy.capture.errors import CaptureNotPermitted
from proxy.capture.options import (
    INBOUND_SOURCES,
    PROBE_PORT,
    WILDCARD,
    CaptureOptions,
    Family,
    InterceptionMode,
    Network,
)
from proxy.original import destination_of
from proxy.socket_options import set_transparent

PROBE_TIMEOUT = 5.0
"""Seconds for one probe: Istio's validation waits as long."""

SOMEWHERE = {Family.IPV4: "192.0.2.1", Family.IPV6: "2001:db8::1"}
"""Addresses that exist nowhere (RFC 5737, RFC 3849)."""

NOBODY = 65534
"""The user that most systems keep for having no rights."""

_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_LOOPBACK = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one probe found; `works` is None where there was nothing to prove."""

    probe: str
    works: bool | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    name: str
    family: Family
    target: Address
    source: str | None
    listen: int
    uid: int
    gid: int
    transparent: bool


def check(options: CaptureOptions) -> list[Finding]:
    """Dial as the app and as the proxy would, and tell what became of it.

    Raises CaptureNotPermitted unless root, since it takes on other users' IDs.
    """
    if os.geteuid() != 0:
        raise CaptureNotPermitted("capture check dials in other users' names: run it as root")
    findings: list[Finding] = []
    for family in options.families:
        if _is_ours(family, _LOOPBACK[family]):
            findings += [_permitted_look(probe) for probe in _probes(options, family)]
    return findings


def _permitted_look(probe: _Probe) -> Finding:
    try:
        return _look(probe)
    except PermissionError as error:
        raise CaptureNotPermitted(
            "capture check needs CAP_SETUID and CAP_SETGID, and CAP_NET_ADMIN for TPROXY: this "
            "root has lost them, as in a container"
        ) from error


def _probes(options: CaptureOptions, family: Family) -> list[_Probe]:
    probes: list[_Probe] = []
    tproxy = options.mode is InterceptionMode.TPROXY
    if (target := outbound_target(options, family)) is not None:
        uid, gid = app_ids(options)
        probes.append(
            _Probe(
                name=f"outbound {family}",
                family=family,
                target=target,
                source=None,
                listen=options.outbound_port,
                uid=uid,
                gid=gid,
                transparent=False,
            )
        )
    if options.include_inbound_ports:
        # A call from the proxy to its own pod takes the inbound way without leaving the machine,
        # unless its source is the one that the proxy dials the app from.
        source = INBOUND_SOURCES[0 if family is Family.IPV4 else 1]
        probes.append(
            _Probe(
                name=f"inbound {family}",
                family=family,
                target=Address(str(source.network_address), inbound_port(options)),
                source=_LOOPBACK[family],
                listen=options.inbound_port,
                uid=options.proxy_uids[0],
                gid=(options.proxy_gids or options.proxy_uids)[0],
                transparent=tproxy,
            )
        )
    return probes


def outbound_target(options: CaptureOptions, family: Family) -> Address | None:
    """Choose an address that is to be captured; None if no address of the family is."""
    port = next(iter(options.include_outbound_ports), PROBE_PORT)
    ranges = options.include_outbound_ranges
    if ranges == WILDCARD or options.include_outbound_ports:
        return Address(SOMEWHERE[family], port)
    for network in options.networks(ranges):
        if Family.of(network) is family and not _excluded(network, options):
            return Address(str(network[min(1, network.num_addresses - 1)]), port)
    return None


def _excluded(network: Network, options: CaptureOptions) -> bool:
    return any(
        network.version == other.version and network[0] in other
        for other in options.exclude_outbound_ranges
    )


def inbound_port(options: CaptureOptions) -> int:
    """Choose a port that is captured inbound."""
    included = options.include_inbound_ports
    return PROBE_PORT if included == WILDCARD else included[0]


def app_ids(options: CaptureOptions) -> tuple[int, int]:
    """Choose a user and a group whose connections are to be captured."""
    users = (*options.proxy_uids, *options.exclude_users)
    groups = (*options.proxy_gids, *options.exclude_groups)
    uid = next(n for n in range(NOBODY, 0, -1) if n not in users)
    gid = next(n for n in range(NOBODY, 0, -1) if n not in groups)
    if options.include_users != WILDCARD:
        uid = options.include_users[0] if options.include_users else uid
    if options.include_groups != WILDCARD:
        gid = options.include_groups[0] if options.include_groups else gid
    return uid, gid


def _is_ours(family: Family, address: str) -> bool:
    try:
        with socket.socket(_FAMILIES[family], socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _look(probe: _Probe) -> Finding:
    if probe.source is not None and not _is_ours(probe.family, probe.target.host):
        missing = f"{probe.target.host} is no address of this machine: are the rules applied?"
        return _finding(probe, works=False, detail=missing)
    with _listener(probe) as listener, _owned(probe) as dialer:
        try:
            if probe.source is not None:
                dialer.bind((probe.source, 0))
            dialer.connect((probe.target.host, probe.target.port))
        except OSError as error:
            return _not_captured(probe, error)
        if listener is None:
            return _finding(
                probe, works=True, detail=f"taken by whoever listens on port {probe.listen}"
            )
        try:
            arrived, _ = listener.accept()
        except TimeoutError:
            return _finding(probe, works=False, detail=f"somebody else answers at {probe.target}")
        with arrived:
            return _arrived(probe, destination_of(arrived))


def _arrived(probe: _Probe, destination: Address) -> Finding:
    works = destination == probe.target
    told = f"arrived at port {probe.listen}; the kernel says it was going to {destination}"
    return _finding(probe, works=works, detail=told)


def _not_captured(probe: _Probe, error: OSError) -> Finding:
    if error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL}:
        return _finding(
            probe, works=None, detail=f"no route to {probe.target}: nothing can leave that way"
        )
    return _finding(
        probe,
        works=False,
        detail=f"{probe.target} was dialed and not captured ({error.strerror or 'no answer'}): "
        "are the rules applied in this network namespace, with these options?",
    )


def _finding(probe: _Probe, *, works: bool | None, detail: str) -> Finding:
    return Finding(probe=probe.name, works=works, detail=detail)


@contextmanager
def _listener(probe: _Probe) -> Generator[socket.socket | None]:
    """Listen in the proxy's place; None where the proxy, or somebody, does so already."""
    with socket.socket(_FAMILIES[probe.family], socket.SOCK_STREAM) as listener:
        listener.settimeout(PROBE_TIMEOUT)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if probe.transparent:
            set_transparent(listener)
        try:
            listener.bind((_LOOPBACK[probe.family], probe.listen))
            listener.listen()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            yield None
        else:
            yield listener


@contextmanager
def _owned(probe: _Probe) -> Generator[socket.socket]:
    """Make a socket that belongs to the probe's user: the rules go by who made it."""
    uid, gid = os.geteuid(), os.getegid()
    os.setegid(probe.gid)
    os.seteuid(probe.uid)
    try:
        dialer = socket.socket(_FAMILIES[probe.family], socket.SOCK_STREAM)
    finally:
        os.seteuid(uid)
        os.setegid(gid)
    with dialer:
        dialer.settimeout(PROBE_TIMEOUT)
        yield dialer
