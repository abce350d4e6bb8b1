from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cgroup import NOWHERE, Place, parse_cgroup

ID = "0123456789abcdef" * 4
OTHER = "f" * 64
UID = "01234567-89ab-cdef-0123-456789abcdef"
BURSTABLE = "/kubepods.slice/kubepods-burstable.slice"
SLICE_UID = UID.replace("-", "_")


def place(**facts: str) -> Place:
    return Place(**facts)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/", NOWHERE),
        ("/init.scope", place(unit="init.scope")),
        ("/system.slice/httpbin.service", place(unit="httpbin.service")),
        ("/system.slice/system-web.slice/web@1.service", place(unit="web@1.service")),
        (f"/system.slice/docker-{ID}.scope", place(unit=f"docker-{ID}.scope", container=ID)),
        (f"/docker/{ID}", place(container=ID)),
        (f"/machine.slice/libpod-{ID}.scope", place(unit=f"libpod-{ID}.scope", container=ID)),
        (f"/kubepods/burstable/pod{UID}/{ID}", place(container=ID, pod_uid=UID)),
        (
            f"{BURSTABLE}/kubepods-burstable-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope",
            place(unit=f"cri-containerd-{ID}.scope", container=ID, pod_uid=UID),
        ),
        (
            f"/kubepods.slice/kubepods-pod{SLICE_UID}.slice/crio-{ID}.scope",
            place(unit=f"crio-{ID}.scope", container=ID, pod_uid=UID),
        ),
        # In a container's own groups, only the outermost counts: that one root has named.
        (f"/docker/{ID}/docker/{OTHER}", place(container=ID)),
        (f"/docker/{ID}/system.slice/evil.service", place(container=ID)),
    ],
)
def test_place(path: str, found: Place) -> None:
    assert parse_cgroup(f"0::{path}\n") == found


@pytest.mark.parametrize(
    "below",
    [
        "app.slice/httpbin.service",
        f"user.slice/libpod-{ID}.scope",
        f"docker/{ID}",
        f"pod{UID}/{ID}",
    ],
)
@pytest.mark.parametrize(
    "above", ["user.slice/user-1000.slice/user@1000.service", "system.slice/x.service"]
)
def test_names_in_a_delegated_subtree_prove_nothing(above: str, below: str) -> None:
    unit = above.rpartition("/")[2]
    assert parse_cgroup(f"0::/{above}/{below}\n") == Place(unit=unit)


def test_version_1_has_the_place_in_the_hierarchy_of_systemd() -> None:
    text = f"9:name=systemd:/docker/{ID}\n4:memory:/docker/{OTHER}\n0::/\n"
    assert parse_cgroup(text) == Place(container=ID)


def test_other_hierarchies_of_version_1_are_not_looked_at() -> None:
    assert parse_cgroup(f"4:memory:/docker/{OTHER}\n") == NOWHERE


def test_a_place_outside_our_view_says_nothing() -> None:
    assert parse_cgroup(f"0::/../../docker/{ID}\n") == NOWHERE


@pytest.mark.parametrize("text", ["", "\n", "0", "0:", "x::/a.service", ":::", "0::\n"])
def test_malformed(text: str) -> None:
    assert parse_cgroup(text) == NOWHERE


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    parse_cgroup(text)
    parse_cgroup(f"0::{text}")
