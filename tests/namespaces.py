"""Network namespaces that a test makes, joins with veth pairs, and removes again.

They are the hosts and pods of the capture tests. Nothing is ever changed in the namespace that the
test suite itself runs in, but for veth ends, which are moved out at once.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_numbers = itertools.count()


def missing() -> str | None:
    """Why namespaces cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "nft", "iptables-restore"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    with namespace() as trial:
        if trial.run("nft", "list", "ruleset", check=False).returncode:
            return "this kernel has no nf_tables"
        python = (*user(1337), sys.executable, "-c", "import trio")
        if trial.run(*python, check=False).returncode:
            return f"other users cannot run {sys.executable}: it lies in a private folder"
    return None


def user(number: int) -> tuple[str, ...]:
    """What runs a program as a user and the group of the same number."""
    return ("setpriv", "--reuid", str(number), "--regid", str(number), "--clear-groups")


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """One network namespace."""

    name: str

    def command(self, *arguments: str) -> list[str]:
        """What runs a program inside."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def run(
        self,
        *arguments: str,
        check: bool = True,
        text: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside, to its end."""
        done = subprocess.run(
            self.command(*arguments),
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(Path.cwd()), **(environment or {})},
        )
        if check and done.returncode:
            raise AssertionError(f"{arguments} failed: {done.stderr}{done.stdout}")
        return done

    def remora(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of Remora's commands inside."""
        return self.run(sys.executable, "-m", "remora", *arguments, check=check)

    def ip(self, *arguments: str) -> str:
        return self.run("ip", *arguments).stdout

    def state(self) -> str:
        """All that capture may change, as text."""
        commands: Sequence[Sequence[str]] = (
            ("nft", "--stateless", "list", "ruleset"),
            ("iptables-legacy-save",),
            ("ip6tables-legacy-save",),
            ("ip", "address", "show", "dev", "lo"),
            ("ip", "rule", "show"),
            ("ip", "-6", "rule", "show"),
            ("ip", "route", "show", "table", "133"),
            ("ip", "-6", "route", "show", "table", "133"),
        )
        lines = [self.run(*command, check=False).stdout for command in commands]
        return "\n".join(line for line in "".join(lines).splitlines() if line[:1] not in "#:")


@contextmanager
def namespace() -> Generator[Namespace]:
    """Make a namespace with its loopback up; it is gone afterwards."""
    name = f"remora-test-{os.getpid()}-{next(_numbers)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        made = Namespace(name=name)
        made.ip("link", "set", "lo", "up")
        # Addresses are good at once: nobody else could have them.
        made.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        yield made
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def join(one: Namespace, other: Namespace, *, subnet: int, mtu: int = 1500) -> None:
    """Join two namespaces by a cable: 10.77.SUBNET.1 and .2, fd77:SUBNET::1 and ::2."""
    near = (f"v{subnet}a", "mtu", str(mtu), "netns", one.name)
    far = (f"v{subnet}b", "mtu", str(mtu), "netns", other.name)
    command = ["ip", "link", "add", *near, "type", "veth", "peer", "name", *far]
    subprocess.run(command, check=True)
    for end, place, number in (("a", one, 1), ("b", other, 2)):
        device = f"v{subnet}{end}"
        place.ip("address", "add", f"10.77.{subnet}.{number}/24", "dev", device)
        place.ip("address", "add", f"fd77:{subnet}::{number}/64", "dev", device, "nodad")
        place.ip("link", "set", device, "up")


reason = missing()
needs_namespaces = pytest.mark.skipif(reason is not None, reason=reason or "")
