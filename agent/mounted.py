"""Certificates that somebody else puts into files: no CA is asked (Istio: FILE_MOUNTED_CERTS)."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import trio
from cryptography import x509

from agent.answer import Issued
from agent.errors import MountedUnusable
from agent.metrics import AgentMetrics
from agent.store import SecretStore
from agent.watch import signature, wait_change
from mesh.bundle import TrustBundle
from mesh.clock import Now
from mesh.errors import ConfigError
from mesh.files import read_file
from mesh.log import get_logger
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.svid import InvalidSvid, X509Svid, parse_certificates_pem
from mesh.verify import PeerRejected, verify_chain

CERT_CHAIN, KEY, ROOT_CERT = "cert-chain.pem", "key.pem", "root-cert.pem"
"""Istio: the names of the three files, in a workload's directory of certificates."""

PATIENCE = 10.0
"""Seconds in which the files must come to fit together (Istio: its retries on a new pair)."""

RETRY_INTERVAL = 0.5

_PEM_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

log = get_logger("agent.mounted")


def load_mounted(directory: Path, trust_domain: TrustDomain, now: datetime) -> Issued:
    """Load certificate, key and roots from their files. Raises MountedUnusable."""
    try:
        chain = read_file(directory / CERT_CHAIN, "certificate chain")
        key = read_file(directory / KEY, "private key")
        roots = read_file(directory / ROOT_CERT, "root certificates")
        svid = X509Svid.parse_pem(chain, key)
    except (ConfigError, InvalidSvid) as error:
        raise MountedUnusable(f"certificates in {directory}: {error}") from error
    if svid.id.trust_domain != trust_domain:
        raise MountedUnusable(
            f"the certificate in {directory} is of {svid.id}, and this agent is of trust domain "
            f"{trust_domain}: give --trust-domain {svid.id.trust_domain}"
        )
    bundle = TrustBundle.of(trust_domain, _readable(roots))
    try:
        verify_chain(svid.chain, {trust_domain: bundle}, now)
    except PeerRejected as error:
        raise MountedUnusable(f"the certificate in {directory} cannot be used: {error}") from error
    return Issued(svid=svid, bundle=bundle, created=now)


def _readable(pem: bytes) -> list[x509.Certificate]:
    """Return the certificates that can be read; others are passed over, as in Istio."""
    found: list[x509.Certificate] = []
    for block in _PEM_BLOCK.findall(pem):
        try:
            found.extend(parse_certificates_pem(block))
        except InvalidSvid as error:
            log.warning("a root is passed over, since it cannot be read", error=str(error))
    return found


class MountedCertificates:
    """Follows the files for as long as the agent runs. What was good stays until better comes."""

    def __init__(
        self,
        directory: Path,
        trust_domain: TrustDomain,
        store: SecretStore,
        now: Now,
        metrics: AgentMetrics,
    ) -> None:
        self._directory = directory
        self._trust_domain = trust_domain
        self._store = store
        self._now = now
        self._metrics = metrics
        self.identity: SpiffeId | None = None
        self.failure: str | None = None

    async def run(self) -> None:
        """Load, and load anew at each change, until cancelled."""
        paths = [self._directory / name for name in (CERT_CHAIN, KEY, ROOT_CERT)]
        while True:
            seen = signature(paths)
            await self._load_patiently()
            await wait_change(paths, seen)

    async def _load_patiently(self) -> None:
        """Load the files, waiting a while for those that are written one after the other."""
        deadline = trio.current_time() + PATIENCE
        while True:
            try:
                self._take(load_mounted(self._directory, self._trust_domain, self._now()))
            except MountedUnusable as error:
                self.failure = str(error)
                if trio.current_time() >= deadline:
                    self._complain(error)
                    return
            else:
                return
            await trio.sleep(RETRY_INTERVAL)

    def _take(self, issued: Issued) -> None:
        if self.identity not in {None, issued.svid.id}:
            raise MountedUnusable(
                f"the certificate in {self._directory} is now of {issued.svid.id}, and a running "
                f"agent stays what it is, {self.identity}: start it anew"
            )
        self.identity, self.failure = issued.svid.id, None
        self._store.put(issued)
        log.info(
            "certificate loaded",
            identity=str(issued.svid.id),
            serial=f"{issued.svid.serial:x}",
            not_after=issued.svid.not_after.isoformat(),
        )

    def _complain(self, error: MountedUnusable) -> None:
        self._metrics.count("num_file_secret_failures_total")
        log.error("certificate files not taken over", reason=error.reason, error=str(error))
