"""TLS clients of the demo's own: one that looks at a certificate, one that shows a wrong one."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import h11
import trio
from cryptography.hazmat.primitives.asymmetric import ec

from ca.state import CA_CERT, CA_KEY, ROOT_CERT
from ca.template import LeafNames, Signer, leaf_certificate, leaf_validity
from mesh.api import MESH_ALPN
from mesh.bundle import Bundles, TrustBundle
from mesh.clock import Now
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.svid import X509Svid, parse_certificates_pem, parse_private_key_pem
from mesh.tls import TlsContext, client_context
from mesh.tls_errors import TlsError
from mesh.tls_stream import TlsStream
from mesh.verify import PeerRejected
from remora.demo.errors import ProbeFailed
from remora.demo.ports import split_address
from remora.demo.story import REFUSED, TRUST_DOMAIN

STRAY_LIFE = timedelta(minutes=5)
"""Life of the wrong certificate; the demo is over long before."""

READ_SIZE = 65536

_NO_CONNECTION = (
    TlsError,
    PeerRejected,
    trio.BrokenResourceError,
    h11.RemoteProtocolError,
    OSError,
)
"""Everything by which a connection that was refused, or broke, shows itself."""


async def serial_shown(address: str, ca_directory: Path, now: Now) -> int:
    """Return the serial number of the certificate that a new connection to `address` is shown.

    Shows none itself, so a STRICT server refuses it right afterwards. Raises ProbeFailed.
    """
    context = client_context(_bundles(ca_directory), alpn=[MESH_ALPN])
    try:
        async with await _connect(address, context, now()) as tls:
            return tls.session.peer_chain[0].serial_number
    except _NO_CONNECTION as error:
        raise ProbeFailed(address, error) from error


async def call_as(identity: str, address: str, ca_directory: Path, now: Now) -> str:
    """GET / at `address` with a certificate for `identity` made with the CA's own key.

    The CA would sign no such thing; whoever steals its key could. Returns the HTTP status, 000
    if there was no answer.
    """
    svid = _forge(SpiffeId.parse(identity), ca_directory, now())
    context = client_context(_bundles(ca_directory), svid=svid, alpn=[MESH_ALPN])
    try:
        async with await _connect(address, context, now()) as tls:
            return await _get(tls, address)
    except _NO_CONNECTION:
        return REFUSED


def _bundles(ca_directory: Path) -> Bundles:
    domain = TrustDomain.parse(TRUST_DOMAIN)
    return {domain: TrustBundle.from_pem(domain, (ca_directory / ROOT_CERT).read_bytes())}


def _forge(identity: SpiffeId, ca_directory: Path, now: datetime) -> X509Svid:
    (authority,) = parse_certificates_pem((ca_directory / CA_CERT).read_bytes())
    signer = Signer(
        certificate=authority, key=parse_private_key_pem((ca_directory / CA_KEY).read_bytes())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    validity = leaf_validity(now, STRAY_LIFE, [authority])
    leaf = leaf_certificate(LeafNames(identity=identity), key.public_key(), validity, signer)
    return X509Svid(id=identity, chain=(leaf,), key=key)


async def _connect(address: str, context: TlsContext, now: datetime) -> TlsStream:
    transport = await trio.open_tcp_stream(*split_address(address))
    tls = TlsStream(transport, context.session(now))
    try:
        await tls.do_handshake()
    except _NO_CONNECTION:
        await trio.aclose_forcefully(transport)
        raise
    return tls


async def _get(tls: TlsStream, address: str) -> str:
    connection = h11.Connection(h11.CLIENT)
    request = h11.Request(method="GET", target="/", headers=[("Host", address)])
    await tls.send_all(
        (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b"")
    )
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await tls.receive_some(READ_SIZE))
        else:
            return str(event.status_code) if isinstance(event, h11.Response) else REFUSED
