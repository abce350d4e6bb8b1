"""Unix sockets: who may listen where, who is at the other end, and who tidies up."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
import trio

from mesh.errors import ConfigError
from mesh.unix_socket import (
    MAX_PATH_BYTES,
    PeerCredentials,
    open_unix_stream,
    peer_credentials,
    unix_listener,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path / "agent.sock"


async def connect_and_accept(
    listener: trio.SocketListener, path: Path
) -> tuple[trio.SocketStream, trio.SocketStream]:
    near = await open_unix_stream(path)
    return near, await listener.accept()


async def echo_works(listener: trio.SocketListener, path: Path) -> bool:
    near, far = await connect_and_accept(listener, path)
    async with near, far:
        await near.send_all(b"ping")
        return await far.receive_some() == b"ping"


async def test_a_socket_is_its_owners_alone_and_gone_at_the_end(path: Path) -> None:
    async with unix_listener(path) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert await echo_works(listener, path)
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        await open_unix_stream(path)


async def test_a_socket_may_be_opened_to_others_on_purpose(path: Path) -> None:
    async with unix_listener(path, 0o666):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666


async def test_a_missing_directory_is_made_private(path: Path) -> None:
    inner = path.parent / "run" / "agent.sock"
    async with unix_listener(inner) as listener:
        assert stat.S_IMODE(inner.parent.stat().st_mode) == 0o700
        assert await echo_works(listener, inner)


async def test_the_kernel_says_who_is_calling(path: Path) -> None:
    async with unix_listener(path) as listener:
        near, far = await connect_and_accept(listener, path)
        async with near, far:
            us = PeerCredentials(pid=os.getpid(), uid=os.getuid(), gid=os.getgid())
            assert peer_credentials(far) == us
            assert peer_credentials(near) == us, "and to the caller, who is listening"


@pytest.mark.e2e
async def test_the_kernel_names_another_process(path: Path) -> None:
    script = f"import socket; s = socket.socket(1); s.connect({str(path)!r}); s.recv(1)"
    async with unix_listener(path) as listener:
        process = await trio.lowlevel.open_process(["python3", "-c", script])
        with trio.fail_after(10):
            async with await listener.accept() as stream:
                assert peer_credentials(stream).pid == process.pid != os.getpid()
            await process.wait()


async def test_the_socket_goes_even_when_the_program_fails(path: Path) -> None:
    with pytest.raises(LookupError):
        async with unix_listener(path):
            raise LookupError
    assert not path.exists()
    with trio.CancelScope() as scope:
        async with unix_listener(path):
            scope.cancel()
            await trio.sleep_forever()
    assert not path.exists()


async def test_a_socket_that_nobody_listens_on_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with unix_listener(path) as listener:
        assert await echo_works(listener, path)


async def test_a_socket_that_somebody_listens_on_is_refused(path: Path) -> None:
    async with unix_listener(path) as listener:
        with pytest.raises(ConfigError, match="another process is listening on"):
            async with unix_listener(path):
                pytest.fail("two listeners on one path")
        probe = await listener.accept()
        await probe.aclose()
        assert await echo_works(listener, path), "the first goes on undisturbed"


async def test_a_live_socket_of_another_kind_is_left_alone(path: Path) -> None:
    """A datagram socket refuses a stream, but for another reason than being dead."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(ConfigError, match="cannot tell whether socket"):
            async with unix_listener(path):
                pytest.fail("it was replaced")
        assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
async def test_what_is_no_socket_is_not_removed(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_bytes(b"precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(path.parent / "elsewhere")
    with pytest.raises(ConfigError, match="is not a socket: remove it first"):
        async with unix_listener(path):
            pytest.fail("it was replaced")
    assert path.is_symlink() or path.exists()


async def test_a_directory_that_others_may_write_to_is_refused(path: Path) -> None:
    path.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="writable by others"):
        async with unix_listener(path):
            pytest.fail("anybody could put a socket of his own there")
    path.parent.chmod(0o700)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
async def test_a_directory_that_we_may_not_write_to_is_reported(path: Path) -> None:
    path.parent.chmod(0o500)
    with pytest.raises(ConfigError, match=r"cannot listen on .*: Permission denied"):
        async with unix_listener(path):
            pytest.fail("bound in a read-only directory")
    path.parent.chmod(0o700)


async def test_a_missing_parent_of_the_directory_is_reported(path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot use directory"):
        async with unix_listener(path.parent / "a" / "b" / "agent.sock"):
            pytest.fail("bound nowhere")


@pytest.mark.parametrize(("extra", "fits"), [(0, True), (1, False), (100, False)])
async def test_a_path_has_room_for_so_many_bytes(path: Path, extra: int, fits: bool) -> None:
    long = path.parent / ("x" * (MAX_PATH_BYTES - len(os.fsencode(path.parent)) - 1 + extra))
    if fits:
        async with unix_listener(long) as listener:
            assert await echo_works(listener, long)
        return
    with pytest.raises(ConfigError, match="more than 107 bytes"):
        async with unix_listener(long):
            pytest.fail("the kernel would have cut the path")
    with pytest.raises(ConfigError, match="choose a shorter one"):
        await open_unix_stream(long)


async def test_bytes_are_counted_and_not_letters(path: Path) -> None:
    room = MAX_PATH_BYTES - len(os.fsencode(path.parent)) - 1
    with pytest.raises(ConfigError, match="more than 107 bytes"):
        await open_unix_stream(path.parent / ("ü" * (room // 2 + 1)))


async def test_somebody_elses_socket_is_not_removed_at_the_end(path: Path) -> None:
    async with unix_listener(path):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.is_socket(), "it is the other's now"


async def test_a_socket_that_is_gone_already_is_no_failure(path: Path) -> None:
    async with unix_listener(path):
        path.unlink()


async def test_a_directory_in_the_way_of_the_end_is_no_failure(path: Path) -> None:
    async with unix_listener(path):
        path.unlink()
        path.mkdir()
    assert path.is_dir()
