"""The CA's own serving certificate: issued by itself, renewed at half its life without a restart.

It is issued anew, too, when the CA's own key or roots change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ca.authority import Authority
from ca.errors import SigningError
from mesh.clock import Now, sleep_until
from mesh.log import get_logger
from mesh.spiffe import SpiffeId
from mesh.svid import X509Svid
from mesh.tls import ClientCertificate, TlsContext, TlsSession, server_context

ALPN = (b"h2",)
"""gRPC: without it in the handshake grpc-go and the C core hang up."""

SHORTEST_WAIT = timedelta(seconds=1)
"""Between two renewals, however short certificates live: near its end, a CA must not spin."""

RETRY_AFTER = timedelta(seconds=60)
"""After a renewal that failed. The old certificate has half its life left at the first try."""

_log = get_logger("ca")


class ServingCertificate:
    """Holds the TLS context that new connections begin with."""

    def __init__(
        self,
        authority: Callable[[], Authority],
        identity: SpiffeId,
        names: Sequence[x509.GeneralName],
        now: Now,
    ) -> None:
        """Issue the first certificate. Raises SigningError."""
        self._authority = authority
        self._identity = identity
        self._names = names
        self._now = now
        self._context, self._renew_at = self._issue()

    def session(self) -> TlsSession:
        """Begin the server's side of a connection with the newest certificate."""
        return self._context.session(self._now())

    async def keep_renewing(self) -> None:
        """Renew for ever. Connections keep what they began with."""
        while True:
            await sleep_until(self._renew_at, self._now)
            self.renew()

    def renew(self) -> None:
        """Renew at once: because it is time, or because the CA's roots or key have changed."""
        try:
            self._context, self._renew_at = self._issue()
        except SigningError as error:
            _log.error("serving certificate not renewed", reason=error.reason, why=str(error))
            self._renew_at = self._now() + RETRY_AFTER

    def _issue(self) -> tuple[TlsContext, datetime]:
        now = self._now()
        key = ec.generate_private_key(ec.SECP256R1())
        authority = self._authority()
        issued = authority.issue_own(self._identity, self._names, key.public_key(), now)
        svid = X509Svid(
            id=self._identity, chain=(issued.certificate, *authority.intermediates), key=key
        )
        roots = authority.roots
        context = server_context(
            svid,
            {roots.trust_domain: roots},
            alpn=ALPN,
            client_certificate=ClientCertificate.OPTIONAL,
        )
        renew_at = now + max((svid.not_after - now) / 2, SHORTEST_WAIT)
        _log.info(
            "serving certificate issued",
            identity=str(svid.id),
            serial=f"{svid.serial:x}",
            not_after=svid.not_after.isoformat(),
            renewal=renew_at.isoformat(timespec="seconds"),
        )
        return context, renew_at
