from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.caller import Facts, ProcessStatus, parse_status, selectors_of
from agent.cgroup import Place

STATUS = """Name:\tUid:\t7
Umask:\t0022
State:\tS (sleeping)
Pid:\t4711
Uid:\t1000\t1001\t1002\t1003
Gid:\t2000\t2001\t2002\t2003
FDSize:\t64
Groups:\t4 27 1000
"""


def test_effective_ids_and_groups() -> None:
    assert parse_status(STATUS) == ProcessStatus(uid=1001, gid=2001, groups=(4, 27, 1000))


def test_no_groups() -> None:
    assert parse_status(STATUS.replace("4 27 1000", "")).groups == ()


@pytest.mark.parametrize("text", ["", "Uid:\t1\n", STATUS.replace("Groups", "G"), "Uid:\nGid:\n"])
def test_not_a_status(text: str) -> None:
    with pytest.raises(ValueError, match=r"in the status|not enough values|invalid literal"):
        parse_status(text)


@given(st.text())
def test_any_text_is_a_status_or_refused(text: str) -> None:
    try:
        parse_status(text)
    except ValueError:
        return


def test_a_newline_in_the_name_of_a_program_is_escaped_by_the_kernel() -> None:
    # proc_pid_status(5): so a program cannot bring lines of its own into the file.
    status = STATUS.replace("Uid:\t7", "x\\nUid:\t0\t0\t0\t0")
    assert parse_status(status).uid == 1001


def texts(facts: Facts) -> set[str]:
    return {str(selector) for selector in selectors_of(facts)}


def test_selectors_of_everything() -> None:
    facts = Facts(
        pid=1,
        uid=1000,
        gid=2000,
        supplementary_gids=(4, 27),
        user="web",
        group="webs",
        supplementary_groups=("adm",),
        path="/usr/bin/web",
        sha256="a" * 64,
        place=Place(unit="web.service", container="b" * 64, pod_uid="c"),
    )
    assert texts(facts) == {
        "unix:uid:1000",
        "unix:gid:2000",
        "unix:supplementary_gid:4",
        "unix:supplementary_gid:27",
        "unix:user:web",
        "unix:group:webs",
        "unix:supplementary_group:adm",
        "unix:path:/usr/bin/web",
        f"unix:sha256:{'a' * 64}",
        "systemd:id:web.service",
        f"container:id:{'b' * 64}",
        "k8s:pod-uid:c",
    }


def test_what_is_not_known_is_not_said() -> None:
    assert texts(Facts(pid=1, uid=0, gid=0)) == {"unix:uid:0", "unix:gid:0"}
