"""gRPC on trio, over HTTP/2 by the h2 library: client and server.

Unary, server-streaming and bidirectional calls over any trio stream; TLS and unix sockets are
the caller's. Written because there is no other for trio: see docs/architecture.md.
"""

from mesh.grpc.client import Channel, ClientCall, open_channel
from mesh.grpc.framing import Metadata
from mesh.grpc.limits import Limits
from mesh.grpc.method import Method
from mesh.grpc.server import (
    Accept,
    GrpcServer,
    Peer,
    ServerCall,
    Service,
    StreamingCall,
    accept_plain,
    serve_grpc,
)
from mesh.grpc.status import GrpcError, Status

__all__ = [
    "Accept",
    "Channel",
    "ClientCall",
    "GrpcError",
    "GrpcServer",
    "Limits",
    "Metadata",
    "Method",
    "Peer",
    "ServerCall",
    "Service",
    "Status",
    "StreamingCall",
    "accept_plain",
    "open_channel",
    "serve_grpc",
]
