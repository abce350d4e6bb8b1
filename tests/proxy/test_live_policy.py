"""Changes of policy against open connections: on real sockets, at every moment there is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing
from OpenSSL import SSL
from structlog.testing import capture_logs

from mesh.bundle import TrustBundle
from mesh.resources.mesh_config import MeshConfig, MeshTls, TlsProtocol
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.tls_errors import TlsError
from mesh.tls_stream import TlsStream
from proxy.identity import Identity
from proxy.live_policy import LivePolicy
from proxy.mode import MtlsMode
from proxy.view import View, ViewCompiler
from tests.mesh.test_revocation import revocation_list
from tests.pki import NOW, Authority, make_root
from tests.proxy.control import resources, told
from tests.proxy.network import (
    CLIENT_ID,
    SERVER_ID,
    connect,
    receive_until_broken,
    tcp_pair,
)
from tests.proxy.rig import Mesh, app_on, client, dial_tls, door, inbound, round_trip
from tests.proxy.test_admission import ONLY_SLEEP, STRICT, view_of
from tests.proxy.test_view import WORKLOAD

LOCAL = TrustDomain("cluster.local")
OTHER_ID = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/other")

DENY_ALL = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-all, namespace: foo}
spec: {action: DENY, rules: [{}]}
"""

DENY_SLEEP = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-sleep, namespace: foo}
spec: {action: DENY, rules: [{from: [{source: {principals: ["*/ns/foo/sa/sleep"]}}]}]}
"""

SHADOWS = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: maybe, namespace: foo, annotations: {istio.io/dry-run: "true"}}
spec: {action: DENY, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: watch, namespace: foo}
spec: {action: AUDIT, rules: [{}]}
"""


@pytest.fixture(scope="module")
def root() -> Authority:
    return make_root()


@pytest.fixture
def mesh(root: Authority) -> Mesh:
    return Mesh(root, SERVER_ID)


async def test_a_client_that_policy_denies_never_costs_the_app_anything(mesh: Mesh) -> None:
    policy = LivePolicy(view_of(ONLY_SLEEP))

    async def nobody(stream: trio.SocketStream) -> None:
        raise AssertionError("the app was dialled")

    async with app_on(nobody) as app, door(inbound(mesh, policy, app)) as way:
        stream = await dial_tls(way.port, client(mesh.root, svid=mesh.root.issue(str(OTHER_ID))))
        assert await receive_until_broken(stream) == b""
        await trio.aclose_forcefully(stream)
        line = await way.line()
    assert line["event"] == "connection failed"
    assert line["log_level"] == "warning"
    assert line["reason"] == "rbac_access_denied"
    assert line["response_code_details"] == "rbac_access_denied_matched_policy[none]"
    assert line["peer_id"] == str(OTHER_ID)
    assert "none of their rules matches" in line["detail"]


async def test_a_client_that_policy_allows_is_served(mesh: Mesh) -> None:
    policy = LivePolicy(view_of(ONLY_SLEEP, STRICT))
    async with app_on() as app, door(inbound(mesh, policy, app)) as way:
        stream = await dial_tls(way.port, client(mesh.root))
        assert await round_trip(stream, b"hello") == b"hello"
        await stream.aclose()
        assert (await way.line())["event"] == "connection closed"


async def test_plaintext_has_no_identity(mesh: Mesh) -> None:
    async with app_on() as app, door(inbound(mesh, LivePolicy(view_of(ONLY_SLEEP)), app)) as way:
        async with await connect(way.port) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            assert await receive_until_broken(stream) == b""
        line = await way.line()
    assert line["reason"] == "rbac_access_denied"
    assert "the caller spoke plaintext" in line["detail"]


async def test_the_mesh_settings_decide_which_trust_domains_may_call(mesh: Mesh) -> None:
    """The roots are the mesh's own for each of its names; nobody restarts for a new alias."""
    svid = mesh.root.issue("spiffe://td2/ns/foo/sa/sleep")
    policy = LivePolicy(view_of(config=MeshConfig(trust_domain="cluster.local")))
    mesh.follow(policy)
    async with app_on() as app, door(inbound(mesh, policy, app)) as way:
        stream = await dial_tls(way.port, client(mesh.root, svid=svid))
        assert await receive_until_broken(stream) == b""
        await trio.aclose_forcefully(stream)
        assert (await way.line())["reason"] == "peer_not_trusted"
        policy.publish(view_of(config=MeshConfig(trust_domain_aliases=("td2",))))
        stream = await dial_tls(way.port, client(mesh.root, svid=svid))
        assert await round_trip(stream, b"hello") == b"hello"
        await stream.aclose()


async def test_what_is_revoked_is_revoked_under_every_name_of_the_mesh(mesh: Mesh) -> None:
    svid = mesh.root.issue("spiffe://td2/ns/foo/sa/sleep")
    own = TrustBundle.of(LOCAL, [mesh.root.certificate], [revocation_list(mesh.root, svid.serial)])
    mesh.current = Identity(svid=mesh.root.issue(str(SERVER_ID)), bundles={LOCAL: own})
    policy = LivePolicy(view_of(config=MeshConfig(trust_domain_aliases=("td2",))))
    mesh.follow(policy)
    async with app_on() as app, door(inbound(mesh, policy, app)) as way:
        stream = await dial_tls(way.port, client(mesh.root, svid=svid))
        assert await receive_until_broken(stream) == b""
        await trio.aclose_forcefully(stream)
        assert (await way.line())["reason"] == "peer_revoked"


@pytest.mark.parametrize("least", [TlsProtocol.TLS_AUTO, TlsProtocol.TLSV1_3])
async def test_the_mesh_settings_may_demand_tls_1_3(mesh: Mesh, least: TlsProtocol) -> None:
    old = client(mesh.root)
    old._context.set_max_proto_version(SSL.TLS1_2_VERSION)
    settings = MeshConfig(mesh_mtls=MeshTls(min_protocol_version=least))
    policy = LivePolicy(view_of(config=settings))
    mesh.follow(policy)
    async with app_on() as app, door(inbound(mesh, policy, app)) as way:
        if least is TlsProtocol.TLSV1_3:
            with pytest.raises(TlsError):
                await dial_tls(way.port, old)
            assert (await way.line())["reason"] == "tls_no_common_version"
        else:
            stream = await dial_tls(way.port, old)
            assert await round_trip(stream, b"hello") == b"hello"
            await stream.aclose()


async def test_audit_and_dry_run_are_logged_and_change_nothing(mesh: Mesh) -> None:
    policy = LivePolicy(view_of(SHADOWS))
    async with app_on() as app, door(inbound(mesh, policy, app)) as way:
        async with await connect(way.port) as stream:
            assert await round_trip(stream, b"hello") == b"hello"
        await way.line()
    audited, dry, closed = way.lines
    assert audited["rules"] == ["ns[foo]-policy[watch]-rule[0]"]
    assert dry["istio_dry_run_deny_shadow_engine_result"] == "denied"
    assert dry["istio_dry_run_deny_shadow_effective_policy_id"] == "ns[foo]-policy[maybe]-rule[0]"
    assert closed["event"] == "connection closed"


# Live change.


async def test_a_change_closes_what_it_denies_and_nothing_else(mesh: Mesh) -> None:
    policy = LivePolicy(view_of())
    async with app_on() as app, door(inbound(mesh, policy, app)) as way:
        denied = await dial_tls(way.port, client(mesh.root))
        other = client(mesh.root, svid=mesh.root.issue(str(OTHER_ID)))
        untouched = await dial_tls(way.port, other)
        plain = await connect(way.port)
        for stream in (denied, untouched, plain):
            await stream.send_all(b"before")
            assert await stream.receive_some() == b"before"
        policy.publish(view_of(DENY_SLEEP))
        assert await receive_until_broken(denied) == b""
        line = await way.line()
        data = bytes(range(256)) * 2_000
        assert await round_trip(untouched, data) == data
        assert await round_trip(plain, data) == data
        for stream in (denied, untouched, plain):
            await trio.aclose_forcefully(stream)
    assert line["reason"] == "policy_changed"
    assert line["policy"] == "foo/deny-sleep"
    assert line["cause"] == "rbac_access_denied"
    assert line["peer_id"] == str(CLIENT_ID)


async def test_plaintext_on_a_port_that_becomes_strict_is_closed(mesh: Mesh) -> None:
    policy = LivePolicy(view_of())
    async with app_on() as app, door(inbound(mesh, policy, app)) as way:
        mutual = await dial_tls(way.port, client(mesh.root))
        plain = await connect(way.port)
        for stream in (mutual, plain):
            await stream.send_all(b"before")
            assert await stream.receive_some() == b"before"
        policy.publish(view_of(STRICT))
        assert await receive_until_broken(plain) == b""
        line = await way.line()
        assert await round_trip(mutual, b"after") == b"after"
        await trio.aclose_forcefully(mutual)
        await trio.aclose_forcefully(plain)
    assert (line["reason"], line["cause"]) == ("policy_changed", "plaintext_on_strict")
    assert line["policy"] == "foo/strict"


async def test_a_trust_domain_that_is_dropped_is_closed(mesh: Mesh) -> None:
    policy = LivePolicy(view_of(config=MeshConfig(trust_domain_aliases=("td2",))))
    mesh.follow(policy)
    svid = mesh.root.issue("spiffe://td2/ns/foo/sa/sleep")
    async with app_on() as app, door(inbound(mesh, policy, app)) as way:
        stream = await dial_tls(way.port, client(mesh.root, svid=svid))
        await stream.send_all(b"before")
        assert await stream.receive_some() == b"before"
        policy.publish(view_of())
        assert await receive_until_broken(stream) == b""
        await trio.aclose_forcefully(stream)
        assert (await way.line())["cause"] == "wrong_trust_domain"


async def test_modes_are_live_for_new_connections(mesh: Mesh) -> None:
    policy = LivePolicy(view_of(STRICT))
    async with app_on() as app, door(inbound(mesh, policy, app)) as way:
        async with await connect(way.port) as stream:
            await stream.send_all(b"plain")
            assert await receive_until_broken(stream) == b""
        policy.publish(view_of())
        async with await connect(way.port) as stream:
            assert await round_trip(stream, b"plain") == b"plain"


async def test_the_mode_is_that_of_the_moment_when_the_first_bytes_are_there(mesh: Mesh) -> None:
    policy = LivePolicy(view_of())
    async with app_on() as app, door(inbound(mesh, policy, app)) as way:
        async with await connect(way.port) as stream:
            await trio.testing.wait_all_tasks_blocked()
            policy.publish(view_of(STRICT))
            await stream.send_all(b"plain")
            assert await receive_until_broken(stream) == b""
        assert (await way.line())["reason"] == "plaintext_on_strict"


# No change falls between: it is made after every single step that the connection takes.


class AfterStep(trio.abc.Instrument):
    """Does something right after the n-th step of any task since `start`, once."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.left = step
        self._act = act

    def after_task_step(self, _task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self._act()


def denies_everybody() -> View:
    return ViewCompiler(WORKLOAD).compile(told(*resources(DENY_ALL)).received)


@pytest.mark.parametrize("secure", [True, False], ids=["mutual", "plaintext"])
async def test_no_change_falls_between_two_steps_of_a_connection(
    mesh: Mesh, *, secure: bool
) -> None:
    """Whenever everybody is denied, the connection is over and the app gets nothing after it."""
    denying, allowing = denies_everybody(), view_of()
    step = reasons = 0
    seen: set[str] = set()
    finished = False
    while not finished:
        step += 1
        policy = LivePolicy(allowing)
        change = AfterStep(step, lambda policy=policy: policy.publish(denying))  # type: ignore[misc]
        with capture_logs() as lines:
            await one_connection(mesh, policy, change, secure=secure)
        finished = change.left > 0
        if not finished:
            last = [line for line in lines if line.get("direction")][-1]
            assert last["event"] == "connection failed", step
            seen.add(last["reason"])
            reasons += 1
    assert seen == {"rbac_access_denied", "policy_changed"}
    assert reasons > 10


async def one_connection(
    mesh: Mesh, policy: LivePolicy, change: AfterStep, *, secure: bool
) -> None:
    """Make a connection that would stay open for ever, and wait until nothing moves any more."""
    near, far = await tcp_pair()
    async with app_on() as app, trio.open_nursery() as nursery:
        handler = inbound(mesh, policy, app)
        ended = trio.Event()

        async def serve() -> None:
            await handler(far)
            ended.set()

        async def talk() -> None:
            try:
                if secure:
                    await shake_and_greet(mesh, near)
                else:
                    await near.send_all(b"hello")
                    assert await near.receive_some() == b"hello"
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

        nursery.start_soon(talk)
        trio.lowlevel.add_instrument(change)
        nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked(0.01)
        trio.lowlevel.remove_instrument(change)
        if change.left <= 0:
            with trio.fail_after(5):
                await ended.wait()
        nursery.cancel_scope.cancel()
    near.socket.close()


async def shake_and_greet(mesh: Mesh, near: trio.SocketStream) -> None:
    stream = TlsStream(near, client(mesh.root).session(NOW, server_name="app.test"))
    try:
        await stream.do_handshake()
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
    except TlsError:
        return


async def test_nothing_stays_registered(mesh: Mesh) -> None:
    policy = LivePolicy(view_of())
    async with app_on() as app, door(inbound(mesh, policy, app)) as way:
        async with await connect(way.port) as stream:
            assert await round_trip(stream, b"hello") == b"hello"
        await way.line()
    assert policy.count == 0


async def test_a_view_is_waited_for() -> None:
    policy = LivePolicy()
    assert not policy.is_there
    async with trio.open_nursery() as nursery:
        nursery.start_soon(policy.ready)
        await trio.testing.wait_all_tasks_blocked()
        policy.publish(view_of())
    assert policy.view.modes.of_port(1).mode is MtlsMode.PERMISSIVE
    await policy.ready()
