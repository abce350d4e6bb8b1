from __future__ import annotations

import pytest

from mesh.address import Address
from proxy.config import Inbound
from proxy.mode import MtlsMode

LISTEN, APP = Address("127.0.0.1", 8443), Address("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("way", "port"),
    [
        (Inbound(listen=LISTEN, app=APP), 8443),
        (Inbound(listen=LISTEN, app=APP, mode=MtlsMode.STRICT), 8000),
        (Inbound(listen=LISTEN, app=APP, captured=True), 8000),
    ],
    ids=["the control plane decides", "a flag decides", "captured"],
)
def test_policies_know_a_way_in_by_the_port_that_peers_connect_to(way: Inbound, port: int) -> None:
    assert way.workload_port == port
