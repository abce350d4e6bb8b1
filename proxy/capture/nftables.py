"""The rules as nftables reads and prints them.

The text is in the very form in which `nft --stateless --numeric-priority list` prints it, so that
what the kernel holds can be compared with what is wanted. All tables go in one transaction: there
is no moment in which half of the rules are in force.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from proxy.capture.options import CaptureOptions, Family, Network
from proxy.capture.rule import (
    Action,
    Chain,
    Jump,
    Not,
    Protocol,
    RedirectTo,
    Rule,
    RuleSet,
    SetMark,
    Table,
    TproxyTo,
    Verb,
)
from proxy.capture.rules import rule_sets

TABLES: dict[Table, str] = {Table.MANGLE: "remora-mangle", Table.NAT: "remora-nat"}
"""Tables of our own: nobody else's rules are in them, and nobody else flushes them."""

_HOOKS = {
    (Table.MANGLE, Chain.PREROUTING): "type filter hook prerouting priority -150",
    (Table.MANGLE, Chain.OUTPUT): "type route hook output priority -150",
    (Table.NAT, Chain.PREROUTING): "type nat hook prerouting priority -100",
    (Table.NAT, Chain.OUTPUT): "type nat hook output priority -100",
}
"""Of type `route`: a mark that is set on output must be followed by a new look at the routes."""

_VERBS = {
    Verb.RETURN: "return",
    Verb.ACCEPT: "accept",
    Verb.DROP: "drop",
    Verb.SAVE_MARK: "ct mark set meta mark",
    Verb.RESTORE_MARK: "meta mark set ct mark",
}

_IP = {Family.IPV4: "ip", Family.IPV6: "ip6"}


def transaction(options: CaptureOptions) -> str:
    """Return the input for `nft -f -` that puts these rules in place of any that are there."""
    return "".join([*_removals(), *(f"{table}\n" for table in tables(options).values())])


def removal() -> str:
    """Return the input for `nft -f -` that removes all of it, whether or not it is there."""
    return "".join(_removals())


def stop() -> str:
    """Return the input that captures nothing new: only the jumps to the rules are taken out."""
    chains = (Chain.PREROUTING, Chain.OUTPUT)
    return "".join(f"flush chain inet {TABLES[Table.NAT]} {chain_name(one)}\n" for one in chains)


def _removals() -> Iterator[str]:
    # Adding what may be there already makes the deletion succeed either way.
    for name in TABLES.values():
        yield f"add table inet {name}\ndelete table inet {name}\n"


def tables(options: CaptureOptions) -> dict[str, str]:
    """Return each table's name and its text, as the kernel's is listed."""
    return {TABLES[rules.table]: _table(rules, options.families) for rules in rule_sets(options)}


def _table(rules: RuleSet, families: Iterable[Family]) -> str:
    chains = [
        _chain(chain, rules, [family for family in Family if family not in families])
        for chain in (Chain.PREROUTING, Chain.OUTPUT, *rules.chains)
    ]
    return "\n".join([f"table inet {TABLES[rules.table]} {{", "\n\n".join(chains), "}"])


def _chain(chain: Chain, rules: RuleSet, uncaptured: Iterable[Family]) -> str:
    lines = [f"\tchain {chain_name(chain)} {{"]
    if chain.built_in:
        lines.append(f"\t\t{_HOOKS[rules.table, chain]}; policy accept;")
        lines += [f"\t\tmeta nfproto {family} counter return" for family in uncaptured]
    lines += [f"\t\t{_rule(rule)}" for rule in rules.rules if rule.chain is chain]
    return "\n".join([*lines, "\t}"])


def chain_name(chain: Chain) -> str:
    """Return the name that Istio gives the chain in nftables."""
    return chain.value.lower().replace("_", "-")


def _rule(rule: Rule) -> str:
    return " ".join([*_matches(rule), "counter", _action(rule.action, rule.family)])


def _matches(rule: Rule) -> Iterator[str]:
    if rule.in_interface is not None:
        yield f'iifname "{rule.in_interface}"'
    if rule.out_interface is not None:
        yield f'oifname "{rule.out_interface}"'
    if rule.family is not None:
        yield from _address_matches(rule, _IP[rule.family])
    if rule.port is not None:
        negation, port = _negation(rule.port)
        yield f"{rule.protocol or Protocol.TCP} dport {negation}{port}"
    elif rule.protocol is not None:
        yield f"meta l4proto {rule.protocol}"
    for owner in rule.owners:
        yield f"meta sk{owner.kind} {'!= ' if owner.negated else ''}{owner.number}"
    yield from _connection_matches(rule)


def _address_matches(rule: Rule, ip: str) -> Iterator[str]:
    for end, network in (("saddr", rule.source), ("daddr", rule.destination)):
        if network is not None:
            negation, plain = _negation(network)
            yield f"{ip} {end} {negation}{_host_or_network(plain)}"


def _connection_matches(rule: Rule) -> Iterator[str]:
    if rule.mark is not None:
        negation, mark = _negation(rule.mark)
        yield f"meta mark {negation}{_mark(mark)}"
    if rule.connection_mark is not None:
        yield f"ct mark {_mark(rule.connection_mark)}"
    if rule.states:
        yield f"ct state {','.join(rule.states)}"


def _action(action: Action, family: Family | None) -> str:
    match action:
        case Verb():
            return _VERBS[action]
        case Jump(chain):
            return f"jump {chain_name(chain)}"
        case RedirectTo(port):
            return f"redirect to :{port}"
        case SetMark(mark):
            return f"meta mark set {_mark(mark)}"
        case TproxyTo(port, mark):
            ip = _IP[family] if family else ""
            return f"tproxy {ip} to :{port} meta mark set {_mark(mark)} accept"


Plain = TypeVar("Plain", int, Network)


def _negation(value: Plain | Not[Plain]) -> tuple[str, Plain]:
    return ("!= ", value.value) if isinstance(value, Not) else ("", value)


def _host_or_network(network: Network) -> str:
    whole = network.prefixlen == network.max_prefixlen
    return str(network.network_address if whole else network)


def _mark(mark: int) -> str:
    return f"0x{mark:08x}"
