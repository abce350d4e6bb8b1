"""From options to rules: Istio's rule set for a sidecar, in its order, on which all depends.

Pure. The comments number the steps as they follow each other in the chains.
"""

from __future__ import annotations

from collections.abc import Iterator

from proxy.capture.options import (
    HBONE_PORT,
    INBOUND_SOURCES,
    LOOPBACKS,
    SELF_CALL_MARK,
    TPROXY_MARK,
    WILDCARD,
    CaptureOptions,
    Family,
    InterceptionMode,
)
from proxy.capture.rule import (
    Chain,
    Jump,
    Not,
    Owner,
    OwnerKind,
    Protocol,
    RedirectTo,
    Rule,
    RuleSet,
    SetMark,
    Table,
    TproxyTo,
    Verb,
)

TCP = Protocol.TCP
LO = "lo"


def rule_sets(options: CaptureOptions) -> tuple[RuleSet, ...]:
    """Return the rules of every table that is needed; none for mode NONE."""
    if options.mode is InterceptionMode.NONE:
        return ()
    nat_chains = (Chain.INBOUND, Chain.REDIRECT, Chain.IN_REDIRECT, Chain.OUTBOUND)
    nat = RuleSet(table=Table.NAT, chains=nat_chains, rules=tuple(_nat(options)))
    mangle = tuple(_mangle(options))
    if not mangle:
        return (nat,)
    chains = tuple(dict.fromkeys(rule.chain for rule in mangle if not rule.chain.built_in))
    return (RuleSet(table=Table.MANGLE, chains=chains, rules=mangle), nat)


# The nat table: redirection.


def _nat(options: CaptureOptions) -> Iterator[Rule]:
    yield from _virtual_interfaces(options)
    yield from _excluded_interfaces(options)
    yield Rule(chain=Chain.INBOUND, protocol=TCP, port=HBONE_PORT, action=Verb.RETURN)
    yield Rule(chain=Chain.REDIRECT, protocol=TCP, action=RedirectTo(options.outbound_port))
    yield Rule(chain=Chain.IN_REDIRECT, protocol=TCP, action=RedirectTo(options.inbound_port))
    if options.mode is InterceptionMode.REDIRECT and options.include_inbound_ports:
        yield Rule(chain=Chain.PREROUTING, protocol=TCP, action=Jump(Chain.INBOUND))
        yield from _inbound_ports(options, Jump(Chain.IN_REDIRECT))
    yield Rule(chain=Chain.OUTPUT, action=Jump(Chain.OUTBOUND))
    yield from _outbound(options)


def _virtual_interfaces(options: CaptureOptions) -> Iterator[Rule]:
    for interface in options.virtual_interfaces:
        if options.include_outbound_ranges == WILDCARD:
            yield Rule(chain=Chain.PREROUTING, in_interface=interface, action=Jump(Chain.REDIRECT))
        else:
            for network in options.networks(options.include_outbound_ranges):
                yield Rule(
                    chain=Chain.PREROUTING,
                    in_interface=interface,
                    family=Family.of(network),
                    destination=network,
                    action=Jump(Chain.REDIRECT),
                )
        yield Rule(chain=Chain.PREROUTING, in_interface=interface, action=Verb.RETURN)


def _excluded_interfaces(options: CaptureOptions) -> Iterator[Rule]:
    for interface in options.exclude_interfaces:
        yield Rule(chain=Chain.PREROUTING, in_interface=interface, action=Verb.RETURN)
        yield Rule(chain=Chain.OUTPUT, out_interface=interface, action=Verb.RETURN)


def _inbound_ports(options: CaptureOptions, *actions: Jump) -> Iterator[Rule]:
    """Lead each included port to `actions`; an action may be for established connections only."""
    if options.include_inbound_ports == WILDCARD:
        for port in options.exclude_inbound_ports:
            yield Rule(chain=Chain.INBOUND, protocol=TCP, port=port, action=Verb.RETURN)
        for action in actions:
            yield _inbound(action, None)
        return
    for port in options.include_inbound_ports:
        for action in actions:
            yield _inbound(action, port)


def _inbound(action: Jump, port: int | None) -> Rule:
    known = action.chain is Chain.DIVERT
    states = ("established", "related") if known else ()
    return Rule(chain=Chain.INBOUND, protocol=TCP, port=port, states=states, action=action)


def _outbound(options: CaptureOptions) -> Iterator[Rule]:
    yield from _excluded_outbound_ports(options)
    yield from _from_the_proxy_to_the_app(options)
    for owner in _proxy_owners(options):
        yield from _owned_by_the_proxy(options, owner)
    yield from _other_owners(options)
    yield from _destinations(options)


def _excluded_outbound_ports(options: CaptureOptions) -> Iterator[Rule]:
    # Before the self-call rules: a port that is excluded is so for calls to oneself too.
    for port in options.exclude_outbound_ports:
        for protocol in Protocol:
            yield Rule(chain=Chain.OUTBOUND, protocol=protocol, port=port, action=Verb.RETURN)


def _from_the_proxy_to_the_app(options: CaptureOptions) -> Iterator[Rule]:
    for network in options.networks(INBOUND_SOURCES):
        yield Rule(
            chain=Chain.OUTBOUND,
            family=Family.of(network),
            out_interface=LO,
            source=network,
            action=Verb.RETURN,
        )
    if options.mode is InterceptionMode.TPROXY:
        # The same connections, made in the client's name. Istio relies on the proxy being root
        # there, which the rules of its uid then pass over.
        yield Rule(chain=Chain.OUTBOUND, out_interface=LO, mark=TPROXY_MARK, action=Verb.RETURN)


def _proxy_owners(options: CaptureOptions) -> Iterator[Owner]:
    for uid in options.proxy_uids:
        yield Owner(OwnerKind.UID, uid)
    for gid in options.proxy_gids:
        yield Owner(OwnerKind.GID, gid)


def _owned_by_the_proxy(options: CaptureOptions, owner: Owner) -> Iterator[Rule]:
    # The app called its own service and our outbound side chose this very pod: that leg enters by
    # the inbound side, so that mutual TLS and policy apply.
    for loopback in options.networks(LOOPBACKS):
        yield Rule(
            chain=Chain.OUTBOUND,
            family=Family.of(loopback),
            out_interface=LO,
            destination=Not(loopback),
            protocol=TCP,
            port=Not(HBONE_PORT),
            owners=(owner,),
            action=Jump(Chain.IN_REDIRECT),
        )
    if not options.captures_loopback:
        # The app calls itself by address: that never leaves the pod, and is its own business.
        other = Owner(owner.kind, owner.number, negated=True)
        yield Rule(chain=Chain.OUTBOUND, out_interface=LO, owners=(other,), action=Verb.RETURN)
    # What the proxy sends is not captured again: the loop protection.
    yield Rule(chain=Chain.OUTBOUND, owners=(owner,), action=Verb.RETURN)


def _other_owners(options: CaptureOptions) -> Iterator[Rule]:
    for kind, included, excluded in (
        (OwnerKind.UID, options.include_users, options.exclude_users),
        (OwnerKind.GID, options.include_groups, options.exclude_groups),
    ):
        if not isinstance(included, str):
            others = tuple(Owner(kind, number, negated=True) for number in included)
            yield Rule(chain=Chain.OUTBOUND, owners=others, action=Verb.RETURN)
        for number in excluded:
            owner = Owner(kind, number)
            yield Rule(chain=Chain.OUTBOUND, owners=(owner,), action=Verb.RETURN)


def _destinations(options: CaptureOptions) -> Iterator[Rule]:
    excluded = (*options.networks(LOOPBACKS), *options.networks(options.exclude_outbound_ranges))
    for network in excluded:
        yield Rule(
            chain=Chain.OUTBOUND,
            family=Family.of(network),
            destination=network,
            action=Verb.RETURN,
        )
    for port in options.include_outbound_ports:
        yield Rule(chain=Chain.OUTBOUND, protocol=TCP, port=port, action=Jump(Chain.REDIRECT))
    if options.include_outbound_ranges == WILDCARD:
        yield Rule(chain=Chain.OUTBOUND, action=Jump(Chain.REDIRECT))
        return
    for network in options.networks(options.include_outbound_ranges):
        yield Rule(
            chain=Chain.OUTBOUND,
            family=Family.of(network),
            destination=network,
            action=Jump(Chain.REDIRECT),
        )


# The mangle table: TPROXY, and dropping what belongs to no connection.


def _mangle(options: CaptureOptions) -> Iterator[Rule]:
    tproxy = options.mode is InterceptionMode.TPROXY and bool(options.include_inbound_ports)
    if tproxy or options.drop_invalid:
        yield from _excluded_interfaces(options)
    if options.drop_invalid:
        yield Rule(chain=Chain.PREROUTING, states=("invalid",), action=Jump(Chain.DROP))
        yield Rule(chain=Chain.DROP, action=Verb.DROP)
    if tproxy:
        yield from _tproxy_inbound(options)
        yield from _tproxy_marks(options)


def _tproxy_inbound(options: CaptureOptions) -> Iterator[Rule]:
    yield Rule(chain=Chain.PREROUTING, protocol=TCP, action=Jump(Chain.INBOUND))
    yield Rule(chain=Chain.INBOUND, protocol=TCP, mark=TPROXY_MARK, action=Verb.RETURN)
    for source in options.networks(INBOUND_SOURCES):
        yield Rule(
            chain=Chain.INBOUND,
            family=Family.of(source),
            protocol=TCP,
            in_interface=LO,
            source=source,
            action=Verb.RETURN,
        )
    yield Rule(
        chain=Chain.INBOUND,
        protocol=TCP,
        in_interface=LO,
        mark=Not(SELF_CALL_MARK),
        action=Verb.RETURN,
    )
    yield Rule(chain=Chain.INBOUND, protocol=TCP, port=HBONE_PORT, action=Verb.RETURN)
    yield from _inbound_ports(options, Jump(Chain.DIVERT), Jump(Chain.TPROXY))
    yield Rule(chain=Chain.DIVERT, action=SetMark(TPROXY_MARK))
    yield Rule(chain=Chain.DIVERT, action=Verb.ACCEPT)
    for loopback in options.networks(LOOPBACKS):
        yield Rule(
            chain=Chain.TPROXY,
            family=Family.of(loopback),
            protocol=TCP,
            destination=Not(loopback),
            action=TproxyTo(options.inbound_port, TPROXY_MARK),
        )


def _tproxy_marks(options: CaptureOptions) -> Iterator[Rule]:
    # The app answers the client; the connection's mark brings the answer to the proxy instead.
    yield Rule(chain=Chain.PREROUTING, protocol=TCP, mark=TPROXY_MARK, action=Verb.SAVE_MARK)
    yield Rule(
        chain=Chain.OUTPUT,
        protocol=TCP,
        out_interface=LO,
        mark=TPROXY_MARK,
        action=Verb.RETURN,
    )
    for owner in _proxy_owners(options):
        for loopback in options.networks(LOOPBACKS):
            yield Rule(
                chain=Chain.OUTPUT,
                family=Family.of(loopback),
                protocol=TCP,
                out_interface=LO,
                destination=Not(loopback),
                owners=(owner,),
                action=SetMark(SELF_CALL_MARK),
            )
    yield Rule(
        chain=Chain.OUTPUT,
        protocol=TCP,
        connection_mark=TPROXY_MARK,
        action=Verb.RESTORE_MARK,
    )
