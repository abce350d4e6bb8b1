"""Files that matter: written privately and whole, read with a clear complaint."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from pathlib import Path

import pytest

from mesh.errors import ConfigError
from mesh.files import private_directory, read_file, write_private


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(params=[0o022, 0o000, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Generator[int]:
    mask: int = request.param
    before = os.umask(mask)
    yield mask
    os.umask(before)


def test_a_secret_is_its_owners_alone(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "key.pem"
    write_private(path, b"secret")
    assert path.read_bytes() == b"secret"
    assert mode_of(path) == 0o600
    assert names_in(tmp_path) == ["key.pem"], "no temporary file is left"


def test_what_is_public_may_be_read_by_all(tmp_path: Path, umask: int) -> None:
    write_private(tmp_path / "root.pem", b"public", 0o644)
    assert mode_of(tmp_path / "root.pem") == 0o644 & ~umask


def test_an_old_file_is_replaced_mode_and_all(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(b"old and much longer than the new content")
    path.chmod(0o666)
    write_private(path, b"new")
    assert path.read_bytes() == b"new"
    assert mode_of(path) == 0o600


def test_a_reader_of_the_old_file_keeps_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_private(path, b"old")
    with path.open("rb") as reader:
        write_private(path, b"new")
        assert reader.read() == b"old"


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"somebody else's")
    link = tmp_path / "key.pem"
    link.symlink_to(target)
    write_private(link, b"secret")
    assert target.read_bytes() == b"somebody else's"
    assert not link.is_symlink()


def test_a_write_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key.pem"
    write_private(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"cannot write .*key\.pem: No space left on device"):
        write_private(path, b"new")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["key.pem"]


@pytest.mark.parametrize("place", ["missing/key.pem", "file/key.pem", "x" * 300])
def test_a_place_that_cannot_be_written_is_the_operators_to_change(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot write"):
        write_private(tmp_path / place, b"secret")


def test_a_directory_in_the_way_is_reported(tmp_path: Path) -> None:
    (tmp_path / "key.pem").mkdir()
    with pytest.raises(ConfigError, match="cannot write"):
        write_private(tmp_path / "key.pem", b"secret")
    assert names_in(tmp_path) == ["key.pem"]


def test_a_private_directory_is_made_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    path = private_directory(tmp_path / "state")
    assert mode_of(path) == 0o700
    assert private_directory(path) == path, "it may be there already"


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o700, 0o500])
def test_a_directory_that_others_may_read_is_good_enough(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    assert private_directory(tmp_path) == tmp_path
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(ConfigError, match="writable by others: run `chmod go-w"):
        private_directory(tmp_path)
    assert mode_of(tmp_path) == mode, "and left as it is"


def test_nobody_is_told_to_close_a_directory_that_all_share(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(ConfigError, match=r"writable by others: choose another$"):
        private_directory(tmp_path)


def test_a_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = tmp_path.stat().st_uid
    if owner == 0:
        os.chown(tmp_path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match="belongs to user"):
        private_directory(tmp_path)
    if owner == 0:
        os.chown(tmp_path, 0, -1)


def test_a_directory_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "missing" / "state", tmp_path / "file" / "state"):
        with pytest.raises(ConfigError, match="cannot use directory"):
            private_directory(path)


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"content\n")
    assert read_file(tmp_path / "token", "token file") == b"content\n"


def test_a_complaint_names_the_file_and_what_it_was_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read token file .*/absent: No such file"):
        read_file(tmp_path / "absent", "token file")
    with pytest.raises(ConfigError, match=r"cannot read token file .*: Is a directory"):
        read_file(tmp_path, "token file")


@pytest.mark.parametrize(("size", "fits"), [(10, True), (11, False), (5000, False)])
def test_a_file_that_is_too_large_is_not_taken(tmp_path: Path, size: int, fits: bool) -> None:
    path = tmp_path / "token"
    path.write_bytes(bytes(size))
    if fits:
        assert len(read_file(path, "token file", 10)) == size
    else:
        with pytest.raises(ConfigError, match="larger than 10 bytes: is it the right file"):
            read_file(path, "token file", 10)


def test_an_endless_device_is_not_read_for_ever() -> None:
    with pytest.raises(ConfigError, match="certificate /dev/zero is not a regular file"):
        read_file(Path("/dev/zero"), "certificate")


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match=r"key file .*pipe is not a regular file"):
        read_file(pipe, "key file")
