"""The rules as iptables-restore reads them and iptables-save prints them, one family at a time.

The tables are shared with everybody else here, so only chains of Istio's names are ours, the jumps
to them, and what carries our comment. One restore is one transaction per table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

from proxy.capture.options import CaptureOptions, Family, Network
from proxy.capture.rule import (
    Action,
    Chain,
    Jump,
    Not,
    RedirectTo,
    Rule,
    RuleSet,
    SetMark,
    Table,
    TproxyTo,
    Verb,
)
from proxy.capture.rules import rule_sets

COMMENT = "remora-capture"
"""On rules in chains that are not ours: how they are found again."""

RESTORE = {Family.IPV4: "iptables-restore", Family.IPV6: "ip6tables-restore"}
"""The program that reads a family's rules."""

_OURS = re.compile(rf"-j ISTIO_[A-Z_]+\b|--comment \"?{COMMENT}\b")
_CHAIN = re.compile(r":(ISTIO_[A-Z_]+) ")
_APPENDED = re.compile(r"-A (\S+) ")

_VERBS = {
    Verb.RETURN: "-j RETURN",
    Verb.ACCEPT: "-j ACCEPT",
    Verb.DROP: "-j DROP",
    Verb.SAVE_MARK: "-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff",
    Verb.RESTORE_MARK: "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
}


def wanted(options: CaptureOptions, family: Family) -> dict[Table, list[str]]:
    """Return each table's chains and rules in the lines of iptables-save, for one family."""
    if family not in options.families:
        return {}
    return {
        rules.table: [*_declared(rules), *_lines(rules, family)] for rules in rule_sets(options)
    }


def _declared(rules: RuleSet) -> Iterator[str]:
    for chain in sorted(rules.chains, key=lambda chain: chain.value):
        yield f":{chain.value} - [0:0]"


def _lines(rules: RuleSet, family: Family) -> Iterator[str]:
    """List the rules chain by chain, the kernel's chains first, as iptables-save does."""
    for chain in (Chain.PREROUTING, Chain.OUTPUT, *sorted(rules.chains, key=lambda c: c.value)):
        for rule in rules.rules:
            if rule.chain is chain and rule.for_family(family):
                yield _rule(rule, family)


def present(saved: str) -> dict[Table, list[str]]:
    """Pick out of the text of iptables-save what is ours: chains, and rules in or to them."""
    found: dict[Table, list[str]] = {}
    lines: list[str] = []
    for line in saved.splitlines():
        if line.startswith("*"):
            lines = []
            if line[1:] in list(Table):
                found[Table(line[1:])] = lines
        elif chain := _CHAIN.match(line):
            lines.append(f":{chain[1]} - [0:0]")
        elif _is_ours(line):
            lines.append(line.rstrip())
    return {table: ours for table, ours in found.items() if ours}


def _is_ours(line: str) -> bool:
    appended = _APPENDED.match(line)
    return appended is not None and (
        appended[1].startswith("ISTIO_") or _OURS.search(line) is not None
    )


def restore_input(wanted: dict[Table, list[str]], present: dict[Table, list[str]]) -> str:
    """Return the input for `iptables-restore --noflush` that turns `present` into `wanted`.

    Empty if there is nothing to do. `wanted` may be empty: then everything of ours is removed.
    """
    parts = [
        _restore_table(table, wanted.get(table, []), present.get(table, []))
        for table in Table
        if wanted.get(table, []) != present.get(table, [])
    ]
    return "".join(parts)


def _restore_table(table: Table, wanted: Sequence[str], present: Sequence[str]) -> str:
    # Declaring a chain empties it; jumps first, since a chain that is jumped to cannot go.
    chains = dict.fromkeys(line for line in (*wanted, *present) if line.startswith(":"))
    jumps = [f"-D{line[2:]}" for line in present if line.startswith("-A") and not _in_chain(line)]
    unwanted = [f"-X {line[1:].split()[0]}" for line in chains if line not in wanted]
    rules = [line for line in wanted if line.startswith("-A")]
    return "\n".join([f"*{table}", *chains, *jumps, *rules, *unwanted, "COMMIT", ""])


def stop_input(present: dict[Table, list[str]]) -> str:
    """Return the input that takes out the jumps to our chains of nat, and nothing else."""
    jumps = [
        line for line in present.get(Table.NAT, []) if line[:2] == "-A" and not _in_chain(line)
    ]
    if not jumps:
        return ""
    return "\n".join([f"*{Table.NAT}", *(f"-D{line[2:]}" for line in jumps), "COMMIT", ""])


def _in_chain(line: str) -> bool:
    return line.startswith("-A ISTIO_")


def _rule(rule: Rule, family: Family) -> str:
    return " ".join([f"-A {rule.chain.value}", *_matches(rule), _action(rule.action, family)])


def _matches(rule: Rule) -> Iterator[str]:
    for flag, network in (("-s", rule.source), ("-d", rule.destination)):
        if network is not None:
            negation, plain = _negation(network)
            yield f"{negation}{flag} {plain}"
    if rule.in_interface is not None:
        yield f"-i {rule.in_interface}"
    if rule.out_interface is not None:
        yield f"-o {rule.out_interface}"
    if rule.protocol is not None:
        yield f"-p {rule.protocol}"
    yield from _extended_matches(rule)


def _extended_matches(rule: Rule) -> Iterator[str]:
    if rule.port is not None:
        negation, port = _negation(rule.port)
        yield f"-m {rule.protocol} {negation}--dport {port}"
    if rule.mark is not None:
        negation, mark = _negation(rule.mark)
        yield f"-m mark {negation}--mark 0x{mark:x}"
    if rule.connection_mark is not None:
        yield f"-m connmark --mark 0x{rule.connection_mark:x}"
    if rule.states:
        yield f"-m conntrack --ctstate {','.join(sorted(rule.states, reverse=True)).upper()}"
    for owner in rule.owners:
        yield f"-m owner {'! ' if owner.negated else ''}--{owner.kind}-owner {owner.number}"
    if rule.chain.built_in and not isinstance(rule.action, Jump):
        yield f"-m comment --comment {COMMENT}"


def _action(action: Action, family: Family) -> str:
    match action:
        case Verb():
            return _VERBS[action]
        case Jump(chain):
            return f"-j {chain.value}"
        case RedirectTo(port):
            return f"-j REDIRECT --to-ports {port}"
        case SetMark(mark):
            return f"-j MARK --set-xmark 0x{mark:x}/0xffffffff"
        case TproxyTo(port, mark):
            anywhere = "0.0.0.0" if family is Family.IPV4 else "::"  # noqa: S104 - TPROXY's wildcard
            return (
                f"-j TPROXY --on-port {port} --on-ip {anywhere} --tproxy-mark 0x{mark:x}/0xffffffff"
            )


Plain = TypeVar("Plain", int, Network)


def _negation(value: Plain | Not[Plain]) -> tuple[str, Plain]:
    return ("! ", value.value) if isinstance(value, Not) else ("", value)
