"""The rules for a human to read, or for a tool to install later."""

from __future__ import annotations

from proxy.capture import iptables, nftables
from proxy.capture.options import CaptureOptions


def rules_text(options: CaptureOptions, *, for_iptables: bool) -> str:
    """Return what nft -f reads, or what iptables-restore and ip6tables-restore read."""
    return _for_iptables(options) if for_iptables else nftables.transaction(options)


def _for_iptables(options: CaptureOptions) -> str:
    parts: list[str] = []
    for family in options.families:
        tool = iptables.RESTORE[family]
        parts.append(f"# {tool} --noflush\n")
        parts.append(iptables.restore_input(iptables.wanted(options, family), {}))
    return "".join(parts)
