"""A CA, agents and proxies in the test's own process, joined by their real protocols."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import trio

from agent.config import AgentConfig, CaAddress, parse_ca_name
from agent.server import serve as serve_agent
from ca.config import CaConfig
from ca.material import load_or_create
from ca.server import Running as RunningCa
from ca.server import serve as serve_ca
from ca.tokens import create_token
from mesh.address import Address
from mesh.spiffe import ServiceAccount, TrustDomain
from proxy.config import Discovery, Inbound, Outbound, ProxyConfig, parse_inbound, parse_outbound
from proxy.mode import MtlsMode
from proxy.server import Running as RunningProxy
from proxy.server import serve as serve_proxy
from tests.pki import real_now

ANY = Address("127.0.0.1", 0)


class LocalMesh:
    """Starts programs in `nursery`; they end with it. `folder` must have a short path."""

    def __init__(
        self, nursery: trio.Nursery, folder: Path, trust_domain: str = "cluster.local"
    ) -> None:
        self.trust_domain = TrustDomain(trust_domain)
        self.folder = folder
        self.state = folder / "ca"
        self._nursery = nursery
        self._ca: Address | None = None

    @property
    def root_file(self) -> Path:
        return self.state / "root-cert.pem"

    async def start_ca(self, **settings: Any) -> None:
        config = CaConfig(
            state_dir=self.state, listen=ANY, trust_domain=self.trust_domain, **settings
        )
        running: RunningCa = await self._nursery.start(partial(serve_ca, config))
        self._ca = running.addresses[0]

    def token(self, account: str, ttl: timedelta = timedelta(hours=1)) -> str:
        material = load_or_create(self.state, self.trust_domain, real_now())
        who = ServiceAccount.parse(account)
        return create_token(material.token_key, who, audience="istio-ca", ttl=ttl, now=real_now())

    async def start_agent(
        self,
        account: str,
        *,
        nursery: trio.Nursery | None = None,
        token: bool = True,
        **settings: Any,
    ) -> Path:
        """Start an agent with the token of a service account; return its socket."""
        assert self._ca is not None, "start the CA first"
        name = account.replace("/", "-")
        token_file = self.folder / f"{name}.token"
        if token:
            token_file.write_text(self.token(account))
        config = AgentConfig(
            ca_address=CaAddress(host=self._ca.host, port=self._ca.port),
            ca_name=parse_ca_name(None, self.trust_domain),
            ca_root_cert=self.root_file,
            token_file=token_file,
            socket=self.folder / name / "sds.sock",
            trust_domain=self.trust_domain,
            **settings,
        )
        await (nursery or self._nursery).start(partial(serve_agent, config))
        return config.socket

    async def start_proxy(
        self,
        socket: Path,
        *,
        inbound: tuple[Inbound, ...] = (),
        outbound: tuple[Outbound, ...] = (),
        discovery: Discovery | None = None,
        **settings: Any,
    ) -> RunningProxy:
        config = ProxyConfig(
            agent_socket=socket,
            inbound=inbound,
            outbound=outbound,
            discovery=discovery,
            **settings,
        )
        running: RunningProxy = await self._nursery.start(partial(serve_proxy, config))
        return running


def way_in(app_port: int, mode: MtlsMode | None = MtlsMode.STRICT) -> tuple[Inbound, ...]:
    return parse_inbound([f"127.0.0.1:0=127.0.0.1:{app_port}"], mode, {})


def way_out(port: int, *identities: str) -> tuple[Outbound, ...]:
    return parse_outbound([f"127.0.0.1:0=127.0.0.1:{port}@{','.join(identities)}"])


async def serve_app(
    nursery: trio.Nursery, handler: Callable[[trio.SocketStream], Awaitable[None]]
) -> int:
    """Serve plain TCP with `handler`; return the port."""
    listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
    port: int = listeners[0].socket.getsockname()[1]
    return port


async def echo(stream: trio.SocketStream) -> None:
    """Send back what comes, and end when the other side does."""
    async with stream:
        async for chunk in stream:
            await stream.send_all(chunk)


async def exchange(port: int, data: bytes) -> bytes:
    """Send `data`, end our side, and return all that comes back."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    received = b""

    async def send() -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        async for chunk in stream:
            received += bytes(chunk)
    return received
