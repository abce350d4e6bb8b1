"""The mesh of the story: which processes there are, and how they are wired together.

Before each of foo's three server sidecars (one for each mode of the story) there is a tap for
every row, so what a row sent is known byte by byte and is never mixed with another's. foo's client
sidecar has an outbound port for every row in which foo calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import trio

from ca.material import load_or_create, load_token_key
from ca.state import ROOT_CERT
from ca.tokens import create_token
from mesh.api import TOKEN_AUDIENCE
from mesh.clock import Now
from mesh.files import write_private
from mesh.spiffe import ServiceAccount, TrustDomain
from remora.demo.http_server import READY as APP_READY
from remora.demo.ports import reserved_addresses
from remora.demo.processes import Crew, Part
from remora.demo.story import (
    CLIENT_ACCOUNT,
    SERVER_ACCOUNT,
    TRUST_DOMAIN,
    Caller,
    Door,
    Row,
)
from remora.demo.tap import Tap, start_tap

CA, FOO_CLIENT_AGENT, FOO_SERVER_AGENT = "ca", "foo-client-agent", "foo-server-agent"
FOO_CLIENT_PROXY, FOO_SERVER_APP = "foo-client-proxy", "foo-server-app"
IMPOSTOR_CA, IMPOSTOR_AGENT, IMPOSTOR_PROXY = "impostor-ca", "impostor-agent", "impostor-proxy"

SERVER_PROXIES = {
    Door.PERMISSIVE: "foo-server-proxy-permissive",
    Door.STRICT: "foo-server-proxy-strict",
    Door.MIXED: "foo-server-proxy-mixed",
    Door.MIXED_METRICS: "foo-server-proxy-mixed",
}
"""The sidecar that each door belongs to."""

CLIENT_PROXIES = {Caller.FOO: FOO_CLIENT_PROXY, Caller.IMPOSTOR: IMPOSTOR_PROXY}
"""The sidecar of each caller that has one."""

LIVES = {FOO_CLIENT_AGENT: "24h", FOO_SERVER_AGENT: "10s", IMPOSTOR_AGENT: "24h"}
"""How long certificates live. The server's is renewed while the demo runs, after half of its
life, which is more than the hiccups of a busy machine."""

TOKEN_LIFE = timedelta(hours=24)
"""A day of --keep."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where everything listens that is not a tap."""

    ca: str
    impostor_ca: str
    app: str
    app_metrics: str
    doors: Mapping[Door, str]
    outbounds: Mapping[str, str]
    """By row, for callers with a sidecar: the sidecar's port for that row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The mesh, up and ready."""

    crew: Crew
    addresses: Addresses
    taps: Mapping[str, Tap]
    """By row."""
    parts: Mapping[str, Part]
    """By name."""

    @property
    def ca_directory(self) -> Path:
        """The state directory of the mesh's CA."""
        return self.crew.directory / CA

    def entrance(self, row: Row) -> str:
        """Return where the caller of `row` connects to: its sidecar, or what it thinks is foo."""
        return self.addresses.outbounds.get(row.name) or self.taps[row.name].address


async def set_stage(
    crew: Crew, taps: trio.Nursery, rows: Sequence[Row], *, now: Now, progress: Progress
) -> Stage:
    """Start the whole mesh for `rows` and wait until it is ready. Raises DemoError leaves."""
    outbounds = [row.name for row in rows if row.caller in CLIENT_PROXIES]
    with reserved_addresses(4 + len(Door) + len(outbounds)) as free:
        addresses = Addresses(
            ca=free.pop(),
            impostor_ca=free.pop(),
            app=free.pop(),
            app_metrics=free.pop(),
            doors={door: free.pop() for door in Door},
            outbounds={name: free.pop() for name in outbounds},
        )
        wires = {row.name: await start_tap(taps, addresses.doors[row.door]) for row in rows}
        builder = _Builder(crew, addresses, wires, rows, now, progress)
        await builder.build()
    return Stage(crew=crew, addresses=addresses, taps=wires, parts=builder.parts)


class _Builder:
    """Starts each process as soon as what it needs is there."""

    def __init__(
        self,
        crew: Crew,
        addresses: Addresses,
        taps: Mapping[str, Tap],
        rows: Sequence[Row],
        now: Now,
        progress: Progress,
    ) -> None:
        self.parts: dict[str, Part] = {}
        self._crew = crew
        self._addresses = addresses
        self._taps = taps
        self._rows = rows
        self._now = now
        self._progress = progress

    async def build(self) -> None:
        """Start everything; a sidecar waits for its agent by itself."""
        self._progress("starting the certificate authority and foo's server")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._start_app)
            await self._start_ca(CA, self._addresses.ca)
            nursery.start_soon(self._build_impostor)
            self._progress("starting foo's agents and sidecars")
            nursery.start_soon(self._start_agent, FOO_CLIENT_AGENT, CLIENT_ACCOUNT)
            nursery.start_soon(self._start_agent, FOO_SERVER_AGENT, SERVER_ACCOUNT)
            nursery.start_soon(self._start_client_proxy, Caller.FOO, FOO_CLIENT_AGENT)
            for door, flags in self._server_proxies().items():
                nursery.start_soon(self._start_proxy, SERVER_PROXIES[door], FOO_SERVER_AGENT, flags)

    async def _build_impostor(self) -> None:
        self._progress("starting an impostor with a CA of its own")
        await trio.to_thread.run_sync(self._found_impostor_ca)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._start_client_proxy, Caller.IMPOSTOR, IMPOSTOR_AGENT)
            await self._start_ca(IMPOSTOR_CA, self._addresses.impostor_ca)
            nursery.start_soon(self._start_agent, IMPOSTOR_AGENT, CLIENT_ACCOUNT)

    def _found_impostor_ca(self) -> None:
        """Make the impostor's CA, which hands out the real root beside its own.

        An impostor's sidecar must take the real server for real, or it would be the impostor who
        refuses, and nothing would be shown. Roots are public, so a real one can do this.
        """
        directory, genuine = self._crew.directory / IMPOSTOR_CA, self._crew.directory / CA
        directory.mkdir(mode=0o700)
        load_or_create(directory, TrustDomain.parse(TRUST_DOMAIN), self._now())
        roots = (directory / ROOT_CERT).read_bytes() + (genuine / ROOT_CERT).read_bytes()
        write_private(directory / ROOT_CERT, roots)

    async def _start(self, name: str, ready: str, *arguments: str) -> None:
        part = await self._crew.start(name, *arguments)
        self.parts[name] = part
        await part.ready(ready)

    async def _start_app(self) -> None:
        ports = (self._addresses.app, self._addresses.app_metrics)
        await self._start(FOO_SERVER_APP, APP_READY, "remora.demo.http_server", *ports)

    async def _start_ca(self, name: str, address: str) -> None:
        flags = ("--state-dir", str(self._crew.directory / name), "--listen", address)
        await self._start(name, "ca ready", "remora", "ca", "serve", *flags, *_JSON)

    async def _start_agent(self, name: str, account: str) -> None:
        directory = self._crew.directory
        impostor = name == IMPOSTOR_AGENT
        ca = directory / (IMPOSTOR_CA if impostor else CA)
        flags = {
            "--ca-address": self._addresses.impostor_ca if impostor else self._addresses.ca,
            "--ca-root-cert": str(ca / ROOT_CERT),
            "--token-file": str(self._write_token(name, account, ca)),
            "--socket": str(_socket(directory, name)),
            "--secret-ttl": LIVES[name],
        }
        await self._start(name, "agent ready", "remora", "agent", "run", *_flat(flags), *_JSON)

    def _write_token(self, agent: str, account: str, ca: Path) -> Path:
        """Do what `remora token create` does, without the second that a process takes to start."""
        path = self._crew.directory / f"{agent}.token"
        token = create_token(
            load_token_key(ca),
            ServiceAccount.parse(account),
            audience=TOKEN_AUDIENCE,
            ttl=TOKEN_LIFE,
            now=self._now(),
        )
        write_private(path, token.encode())
        return path

    async def _start_proxy(self, name: str, agent: str, flags: Sequence[str]) -> None:
        socket = ("--agent-socket", str(_socket(self._crew.directory, agent)))
        await self._start(name, "proxy ready", "remora", "proxy", "run", *socket, *flags, *_JSON)

    async def _start_client_proxy(self, caller: Caller, agent: str) -> None:
        flags: list[str] = []
        for row in self._rows:
            if row.caller is caller:
                listen, tap = self._addresses.outbounds[row.name], self._taps[row.name].address
                flags += ["--outbound", f"{listen}={tap}@{row.wants}"]
        await self._start_proxy(CLIENT_PROXIES[caller], agent, flags)

    def _server_proxies(self) -> dict[Door, list[str]]:
        """Return the flags of foo's server sidecars."""
        app, metrics = self._addresses.app, self._addresses.app_metrics
        ways = {door: f"{address}={app}" for door, address in self._addresses.doors.items()}
        ways[Door.MIXED_METRICS] = f"{self._addresses.doors[Door.MIXED_METRICS]}={metrics}"
        exception = f"{metrics.rpartition(':')[2]}=PERMISSIVE"
        return {
            Door.PERMISSIVE: ["--inbound", ways[Door.PERMISSIVE], "--mtls-mode", "PERMISSIVE"],
            Door.STRICT: ["--inbound", ways[Door.STRICT], "--mtls-mode", "STRICT"],
            Door.MIXED: [
                *("--inbound", ways[Door.MIXED], "--inbound", ways[Door.MIXED_METRICS]),
                *("--mtls-mode", "STRICT", "--port-mtls", exception),
            ],
        }


_JSON = ("--log-format", "json")


def _flat(flags: Mapping[str, str]) -> list[str]:
    return [word for pair in flags.items() for word in pair]


def _socket(directory: Path, agent: str) -> Path:
    return directory / f"{agent}.sock"
