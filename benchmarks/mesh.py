"""The certificates of the benchmark: a real CA and two agents, and the same material as files."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from benchmarks.process import free_port, running, wait_for_port
from mesh.clock import system_now
from proxy.identity import IdentityStore
from proxy.sds import follow_identity, node_id
from proxy.sds_state import SecretsState

CLIENT = "spiffe://cluster.local/ns/foo/sa/client"
SERVER = "spiffe://cluster.local/ns/foo/sa/server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """One workload's identity: where an agent serves it, and the same as PEM files."""

    socket: Path
    certificate: Path
    key: Path
    both: Path
    """Certificates and key in one file, as haproxy wants them."""
    roots: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Both ends of the chain that is measured."""

    client: Material
    server: Material


@contextlib.contextmanager
def mesh(folder: Path) -> Iterator[Mesh]:
    """Run a CA and an agent for each end until the block ends."""
    remora = Path(sys.executable).with_name("remora")
    state, port, log = folder / "ca", free_port(), folder / "mesh.log"
    with contextlib.ExitStack() as stack:
        command = [remora, "ca", "serve", "--state-dir", state, "--listen", f"127.0.0.1:{port}"]
        process = stack.enter_context(running(command, log))
        wait_for_port(port, process, log)
        made = {}
        for name in ("client", "server"):
            token = folder / f"{name}.token"
            account = f"foo/{name}"
            created = subprocess.run(
                [remora, "token", "create", "--state-dir", state, "--service-account", account],
                check=True,
                capture_output=True,
            )
            token.write_bytes(created.stdout)
            agent = folder / f"{name}.sock"
            command = [remora, "agent", "run", "--ca-address", f"127.0.0.1:{port}"]
            command += ["--ca-root-cert", state / "root-cert.pem", "--token-file", token]
            stack.enter_context(running([*command, "--socket", agent], log))
            while not agent.exists():
                time.sleep(0.01)
            made[name] = trio.run(_fetch, agent, folder / name)
        yield Mesh(**made)


async def _fetch(agent: Path, folder: Path) -> Material:
    """Take an identity from its agent and write it to files, for peers that read files."""
    identities = IdentityStore()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            state = SecretsState(node_id(), ())
            nursery.start_soon(follow_identity, agent, state, identities, system_now)
            await identities.ready()
            nursery.cancel_scope.cancel()
    identity = identities.current
    assert identity is not None
    folder.mkdir()
    svid = identity.svid
    chain = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in svid.chain)
    key = svid.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    roots = b"".join(
        authority.public_bytes(Encoding.PEM)
        for bundle in identity.bundles.values()
        for authority in bundle.authorities
    )
    contents = {"cert.pem": chain, "key.pem": key, "both.pem": chain + key, "roots.pem": roots}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o644 if name in ("cert.pem", "roots.pem") else 0o600)
    return Material(
        socket=agent,
        certificate=folder / "cert.pem",
        key=folder / "key.pem",
        both=folder / "both.pem",
        roots=folder / "roots.pem",
    )
