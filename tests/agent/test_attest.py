from __future__ import annotations

import pytest

from agent.attest import allowed_uids, check_caller
from agent.errors import CallerRefused
from mesh.unix_socket import PeerCredentials


def caller(uid: int, pid: int = 4711) -> PeerCredentials:
    return PeerCredentials(pid=pid, uid=uid, gid=uid)


@pytest.mark.parametrize("uid", [1000, 0, 1337])
def test_own_user_root_and_those_named_may_call(uid: int) -> None:
    check_caller(caller(uid), allowed_uids(1000, [1337]))


@pytest.mark.parametrize("uid", [1001, 65534, 2**32 - 1])
def test_others_may_not(uid: int) -> None:
    with pytest.raises(CallerRefused, match=f"give --allow-uid {uid}"):
        check_caller(caller(uid), allowed_uids(1000, [1337]))


@pytest.mark.parametrize("uid", [0, 1000])
def test_nobody_may_call_from_a_pid_namespace_that_is_out_of_sight(uid: int) -> None:
    with pytest.raises(CallerRefused, match="PID namespace"):
        check_caller(caller(uid, pid=0), allowed_uids(1000, []))
