"""The whole proxy: when it listens, what it serves, and how it stops."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from structlog.typing import EventDict

from mesh.address import Address
from mesh.clock import Now
from mesh.errors import ConfigError
from mesh.spiffe import SpiffeId
from proxy.config import Inbound, Outbound, ProxyConfig
from proxy.identity import Identity, IdentityStore
from proxy.mode import MtlsMode
from proxy.sds_state import SecretsState
from proxy.server import DRAIN_SECONDS, Running, serve
from tests.pki import NOW, Authority, make_root
from tests.proxy.network import (
    CLIENT_ID,
    SERVER_ID,
    connect,
    port_of,
    receive_until_broken,
    tcp_listener,
)
from tests.proxy.rig import app_on, client, dial_tls, round_trip, tls_server

ANY = Address("127.0.0.1", 0)
SOCKET = Path("/run/remora/agent.sock")


class Agent:
    """Stands in for SDS: delivers identities when the test says so."""

    def __init__(self, root: Authority) -> None:
        self.root = root
        self.store: IdentityStore | None = None
        self.asked = trio.Event()

    async def follow(self, path: Path, state: SecretsState, store: IdentityStore, now: Now) -> None:
        assert path == SOCKET
        assert state.subscribe().node.id
        assert now() == NOW
        self.store = store
        self.asked.set()
        await trio.sleep_forever()

    async def deliver(self, identity: SpiffeId) -> Identity:
        await self.asked.wait()
        assert self.store is not None
        made = Identity(svid=self.root.issue(str(identity)), bundles=self.root.bundle())
        self.store.publish(made)
        return made


@pytest.fixture(scope="module")
def root() -> Authority:
    return make_root()


@pytest.fixture
async def agent(root: Authority, monkeypatch: pytest.MonkeyPatch) -> Agent:
    made = Agent(root)
    monkeypatch.setattr("proxy.server.follow_identity", made.follow)
    return made


class Proxy:
    """A proxy that runs in a task of its own."""

    def __init__(self, config: ProxyConfig) -> None:
        self._config = config
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.lines: list[EventDict] = []

    async def run(self, task_status: trio.TaskStatus[Running]) -> None:
        with capture_logs() as self.lines, self.scope:
            async with trio.open_nursery() as nursery:
                main = partial(serve, self._config, now=lambda: NOW)
                task_status.started(await nursery.start(main))
        self.ended.set()

    def events(self) -> list[str]:
        return [line["event"] for line in self.lines]


def proxy_for(*ports: Inbound | Outbound) -> Proxy:
    return Proxy(
        ProxyConfig(
            agent_socket=SOCKET,
            inbound=tuple(port for port in ports if isinstance(port, Inbound)),
            outbound=tuple(port for port in ports if isinstance(port, Outbound)),
        )
    )


@asynccontextmanager
async def running(agent: Agent, proxy: Proxy, own: SpiffeId) -> AsyncIterator[Running]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.deliver, own)
        yield await nursery.start(proxy.run)
        proxy.scope.cancel()


def way_in(app: int, mode: MtlsMode = MtlsMode.STRICT) -> Inbound:
    return Inbound(listen=ANY, app=Address("127.0.0.1", app), mode=mode)


def way_out(destination: int, *identities: SpiffeId) -> Outbound:
    return Outbound(
        listen=ANY,
        destination=Address("127.0.0.1", destination),
        identities=frozenset(identities),
    )


async def test_two_proxies_carry_an_apps_bytes_to_another_app(root: Authority) -> None:
    """Two sidecars, one nursery: the data plane of the whole mesh."""
    data = bytes(range(256)) * 2_000
    with pytest.MonkeyPatch.context() as patch:
        server_agent, client_agent = Agent(root), Agent(root)
        patch.setattr("proxy.server.follow_identity", server_agent.follow)
        async with app_on() as app:
            server = proxy_for(way_in(app))
            async with running(server_agent, server, SERVER_ID) as far:
                patch.setattr("proxy.server.follow_identity", client_agent.follow)
                client_proxy = proxy_for(way_out(far.inbound[0].port, SERVER_ID))
                async with running(client_agent, client_proxy, CLIENT_ID) as near:
                    async with await connect(near.outbound[0].port) as stream:
                        assert await round_trip(stream, data) == data
    lines = {
        line["direction"]: line for line in [*server.lines, *client_proxy.lines] if "sent" in line
    }
    assert lines["inbound"]["peer_id"] == lines["outbound"]["own_id"] == str(CLIENT_ID)
    assert lines["outbound"]["peer_id"] == lines["inbound"]["own_id"] == str(SERVER_ID)
    assert all(line["sent"] == line["received"] == len(data) for line in lines.values())


async def test_addresses_are_told_in_the_order_of_the_config(agent: Agent) -> None:
    async with app_on() as app:
        proxy = proxy_for(
            way_in(app), way_in(app, MtlsMode.DISABLE), way_out(app), way_out(app, SERVER_ID)
        )
        async with running(agent, proxy, SERVER_ID) as bound:
            assert len(bound.inbound) == len(bound.outbound) == 2
            assert len({address.port for address in (*bound.inbound, *bound.outbound)}) == 4
            stream = await dial_tls(bound.inbound[0].port, client(agent.root))
            assert await round_trip(stream, b"hello") == b"hello"
            await stream.aclose()
            for plain in (bound.inbound[1], bound.outbound[0]):
                async with await connect(plain.port) as raw:
                    assert await round_trip(raw, b"hello") == b"hello"
            ready = [line for line in proxy.lines if line["event"] == "proxy ready"]
    assert ready[0]["inbound"] == [str(address) for address in bound.inbound]


async def test_mutual_tls_ports_stay_closed_until_there_is_an_identity(agent: Agent) -> None:
    port = await free_port()
    strict = Inbound(
        listen=Address("127.0.0.1", port), app=Address("127.0.0.1", 1), mode=MtlsMode.STRICT
    )
    proxy = proxy_for(strict)
    async with trio.open_nursery() as nursery:

        async def start() -> None:
            await nursery.start(proxy.run)

        nursery.start_soon(start)
        await agent.asked.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert proxy.events() == ["waiting for a certificate from the agent"]
        with pytest.raises(OSError, match="failed"):
            await connect(port)
        await agent.deliver(SERVER_ID)
        while "proxy ready" not in proxy.events():
            await trio.testing.wait_all_tasks_blocked()
        await (await connect(port)).aclose()
        proxy.scope.cancel()


async def test_plaintext_ports_need_no_identity(agent: Agent) -> None:
    async with app_on() as app, trio.open_nursery() as nursery:
        proxy = proxy_for(way_in(app, MtlsMode.DISABLE), way_out(app))
        bound: Running = await nursery.start(proxy.run)
        async with await connect(bound.inbound[0].port) as stream:
            assert await round_trip(stream, b"hello") == b"hello"
        proxy.scope.cancel()


async def test_without_an_agent_plaintext_ports_serve_and_the_log_says_who_is_missing(
    tmp_path: Path,
) -> None:
    """No stand-in here: the proxy looks for a real agent and finds none."""
    missing = tmp_path / "agent.sock"
    async with app_on() as app, trio.open_nursery() as nursery:
        port = way_in(app, MtlsMode.DISABLE)
        proxy = Proxy(ProxyConfig(agent_socket=missing, inbound=(port,)))
        bound: Running = await nursery.start(proxy.run)
        async with await connect(bound.inbound[0].port) as stream:
            assert await round_trip(stream, b"hello") == b"hello"
        while "no connection to the agent" not in proxy.events():
            await trio.testing.wait_all_tasks_blocked()
        proxy.scope.cancel()


async def free_port() -> int:
    async with await tcp_listener() as listener:
        return port_of(listener)


async def test_a_port_in_use_is_bad_configuration(agent: Agent) -> None:
    async with await tcp_listener() as taken:
        port = port_of(taken)
        config = ProxyConfig(
            agent_socket=SOCKET,
            inbound=(
                Inbound(
                    listen=Address("127.0.0.1", port),
                    app=Address("127.0.0.1", 1),
                    mode=MtlsMode.DISABLE,
                ),
            ),
        )
        with pytest.RaisesGroup(
            pytest.RaisesExc(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"),
            flatten_subgroups=True,
        ):
            await serve(config, now=lambda: NOW)


async def test_a_new_identity_serves_the_next_connection(agent: Agent) -> None:
    async with app_on() as app:
        proxy = proxy_for(way_in(app))
        async with running(agent, proxy, SERVER_ID) as bound:
            old = await dial_tls(bound.inbound[0].port, client(agent.root))
            rotated = await agent.deliver(SERVER_ID)
            new = await dial_tls(bound.inbound[0].port, client(agent.root))
            assert new.session.peer_chain[0] == rotated.svid.leaf
            assert old.session.peer_chain[0] != rotated.svid.leaf
            assert await round_trip(old, b"still here") == b"still here"
            await old.aclose()
            await new.aclose()


# Stopping.


async def test_open_connections_may_finish_when_the_proxy_is_told_to_stop(agent: Agent) -> None:
    async with app_on() as app:
        proxy = proxy_for(way_in(app))
        async with running(agent, proxy, SERVER_ID) as bound:
            port = bound.inbound[0].port
            stream = await dial_tls(port, client(agent.root))
            await stream.send_all(b"one")
            assert await stream.receive_some() == b"one"
            proxy.scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(OSError, match="failed"):
                await connect(port)
            assert await round_trip(stream, b"two") == b"two"
            await stream.aclose()
            await proxy.ended.wait()
    assert "waiting for open connections" in proxy.events()
    assert "connections that did not end in time were reset" not in proxy.events()


async def test_connections_that_do_not_finish_are_reset(
    agent: Agent, mock_clock: trio.testing.MockClock
) -> None:
    async with app_on() as app:
        proxy = proxy_for(way_in(app))
        async with running(agent, proxy, SERVER_ID) as bound:
            stream = await dial_tls(bound.inbound[0].port, client(agent.root))
            await stream.send_all(b"one")
            assert await stream.receive_some() == b"one"
            proxy.scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(DRAIN_SECONDS)
            assert await receive_until_broken(stream) == b""
            await proxy.ended.wait()
            await trio.aclose_forcefully(stream)
    assert proxy.events()[-1] == "connections that did not end in time were reset"


async def test_a_proxy_that_is_cancelled_while_it_starts_ends(agent: Agent) -> None:
    with trio.fail_after(5), trio.CancelScope() as scope:
        scope.cancel()
        await serve(ProxyConfig(agent_socket=SOCKET, inbound=(way_in(80),)), now=lambda: NOW)
    assert scope.cancelled_caught


async def test_an_idle_proxy_stops_at_once(agent: Agent) -> None:
    proxy = proxy_for(way_in(1))
    async with running(agent, proxy, SERVER_ID):
        started = trio.current_time()
        proxy.scope.cancel()
        await proxy.ended.wait()
    assert trio.current_time() - started < 1


async def test_nothing_stays_open_after_many_connections(agent: Agent) -> None:
    """Good ones, refused ones, broken ones: the descriptors all come back."""
    async with app_on() as app, app_on(tls_server(agent.root)) as server:
        proxy = proxy_for(way_in(app), way_out(server, SERVER_ID), way_out(server, CLIENT_ID))
        async with running(agent, proxy, SERVER_ID) as bound:
            await every_kind_of_connection(agent, bound)
            before = descriptors()
            for _ in range(5):
                await every_kind_of_connection(agent, bound)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert descriptors() <= before


async def every_kind_of_connection(agent: Agent, bound: Running) -> None:
    stream = await dial_tls(bound.inbound[0].port, client(agent.root))
    assert await round_trip(stream, b"hello") == b"hello"
    await stream.aclose()
    async with await connect(bound.inbound[0].port) as plain:
        await plain.send_all(b"GET / HTTP/1.1\r\n\r\n")
        await receive_until_broken(plain)
    async with await connect(bound.outbound[0].port) as good:
        assert await round_trip(good, b"hello") == b"hello"
    async with await connect(bound.outbound[1].port) as misnamed:
        await receive_until_broken(misnamed)


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))
