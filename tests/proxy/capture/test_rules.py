"""The rules as text, beside golden files that were checked by eye against Istio's rule set."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.capture import iptables, nftables
from proxy.capture.options import Family
from proxy.capture.rule import Chain, Table
from proxy.capture.rules import rule_sets
from proxy.capture.settings import parse_options
from proxy.capture.text import rules_text

GOLDEN = Path(__file__).parent / "golden"

CASES = {
    "default": {},
    "ipv4-only": {"ipFamilies": "ipv4"},
    "inbound-ports": {"includeInboundPorts": "80,81"},
    "no-inbound": {"includeInboundPorts": ""},
    "exclude": {
        "excludeInboundPorts": "9000",
        "excludeOutboundPorts": "25",
        "excludeOutboundIPRanges": "10.1.0.0/16,fd01::/16",
        "excludeInterfaces": "eth1",
        "excludeUsers": "5",
        "excludeGroups": "6",
    },
    "include": {
        "includeOutboundIPRanges": "10.0.0.0/8,fd00::/8",
        "includeOutboundPorts": "443",
        "includeUsers": "1000,1001",
        "virtualInterfaces": "veth1",
    },
    "include-loopback": {"includeOutboundIPRanges": "127.1.2.3/32"},
    "two-owners": {"proxyUID": "3,4", "proxyGID": "1"},
    "tproxy": {"interceptionMode": "TPROXY", "dropInvalid": "true"},
    "tproxy-ports": {"interceptionMode": "TPROXY", "includeInboundPorts": "80"},
    "none": {"interceptionMode": "NONE"},
}


@pytest.mark.parametrize("backend", ["nft", "iptables"])
@pytest.mark.parametrize("case", CASES)
def test_rules_are_those_of_the_golden_file(case: str, backend: str) -> None:
    text = rules_text(parse_options(CASES[case]), for_iptables=backend == "iptables")
    assert text == (GOLDEN / f"{case}.{backend}").read_text()


def test_every_golden_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


def test_excluded_outbound_ports_stand_before_the_self_call_rules() -> None:
    lines = iptables.wanted(parse_options(CASES["exclude"]), Family.IPV4)[Table.NAT]
    excluded = next(n for n, line in enumerate(lines) if "--dport 25" in line)
    assert excluded < next(n for n, line in enumerate(lines) if "127.0.0.6" in line)


def test_loop_protection_stands_before_any_redirection_of_destinations() -> None:
    for settings in CASES.values():
        options = parse_options(settings)
        for rules in rule_sets(options):
            if rules.table is not Table.NAT:
                continue
            output = [rule for rule in rules.rules if rule.chain is Chain.OUTBOUND]
            own = [n for n, rule in enumerate(output) if rule.owners and not rule.owners[0].negated]
            to_proxy = [n for n, rule in enumerate(output) if "REDIRECT" in str(rule.action)]
            redirecting = [n for n in to_proxy if not output[n].owners]
            assert max(own, default=-1) < min(redirecting, default=len(output))


def test_a_transaction_removes_the_old_tables_first_and_works_where_there_are_none() -> None:
    lines = nftables.transaction(parse_options({})).splitlines()
    assert lines[:4] == [
        "add table inet remora-mangle",
        "delete table inet remora-mangle",
        "add table inet remora-nat",
        "delete table inet remora-nat",
    ]


def test_what_is_in_force_already_needs_no_restore() -> None:
    wanted = iptables.wanted(parse_options({}), Family.IPV4)
    assert iptables.restore_input(wanted, wanted) == ""


def test_other_peoples_rules_are_never_ours() -> None:
    saved = """\
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT -j ISTIO_OUTPUT
-A OUTPUT -o eth9 -j RETURN
-A OUTPUT -o eth1 -m comment --comment remora-capture -j RETURN
-A DOCKER -i docker0 -j RETURN
-A ISTIO_OUTPUT -j RETURN
COMMIT
*filter
-A FORWARD -j DOCKER
COMMIT
"""
    assert iptables.present(saved) == {
        Table.NAT: [
            ":ISTIO_OUTPUT - [0:0]",
            "-A OUTPUT -j ISTIO_OUTPUT",
            "-A OUTPUT -o eth1 -m comment --comment remora-capture -j RETURN",
            "-A ISTIO_OUTPUT -j RETURN",
        ]
    }


def test_removing_deletes_the_jumps_then_the_chains() -> None:
    present = {
        Table.NAT: [":ISTIO_OUTPUT - [0:0]", "-A OUTPUT -j ISTIO_OUTPUT", "-A ISTIO_OUTPUT -j X"]
    }
    assert iptables.restore_input({}, present).splitlines() == [
        "*nat",
        ":ISTIO_OUTPUT - [0:0]",
        "-D OUTPUT -j ISTIO_OUTPUT",
        "-X ISTIO_OUTPUT",
        "COMMIT",
    ]
