"""What a control plane has in force, read beside it: registered workloads, last good versions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from typer.testing import CliRunner, Result

from ca.store.memory import MEMORY_FILE, Memory
from ca.store.store import ResourceStore
from mesh.errors import ConfigError
from mesh.resources.loader import load_resources
from remora.cli import app
from remora.policy_tools.state import in_force
from tests.pki import NOW
from tests.remora.policy_tools.shop import REGISTRY, STRICT

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
HTTPBIN = "httpbin.foo.svc.cluster.local"
ENTRY = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: httpbin-127.0.0.1, namespace: foo, labels: {app: httpbin}}
spec: {address: 127.0.0.1, serviceAccount: httpbin, ports: {http: 8443}}
"""
SLEEP = ("--from", "foo/sleep")
DIRECT = (*SLEEP, "--to", "foo/httpbin-127.0.0.1", "--port", "8443")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "resources").mkdir()
    for example in ("httpbin.yaml", "strict.yaml"):
        (tmp_path / "resources" / example).write_text((EXAMPLES / example).read_text())
    return tmp_path


@asynccontextmanager
async def control_plane(state: Path, *entries: str) -> AsyncIterator[ResourceStore]:
    """Run the control plane's own store, with workloads that have registered themselves."""
    memory = Memory(state / MEMORY_FILE)
    store = ResourceStore(state / "resources", memory, "cluster.local", lambda: NOW)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        for entry in entries:
            [resource] = load_resources(entry).resources
            await store.put(resource.key, resource)
        yield store
        nursery.cancel_scope.cancel()


def remora(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


async def test_registered_workloads_are_known_while_the_control_plane_runs(state: Path) -> None:
    assert isinstance(remora("check", "--state-dir", state, *DIRECT).exception, ConfigError)
    async with control_plane(state, ENTRY):
        direct = remora("check", "--state-dir", state, *DIRECT)
        assert direct.exit_code == 0, direct.output
        assert "foo/httpbin-127.0.0.1 port 8443: allowed, mutual TLS" in direct.output
        service = (*SLEEP, "--to", HTTPBIN, "--port", "8000")
        assert remora("check", "--state-dir", state, *service).exit_code == 0
        plaintext = ("--from", "plaintext", *DIRECT[2:])
        assert remora("check", "--state-dir", state, *plaintext).exit_code == 1
        described = remora("describe", "foo/httpbin-127.0.0.1", "--state-dir", state)
        assert "STRICT      PeerAuthentication foo/default" in described.output
        # A selector on a registered workload selects something.
        analysed = remora("analyze", "--state-dir", state, "-o", "json")
        assert [one["code"] for one in json.loads(analysed.output)] == ["REM0001"]
    assert remora("check", "--state-dir", state, *DIRECT).exit_code == 0, "nor need it run"


async def test_a_file_comes_before_a_registration_of_its_name(state: Path) -> None:
    (state / "resources" / "mine.yaml").write_text(ENTRY.replace("app: httpbin", "app: other"))
    async with control_plane(state, ENTRY):
        [entry] = [one for one in in_force(state).resources if one.key == "foo/httpbin-127.0.0.1"]
        assert entry.metadata.labels == {"app": "other"}


async def test_a_bad_file_is_warned_of_and_answered_by_what_was_good_last(state: Path) -> None:
    async with control_plane(state, ENTRY):
        pass
    strict = state / "resources" / "strict.yaml"
    strict.write_text(strict.read_text().replace("STRICT", "OPEN"))
    plaintext = ("--from", "plaintext", *DIRECT[2:])
    result = remora("check", "--state-dir", state, *plaintext)
    assert result.exit_code == 1
    assert "STRICT by PeerAuthentication foo/default" in result.output
    assert (
        f"warning: refused; what was good before, if anything, is in force: {strict}:"
        in result.stderr
    )
    assert remora("check", "--state-dir", state, *DIRECT).exit_code == 0
    described = remora("describe", "foo/httpbin-127.0.0.1", "--state-dir", state)
    assert "PeerAuthentication foo/default" in described.output
    refused = remora("check", "-f", state / "resources", *DIRECT)
    assert isinstance(refused.exception, ConfigError)


async def test_a_file_that_is_not_even_text_changes_nothing(state: Path) -> None:
    async with control_plane(state, ENTRY):
        pass
    (state / "resources" / "strict.yaml").write_bytes(b"\xff")
    described = remora("describe", "foo/httpbin-127.0.0.1", "--state-dir", state)
    assert "STRICT      PeerAuthentication foo/default" in described.output
    assert "UTF-8" in described.stderr


async def test_a_policy_that_never_was_good_lets_nobody_in(state: Path) -> None:
    bad = STRICT.replace("STRICT", "OPEN").replace("istio-system", "foo").replace("default", "x")
    async with control_plane(state, ENTRY):
        pass
    (state / "resources" / "bad.yaml").write_text(bad)
    (state / "resources" / "shop.yaml").write_text(REGISTRY)
    result = remora("check", "--state-dir", state, *DIRECT)
    assert result.exit_code == 1
    assert "not understood: PeerAuthentication foo/x" in result.output
    assert (
        "never was good, so that there is nothing to go by: PeerAuthentication foo/x"
        in result.stderr
    )
    elsewhere = (*SLEEP, "--to", "shop/catalog-1", "--port", "8080")
    assert remora("check", "--state-dir", state, *elsewhere).exit_code == 0
    described = remora("describe", "foo/httpbin-127.0.0.1", "--state-dir", state)
    assert "lets nobody in" in described.output


async def test_bad_mesh_settings_leave_the_last_good_in_force(state: Path) -> None:
    settings = state / "resources" / "mesh.yaml"
    settings.write_text("rootNamespace: system")
    async with control_plane(state):
        pass
    settings.write_text("rootNamespaec: system")
    found = in_force(state)
    assert found.config.root_namespace == "system"
    assert "did you mean rootNamespace" in str(found.problems[0])
    (state / MEMORY_FILE).unlink()
    with pytest.raises(ConfigError, match="mesh settings cannot be used"):
        in_force(state)


def test_what_cannot_be_read_is_said_and_left_as_it_is(state: Path) -> None:
    (state / MEMORY_FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="cannot read what the control plane keeps"):
        in_force(state)
    assert (state / MEMORY_FILE).exists()
    with pytest.raises(ConfigError, match="correct --state-dir"):
        in_force(state / "none")


def test_a_state_directory_that_cannot_be_looked_into_is_a_complaint(state: Path) -> None:
    result = remora("check", "--state-dir", state / ("x" * 300), *DIRECT)
    assert isinstance(result.exception, ConfigError)


def test_reading_makes_no_memory(state: Path) -> None:
    assert len(in_force(state).resources) == 3
    assert not (state / MEMORY_FILE).exists()
