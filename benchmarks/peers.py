"""The proxies that are measured: how each is configured and started as a chain of two.

client → A (plaintext in, mutual TLS out) → B (mutual TLS in, plaintext out) → server. All use the
same certificates, demand one of the client, and verify chains. What they say of the peer's identity
differs: Remora and Envoy check the SPIFFE ID, the others cannot.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.mesh import CLIENT, SERVER, Mesh
from benchmarks.process import free_port, running, wait_for_port
from tests.interop.envoy import Sidecar, bootstrap, executable

NGINX_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
MAX_CONNECTIONS = 9000
"""Of each proxy, where that must be said; two descriptors for each have to be allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a chain is started for."""

    mesh: Mesh
    folder: Path
    server_port: int
    workers: int
    resume: bool
    """Let A resume TLS sessions with B, where the peer can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A running pair of proxies."""

    port: int
    """Where clients connect."""
    pids: tuple[int, ...]
    ready_seconds: float
    """From the start of the slower of the two until it accepts connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where A and B listen."""

    a: int
    b: int


Commands = Callable[[Setting, Ports], tuple[list[str | Path], list[str | Path]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Something that can be measured."""

    name: str
    commands: Commands | None
    """Makes the command lines of A and B; None for no proxies at all."""
    version: Callable[[], str | None]
    """Says what is installed; None if nothing is."""
    can_resume: bool = True


@contextlib.contextmanager
def chain(peer: Peer, setting: Setting) -> Iterator[Chain]:
    """Run a peer's two proxies until the block ends."""
    if peer.commands is None:
        yield Chain(port=setting.server_port, pids=(), ready_seconds=0.0)
        return
    setting.folder.mkdir(parents=True)
    ports = Ports(a=free_port(), b=free_port())
    log = setting.folder / "log"
    first, second = peer.commands(setting, ports)
    started = time.perf_counter()
    with running(second, log) as b, running(first, log) as a:
        wait_for_port(ports.b, b, log)
        wait_for_port(ports.a, a, log)
        ready = time.perf_counter() - started
        yield Chain(port=ports.a, pids=(a.pid, b.pid), ready_seconds=ready)


def _remora(*flags: str) -> Commands:
    def commands(setting: Setting, ports: Ports) -> tuple[list[str | Path], list[str | Path]]:
        run: list[str | Path] = [Path(sys.executable).with_name("remora"), "proxy", "run", *flags]
        if setting.workers > 1:
            run += ["--workers", str(setting.workers)]
        out = f"127.0.0.1:{ports.a}=127.0.0.1:{ports.b}@{SERVER}"
        into = f"127.0.0.1:{ports.b}=127.0.0.1:{setting.server_port}"
        a = [*run, "--agent-socket", setting.mesh.client.socket, "--outbound", out]
        b = [*run, "--agent-socket", setting.mesh.server.socket, "--inbound", into]
        return a, [*b, "--mtls-mode", "STRICT"]

    return commands


def _envoy(setting: Setting, ports: Ports) -> tuple[list[str | Path], list[str | Path]]:
    a = bootstrap(
        Sidecar(
            listen=ports.a,
            forward=("127.0.0.1", ports.b),
            sds_socket=setting.mesh.client.socket,
            peer=SERVER,
            server=False,
        )
    )
    if not setting.resume:
        cluster = a["static_resources"]["clusters"][0]
        cluster["transport_socket"]["typed_config"]["max_session_keys"] = 0
    b = bootstrap(
        Sidecar(
            listen=ports.b,
            forward=("127.0.0.1", setting.server_port),
            sds_socket=setting.mesh.server.socket,
            peer=CLIENT,
            server=True,
        )
    )
    return _envoy_command(setting, "a", a), _envoy_command(setting, "b", b)


def _envoy_command(setting: Setting, name: str, config: dict[str, Any]) -> list[str | Path]:
    path = setting.folder / f"{name}.json"
    path.write_text(json.dumps(config))
    flags = ["--concurrency", str(setting.workers), "--use-dynamic-base-id", "-l", "error"]
    return [executable(), "-c", path, *flags]


def _nginx(setting: Setting, ports: Ports) -> tuple[list[str | Path], list[str | Path]]:
    client, server = setting.mesh.client, setting.mesh.server
    reuse = "on" if setting.resume else "off"
    a = f"""
      listen 127.0.0.1:{ports.a}; proxy_pass 127.0.0.1:{ports.b};
      proxy_ssl on; proxy_ssl_protocols TLSv1.3; proxy_ssl_session_reuse {reuse};
      proxy_ssl_certificate {client.certificate}; proxy_ssl_certificate_key {client.key};
      proxy_ssl_trusted_certificate {client.roots}; proxy_ssl_verify off;"""
    b = f"""
      listen 127.0.0.1:{ports.b} ssl; proxy_pass 127.0.0.1:{setting.server_port};
      ssl_protocols TLSv1.3; ssl_session_cache shared:s:1m; ssl_session_tickets {reuse};
      ssl_certificate {server.certificate}; ssl_certificate_key {server.key};
      ssl_client_certificate {server.roots}; ssl_verify_client on; ssl_verify_depth 3;"""
    return _nginx_command(setting, "a", a), _nginx_command(setting, "b", b)


def _nginx_command(setting: Setting, name: str, server: str) -> list[str | Path]:
    path = setting.folder / f"{name}.conf"
    path.write_text(f"""
      load_module {NGINX_STREAM};
      user root; daemon off; worker_processes {setting.workers};
      pid {setting.folder}/{name}.pid; error_log stderr error;
      events {{ worker_connections {MAX_CONNECTIONS}; }}
      stream {{ server {{ tcp_nodelay on; {server} }} }}
    """)
    return ["nginx", "-c", path, "-e", "stderr"]


def _haproxy(setting: Setting, ports: Ports) -> tuple[list[str | Path], list[str | Path]]:
    client, server = setting.mesh.client, setting.mesh.server
    reuse = "" if setting.resume else "no-ssl-reuse"
    a = f"""
  bind 127.0.0.1:{ports.a}
  server b 127.0.0.1:{ports.b} ssl crt {client.both} ca-file {client.roots} verify required {reuse}
"""
    tickets = "" if setting.resume else "no-tls-tickets"
    b = f"""
  bind 127.0.0.1:{ports.b} ssl crt {server.both} ca-file {server.roots} verify required {tickets}
  server app 127.0.0.1:{setting.server_port}
"""
    return _haproxy_command(setting, "a", a), _haproxy_command(setting, "b", b)


def _haproxy_command(setting: Setting, name: str, listen: str) -> list[str | Path]:
    path = setting.folder / f"{name}.cfg"
    path.write_text(f"""
global
  nbthread {setting.workers}
  maxconn {MAX_CONNECTIONS}
defaults
  mode tcp
  timeout connect 10s
  timeout client 1h
  timeout server 1h
listen chain{listen}""")
    return ["haproxy", "-f", path]


def _stunnel(setting: Setting, ports: Ports) -> tuple[list[str | Path], list[str | Path]]:
    client, server = setting.mesh.client, setting.mesh.server
    a = f"""client = yes
      accept = 127.0.0.1:{ports.a}\nconnect = 127.0.0.1:{ports.b}
      cert = {client.certificate}\nkey = {client.key}\nCAfile = {client.roots}"""
    b = f"""client = no
      accept = 127.0.0.1:{ports.b}\nconnect = 127.0.0.1:{setting.server_port}
      cert = {server.certificate}\nkey = {server.key}\nCAfile = {server.roots}"""
    return _stunnel_command(setting, "a", a), _stunnel_command(setting, "b", b)


def _stunnel_command(setting: Setting, name: str, service: str) -> list[str | Path]:
    path = setting.folder / f"{name}.conf"
    path.write_text(f"""foreground = yes
pid =
debug = err
[chain]
{service}
verifyChain = yes
sslVersionMin = TLSv1.3
sessionResume = {"yes" if setting.resume else "no"}
""")
    return ["stunnel4", path]


def _said_by(*command: str) -> Callable[[], str | None]:
    def version() -> str | None:
        if shutil.which(command[0]) is None:
            return None
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "." in line]
        return lines[0].strip() if lines else "?"

    return version


def _nginx_version() -> str | None:
    return _said_by("nginx", "-v")() if NGINX_STREAM.exists() else None


def _envoy_version() -> str | None:
    try:
        return _said_by(executable(), "--version")()
    except AssertionError:
        return None


def _remora_version() -> str | None:
    import OpenSSL.SSL

    library = OpenSSL.SSL.OpenSSL_version(OpenSSL.SSL.OPENSSL_VERSION).decode()
    return f"Python {sys.version.split()[0]}, {library}"


PEERS = {
    peer.name: peer
    for peer in (
        Peer(name="remora", commands=_remora(), version=_remora_version, can_resume=False),
        Peer(
            name="remora-plain",
            commands=_remora("--plain-relay"),
            version=_remora_version,
            can_resume=False,
        ),
        Peer(name="envoy", commands=_envoy, version=_envoy_version),
        Peer(name="nginx", commands=_nginx, version=_nginx_version),
        Peer(name="haproxy", commands=_haproxy, version=_said_by("haproxy", "-v")),
        Peer(name="stunnel", commands=_stunnel, version=_said_by("stunnel4", "-version")),
        Peer(name="direct", commands=None, version=lambda: "no proxy at all", can_resume=False),
    )
}
