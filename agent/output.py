"""Certificates written to disk for programs that want files (Istio: OUTPUT_CERTS).

Each generation is a directory of its own, and one symbolic link names the current one, so a reader
that goes through the link once sees a key and a chain that belong together. It is the layout of
Kubernetes' mounted volumes, whose readers and watchers know it:

    key.pem -> ..data/key.pem        cert-chain.pem, root-cert.pem likewise
    ..data  -> ..2026_11_25_12_00_00.5c4a3e09
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import trio

from agent.holdings import Holdings
from agent.mounted import CERT_CHAIN, KEY, ROOT_CERT
from agent.store import SecretStore, Wakeup
from mesh.clock import Now
from mesh.errors import ConfigError
from mesh.files import PRIVATE_DIRECTORY, private_directory, write_private
from mesh.log import get_logger
from mesh.spiffe import SpiffeId, TrustDomain

CURRENT = "..data"
"""Kubernetes: the link that is swapped."""

log = get_logger("agent.output")


class CertificateOutput:
    """Writes one identity's certificate, key and roots whenever one of them has changed."""

    def __init__(
        self,
        directory: Path,
        store: SecretStore,
        identity: Callable[[], SpiffeId | None],
        trust_domain: TrustDomain,
        now: Now,
    ) -> None:
        """Take the directory in use. Raises ConfigError if it cannot be."""
        self._directory = private_directory(directory)
        self._store = store
        self._identity = identity
        self._trust_domain = trust_domain
        self._now = now
        self._written: Mapping[str, bytes] | None = None

    async def run(self) -> None:
        """Write for as long as the agent runs. What cannot be written is tried again later."""
        wakeup = Wakeup()
        with self._store.subscribed(wakeup):
            while True:
                await self._write_if_changed()
                await wakeup.wait()

    async def _write_if_changed(self) -> None:
        files = self._files(self._store.holdings)
        if files is None or files == self._written:
            return
        name = f"..{self._now():%Y_%m_%d_%H_%M_%S}.{secrets.token_hex(4)}"
        try:
            await trio.to_thread.run_sync(write_generation, self._directory, name, files)
        except ConfigError as error:
            _complain(error)
            return
        self._written = files
        log.info("certificate written", directory=str(self._directory))

    def _files(self, holdings: Holdings) -> Mapping[str, bytes] | None:
        identity, roots = self._identity(), holdings.roots.get(self._trust_domain)
        held = None if identity is None else holdings.svid(identity, self._now())
        if held is None or roots is None:
            return None
        return {
            KEY: held.pair.key_pem,
            CERT_CHAIN: held.pair.chain_pem,
            ROOT_CERT: roots.roots.pem,
        }


def write_generation(directory: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Write `files` into a fresh directory, point to it, and remove those before it.

    A crash at any point leaves the generation before in place, or this one. Blocks: give it a
    thread. Raises ConfigError.
    """
    fresh = directory / name
    try:
        fresh.mkdir(mode=PRIVATE_DIRECTORY)
        for file, data in files.items():
            write_private(fresh / file, data)
        _swap(directory / CURRENT, name)
        for file in files:
            link = directory / file
            if not link.is_symlink() or link.readlink() != Path(CURRENT, file):
                _swap(link, f"{CURRENT}/{file}")
        for old in directory.glob("..[0-9]*"):
            if old.name != name:
                shutil.rmtree(old)
    except OSError as error:
        raise ConfigError(f"cannot write certificates to {directory}: {error.strerror}") from error


def _swap(link: Path, target: str) -> None:
    """Make `link` point to `target` in one step."""
    draft = link.with_name(f".{link.name.lstrip('.')}.{secrets.token_hex(4)}.tmp")
    draft.symlink_to(target)
    draft.replace(link)


def _complain(error: ConfigError) -> None:
    log.error("certificate not written", reason=error.reason, error=str(error))
