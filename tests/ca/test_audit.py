from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from ca.audit import AUDIT_LOG, MAX_TEXT, AuditLog
from ca.errors import AuditFailed
from ca.shared_log import SharedLog
from mesh.errors import ConfigError
from tests.pki import NOW


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_one_object_a_line_whatever_a_caller_said(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)
    audit.record("issued", NOW, identity="spiffe://td/a", serial=None)
    audit.record("refused", NOW, why={"jwks": 'x"\n{"event":"issued"}\u2028'}, peer="y" * 9999)
    first, second = lines(tmp_path / AUDIT_LOG)
    assert first == {
        "time": "2026-06-01T12:00:00.000+00:00",
        "event": "issued",
        "identity": "spiffe://td/a",
    }
    assert second["why"] == {"jwks": 'x"\n{"event":"issued"}\u2028'}
    assert second["peer"] == "y" * MAX_TEXT
    assert stat.S_IMODE((tmp_path / AUDIT_LOG).stat().st_mode) == 0o600


def test_a_restart_appends(tmp_path: Path) -> None:
    for number in range(3):
        audit = AuditLog(tmp_path)
        audit.record("issued", NOW, serial=str(number))
        audit.close()
    assert [line["serial"] for line in lines(tmp_path / AUDIT_LOG)] == ["0", "1", "2"]


def test_it_is_rotated_and_nothing_is_lost_until_too_much_is_kept(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, max_bytes=1000, keep=3)
    for number in range(80):
        audit.record("issued", NOW, serial=f"{number:03}")
    names = [AUDIT_LOG, *(f"{AUDIT_LOG}.{number}" for number in (1, 2, 3))]
    assert {path.name for path in tmp_path.iterdir()} <= set(names)
    found = [
        line["serial"]
        for name in reversed(names)
        if (tmp_path / name).exists()
        for line in lines(tmp_path / name)
    ]
    assert found == [f"{number:03}" for number in range(80 - len(found), 80)]
    assert len(found) > 30


def test_several_cas_write_at_once_while_the_log_rotates(tmp_path: Path) -> None:
    def write(replica: int) -> None:
        audit = AuditLog(tmp_path, max_bytes=2000, keep=1000)
        for number in range(100):
            audit.record("issued", NOW, serial=f"{replica}-{number}")

    threads = [threading.Thread(target=write, args=(replica,)) for replica in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [line["serial"] for path in tmp_path.iterdir() for line in lines(path)]
    assert len(found) == len(set(found)) == 400


def test_a_log_that_takes_no_line_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own full disk."""
    monkeypatch.setattr(SharedLog, "_is_current", lambda _self: True)
    audit = AuditLog.__new__(AuditLog)
    audit._log, audit._max_bytes, audit._keep = SharedLog(Path("/dev/full")), 1000, 1
    with pytest.raises(AuditFailed, match="No space left"):
        audit.record("issued", NOW)


def test_after_half_a_line_the_next_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = AuditLog(tmp_path)
    real = os.write
    with monkeypatch.context() as full:
        full.setattr("os.write", lambda fd, data: real(fd, data[:7]))
        with pytest.raises(AuditFailed, match="a part of a line"):
            audit.record("issued", NOW, serial="1")
    audit.record("issued", NOW, serial="2")
    torn, whole = (tmp_path / AUDIT_LOG).read_bytes().splitlines()
    assert (len(torn), json.loads(whole)["serial"]) == (7, "2")


def test_a_directory_that_takes_no_log_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / AUDIT_LOG).symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="cannot write"):
        AuditLog(tmp_path)


def test_a_rewrite_loses_no_line_that_others_append(tmp_path: Path) -> None:
    path = tmp_path / "log"
    first, second = SharedLog(path), SharedLog(path)

    def append() -> None:
        for number in range(500):
            second.append(b"%d\n" % number)

    thread = threading.Thread(target=append)
    thread.start()
    for _ in range(50):
        first.rewrite(lambda data: data)
    thread.join()
    assert first.read() == b"".join(b"%d\n" % number for number in range(500))
