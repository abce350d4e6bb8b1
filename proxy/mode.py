"""What to do with an inbound connection, by the port's mode and how the connection begins.

Istio's PeerAuthentication modes, with the outcomes of its sidecar for ports whose protocol is TCP
or undeclared.
"""

from __future__ import annotations

import enum

from proxy.sniff import ClientHello

MESH_HTTP = frozenset({b"istio-http/1.0", b"istio-http/1.1", b"istio-h2"})
MESH_TCP = frozenset({b"istio-peer-exchange", b"istio"})
MESH_PROTOCOLS = MESH_HTTP | MESH_TCP
"""Istio: the ALPN values by which a sidecar says that its TLS is the mesh's, not the app's."""


class MtlsMode(enum.StrEnum):
    """PeerAuthentication's mutual TLS modes, resolved: UNSET has been replaced by what it meant."""

    STRICT = "STRICT"
    PERMISSIVE = "PERMISSIVE"
    DISABLE = "DISABLE"


class Action(enum.Enum):
    """What becomes of a connection."""

    PLAINTEXT = "hand the bytes to the app as they are"
    TERMINATE = "do the TLS handshake, demanding a mesh certificate"
    PASSTHROUGH = "hand the app its own TLS, untouched"
    REFUSE = "reset: only mutual TLS may come in here"


def decide(mode: MtlsMode, hello: ClientHello | None) -> Action:
    """Decide by `mode` and by the ClientHello, None if the connection does not begin with one.

    PERMISSIVE goes by ALPN and not by the mere look of TLS, so that an app's own TLS still reaches
    it; STRICT terminates every TLS.
    """
    if mode is MtlsMode.DISABLE:
        return Action.PLAINTEXT
    if hello is None:
        return Action.REFUSE if mode is MtlsMode.STRICT else Action.PLAINTEXT
    if mode is MtlsMode.STRICT or not MESH_PROTOCOLS.isdisjoint(hello.alpn):
        return Action.TERMINATE
    return Action.PASSTHROUGH
