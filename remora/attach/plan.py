"""What `remora run` starts, and how: from the flags to command lines. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from mesh.errors import ConfigError

PROXY_ID = 1337
"""Whom the sidecar runs as where traffic is captured: the user that the rules exempt."""

FIRST_NETWORK = IPv4Address("100.64.0.0")
"""Addresses for the cables to apps' namespaces, of the range that is kept for carriers' own use
(RFC 6598): nobody's home or office has it."""

NETWORKS = 2**20
"""How many networks of four addresses the range has."""


class Capture(enum.StrEnum):
    """Whether the app's traffic is captured, and where."""

    AUTO = "auto"
    """In an own namespace if that is permitted, else not at all."""
    OWN = "own"
    """In a network namespace that is made for the app."""
    HERE = "here"
    """In the namespace that `remora run` is started in, such as a container's."""
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A port of the app, and where peers connect."""

    listen: int
    app: int

    @classmethod
    def parse(cls, text: str) -> Port:
        """Parse `PORT` or `LISTEN:PORT`. Raises ConfigError."""
        listen, _, app = text.rpartition(":")
        numbers = [listen or app, app]
        if not all(n.isascii() and n.isdigit() and 0 < int(n[:6]) < 65536 for n in numbers):
            raise ConfigError(f"--port {text!r}: write PORT, or LISTEN:PORT")
        return cls(listen=int(numbers[0]), app=int(app))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The settings of `remora run`, with capture decided."""

    command: tuple[str, ...]
    capture: Capture
    ports: tuple[Port, ...]
    agent_socket: Path | None
    agent_flags: tuple[str, ...]
    proxy_flags: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises ConfigError."""
        if not self.command:
            raise ConfigError("there is no app to run: remora run [flags] -- CMD...")
        if self.capture is not Capture.NONE:
            return
        if not self.ports and not any(flag.startswith("--outbound=") for flag in self.proxy_flags):
            raise ConfigError(
                "without capture the sidecar serves named ports only: give --port or --outbound"
            )
        for port in self.ports:
            if port.listen == port.app:
                raise ConfigError(
                    f"--port {port.app}: without capture the sidecar needs a port of its own "
                    f"before the app's: write --port LISTEN:{port.app}"
                )

    @property
    def captured(self) -> bool:
        """Whether the sidecar serves captured traffic."""
        return self.capture in {Capture.OWN, Capture.HERE}

    def agent_arguments(self, socket: Path) -> list[str]:
        """Return what comes after `remora`: an agent on `socket`."""
        uid = ("--allow-uid", f"{PROXY_ID}") if self.captured else ()
        return ["agent", "run", f"--socket={socket}", *self.agent_flags, *uid, *_JSON]

    def proxy_arguments(self, socket: Path) -> list[str]:
        """Return what comes after `remora`: a sidecar that gets its secrets on `socket`."""
        if self.captured:
            ways = ["--capture=REDIRECT"]
        else:
            ways = [f"--inbound=0.0.0.0:{one.listen}=127.0.0.1:{one.app}" for one in self.ports]
        return ["proxy", "run", f"--agent-socket={socket}", *ways, *self.proxy_flags, *_JSON]


_JSON = ("--log-format", "json")


def as_sidecar() -> list[str]:
    """Return the words before a command that make it the user whom the rules exempt."""
    return ["setpriv", f"--reuid={PROXY_ID}", f"--regid={PROXY_ID}", "--clear-groups"]


def exit_code(code: int) -> int:
    """Return a shell's code for an app that ended with `code`, negative for a signal."""
    return 128 - code if code < 0 else code


@dataclass(frozen=True, slots=True, kw_only=True)
class Cable:
    """What joins a namespace to the one around it."""

    number: int
    """A process ID, so that no two that live at once are the same."""
    holder: int
    """The process that keeps the namespace."""

    @property
    def device(self) -> str:
        """The end outside."""
        return f"remora{self.number % NETWORKS}"

    @property
    def outside(self) -> IPv4Address:
        """The address outside, which is the way out for the app."""
        return FIRST_NETWORK + (self.number % NETWORKS) * 4 + 1

    @property
    def inside(self) -> IPv4Address:
        """The app's address."""
        return self.outside + 1

    @property
    def table(self) -> str:
        """The table of rules around the namespace."""
        return f"remora-run-{self.number}"

    def enter(self) -> list[str]:
        """Return the words before a command that run it inside."""
        return ["nsenter", f"--net=/proc/{self.holder}/ns/net", "--"]

    def commands(self) -> list[list[str]]:
        """Return the commands that lay the cable."""
        outer = ["dev", self.device]
        near = ["ip", "link", "add", self.device, "type", "veth"]
        return [
            [*near, "peer", "name", "eth0", "netns", f"{self.holder}"],
            ["ip", "address", "add", f"{self.outside}/30", *outer],
            ["ip", "link", "set", *outer, "up"],
            [*self.enter(), "ip", "link", "set", "lo", "up"],
            [*self.enter(), "ip", "address", "add", f"{self.inside}/30", "dev", "eth0"],
            [*self.enter(), "ip", "link", "set", "eth0", "up"],
            [*self.enter(), "ip", "route", "add", "default", "via", f"{self.outside}"],
        ]

    def rules(self, ports: Sequence[Port]) -> str:
        """Return the input for nft: what leaves has this machine's address, ports lead inside."""
        to_app = [
            f"fib daddr type local ip daddr != 127.0.0.0/8 tcp dport {port.listen} "
            f"dnat to {self.inside}:{port.app}"
            for port in ports
        ]
        chains = (
            ("prerouting", "type nat hook prerouting priority -100", to_app),
            ("output", "type nat hook output priority -100", to_app),
            (
                "postrouting",
                "type nat hook postrouting priority 100",
                [f'ip saddr {self.inside} oifname != "{self.device}" masquerade'],
            ),
        )
        body = "".join(
            f"chain {name} {{\n{hook};\n" + "".join(f"{rule}\n" for rule in rules) + "}\n"
            for name, hook, rules in chains
        )
        return f"table ip {self.table} {{\n{body}}}\n"

    def removal(self) -> str:
        """Return the input for nft that takes the rules away, there or not."""
        return f"add table ip {self.table}\ndelete table ip {self.table}\n"
