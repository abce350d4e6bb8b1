"""Nodes and pods of network namespaces, with a CA, agents and sidecars as real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from tests.namespaces import Namespace, join, namespace, user

HERE = Path(__file__).parent
PORT = 8000
PATIENCE = 30.0
"""Seconds for what takes one or two."""

SIDECAR = user(1337)
SIDECAR_AS_ROOT = ("setpriv", "--regid", "1337", "--clear-groups")
"""For TPROXY, where the proxy needs its capabilities: Istio does the same."""

APP = user(1000)


class Program:
    """A process whose log lines can be waited for."""

    def __init__(self, command: Sequence[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of what `ip netns exec` and setpriv have become, since both only exec."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()

    def wait_for(self, *words: str, since: int = 0) -> str:
        """Wait for a line with all the words, from line number `since` on."""

        def found() -> str | None:
            return next(
                (line for line in self.lines[since:] if all(w in line for w in words)), None
            )

        with self._news:
            if not self._news.wait_for(found, PATIENCE):
                raise AssertionError(f"no line with {words} in:\n" + "\n".join(self.lines[since:]))
            return found() or ""

    def write(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal, 0 for none, and return its exit code."""
        if number and self._process.poll() is None:
            self._process.send_signal(number)
        code = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return code


@dataclass(kw_only=True)
class Pod:
    """A namespace with an app; with a sidecar and captured traffic if it is in the mesh."""

    name: str
    space: Namespace
    subnet: int
    city: City
    proxy: Program | None = None
    proxy_arguments: tuple[str, ...] = ()
    tproxy: bool = False

    @property
    def ip(self) -> str:
        return f"10.77.{self.subnet}.1"

    @property
    def ip6(self) -> str:
        return f"fd77:{self.subnet}::1"

    @property
    def identity(self) -> str:
        return f"spiffe://cluster.local/ns/city/sa/{self.name}"

    def start_app(self) -> Program:
        command = self.space.command(*APP, sys.executable, str(HERE / "app.py"), str(PORT))
        program = self.city.program(command)
        program.wait_for("app ready")
        return program

    def start_proxy(self) -> Program:
        """Start the sidecar and wait until it is ready."""
        who = SIDECAR_AS_ROOT if self.tproxy else SIDECAR
        arguments = ("--agent-socket", str(self.directory / "sds.sock"), *self.proxy_arguments)
        command = (sys.executable, "-m", "remora", "proxy", "run", *arguments)
        self.proxy = self.city.program(self.space.command(*who, *command))
        self.proxy.wait_for("proxy ready")
        return self.proxy

    @property
    def directory(self) -> Path:
        return self.city.directory / self.name

    def join_mesh(self, *proxy_arguments: str, tproxy: bool = False) -> None:
        """Get an agent, a sidecar and the rules of capture."""
        self.tproxy = tproxy
        mode = "TPROXY" if tproxy else "REDIRECT"
        self.proxy_arguments = ("--capture", mode, *proxy_arguments)
        self.city.start_agent(self)
        self.start_proxy()
        self.space.remora("capture", "apply", "--mode", mode)

    def dial(
        self,
        host: str,
        what: str,
        *more: str,
        port: int = PORT,
        who: Sequence[str] = APP,
        source: str | None = None,
    ) -> str:
        """Dial as the app, or as another user, and return what came of it."""
        environment = {"SOURCE": source} if source else {}
        command = (sys.executable, "-S", str(HERE / "dial.py"), host, str(port), what, *more)
        return self.space.run(*who, *command, environment=environment).stdout.strip()

    def lines(self) -> int:
        """How many lines the sidecar has logged."""
        assert self.proxy is not None
        return len(self.proxy.lines)


@dataclass(kw_only=True)
class City:
    """Two nodes joined by a cable, and their pods."""

    directory: Path
    stack: ExitStack
    nodes: list[Namespace] = field(default_factory=list[Namespace])
    subnets: dict[int, int] = field(default_factory=dict[int, int])

    def program(self, command: Sequence[str]) -> Program:
        program = Program(command)
        self.stack.callback(program.end)
        return program

    def pod(self, name: str, node: int) -> Pod:
        """Make a pod on a node, with an app and without a sidecar."""
        subnet = len(self.subnets) + 1
        self.subnets[subnet] = node
        space = self.stack.enter_context(namespace())
        join(space, self.nodes[node], subnet=subnet)
        space.ip("route", "add", "default", "via", f"10.77.{subnet}.2")
        space.ip("-6", "route", "add", "default", "via", f"fd77:{subnet}::2")
        other, gateway = self.nodes[1 - node], node + 1
        other.ip("route", "add", f"10.77.{subnet}.0/24", "via", f"10.77.99.{gateway}")
        other.ip("-6", "route", "add", f"fd77:{subnet}::/64", "via", f"fd77:99::{gateway}")
        made = Pod(name=name, space=space, subnet=subnet, city=self)
        made.start_app()
        return made

    def start_ca(self) -> None:
        arguments = ("--state-dir", str(self.directory / "ca"), "--listen", "0.0.0.0:15012")
        command = (sys.executable, "-m", "remora", "ca", "serve", *arguments)
        self.program(self.nodes[1].command(*command)).wait_for("ca ready")

    def prepare(self, pod: Pod) -> None:
        """Give a pod a token and the root."""
        pod.directory.mkdir(mode=0o700)
        token = pod.space.remora(
            *("token", "create", "--state-dir", str(self.directory / "ca")),
            *("--service-account", f"city/{pod.name}"),
        ).stdout
        (pod.directory / "token").write_text(token)
        shutil.copy(self.directory / "ca/root-cert.pem", pod.directory)
        for path in (pod.directory, *pod.directory.iterdir()):
            os.chown(path, 1337, 1337)

    def start_agent(self, pod: Pod) -> None:
        self.prepare(pod)
        arguments = (
            *("--ca-address", "10.77.99.2:15012"),
            *("--ca-root-cert", str(pod.directory / "root-cert.pem")),
            *("--token-file", str(pod.directory / "token")),
            *("--socket", str(pod.directory / "sds.sock")),
        )
        command = (sys.executable, "-m", "remora", "agent", "run", *arguments)
        self.program(pod.space.command(*SIDECAR, *command)).wait_for("certificate obtained")


@contextmanager
def city(*, mtu: int = 1280) -> Generator[City]:
    """Make two nodes whose cable carries smaller packets than the pods' do, and a CA on the second.

    1280 is the smallest that IPv6 allows.
    """
    directory = Path(mkdtemp(prefix="remora-city-"))
    directory.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        made = City(directory=directory, stack=stack)
        for _ in range(2):
            node = stack.enter_context(namespace())
            node.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
            made.nodes.append(node)
        join(made.nodes[0], made.nodes[1], subnet=99, mtu=mtu)
        made.start_ca()
        yield made
