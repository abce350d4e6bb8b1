"""The rules in a real kernel, each test in a network namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.capture import iptables, nftables
from proxy.capture.options import Family
from proxy.capture.rule import Table
from proxy.capture.settings import parse_options
from tests.namespaces import Namespace, join, namespace, needs_namespaces
from tests.proxy.capture.test_rules import CASES

pytestmark = needs_namespaces


@pytest.fixture
def pod() -> Iterator[Namespace]:
    """A namespace with a way out in both families, so that there is something to capture."""
    with namespace() as inside, namespace() as outside:
        join(inside, outside, subnet=1)
        inside.ip("route", "add", "default", "via", "10.77.1.2")
        inside.ip("-6", "route", "add", "default", "via", "fd77:1::2")
        for probed in ("192.0.2.1/32", "2001:db8::1/128"):  # so that they refuse, at once
            outside.ip("address", "add", probed, "dev", "lo")
        yield inside


@pytest.fixture(scope="module")
def kernel() -> Iterator[Namespace]:
    """A namespace in which rules come and go."""
    with namespace() as place:
        yield place


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_lists_nftables_rules_exactly_as_they_were_written(
    case: str, kernel: Namespace
) -> None:
    options = parse_options(CASES[case])
    kernel.run("nft", "-f", "-", text=nftables.transaction(options))
    for name, text in nftables.tables(options).items():
        assert kernel.run("nft", "-s", "-y", "list", "table", "inet", name).stdout.strip() == text


@pytest.mark.parametrize("form", ["nft", "legacy"])
@pytest.mark.parametrize("case", CASES)
def test_iptables_saves_rules_exactly_as_they_were_restored(
    case: str, form: str, kernel: Namespace
) -> None:
    options = parse_options(CASES[case])
    for family, name in ((Family.IPV4, "iptables"), (Family.IPV6, "ip6tables")):
        tool = f"{name}-{form}"
        wanted = iptables.wanted(options, family)
        text = iptables.restore_input(wanted, saved(kernel, tool))
        kernel.run(f"{tool}-restore", "--noflush", text=text)
        assert saved(kernel, tool) == wanted


def saved(place: Namespace, tool: str) -> dict[Table, list[str]]:
    return iptables.present(place.run(f"{tool}-save").stdout)


@pytest.mark.parametrize("backend", ["nft", "iptables"])
@pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
def test_apply_is_idempotent_and_clean_leaves_no_residue(
    pod: Namespace, backend: str, mode: str
) -> None:
    before = pod.state()
    first = pod.remora("capture", "apply", "--backend", backend, "--mode", mode)
    assert first.stdout == "capture rules are in force\n"
    applied = pod.state()
    assert applied != before
    again = pod.remora("capture", "apply", "--backend", backend, "--mode", mode)
    assert again.stdout == "capture rules were in force already\n"
    assert pod.state() == applied
    assert pod.remora("capture", "clean").stdout == "capture rules removed\n"
    assert without_empty_tables(pod.state()) == before
    assert pod.remora("capture", "clean").stdout == "there were no capture rules\n"


def without_empty_tables(state: str) -> str:
    """iptables keeps its tables, empty, once they have been asked for; they are not ours."""
    kept: list[str] = []
    lines = iter(state.splitlines())
    for line in lines:
        if line.startswith(("table ip nat", "table ip mangle", "table ip6 ")):
            body = list(iter(lambda: next(lines), "}"))
            rules = [entry for entry in body if entry.strip(" \t}") and "hook" not in entry]
            assert all(entry.strip().startswith("chain ") for entry in rules), body
            continue
        if not line.startswith(("*", "COMMIT")):
            kept.append(line)
    return "\n".join(kept)


def test_other_options_replace_the_rules_and_the_other_program_takes_over(pod: Namespace) -> None:
    pod.remora("capture", "apply", "--mode", "TPROXY")
    pod.remora("capture", "apply", "--exclude-ranges", "192.168.0.0/16", "--backend", "iptables")
    assert "remora-nat" not in pod.state()
    assert "fwmark" not in pod.ip("rule", "show")
    assert "192.168.0.0/16" in pod.run("iptables-save").stdout
    pod.remora("capture", "apply")
    assert "ISTIO" not in pod.run("iptables-save").stdout + pod.run("ip6tables-save").stdout
    assert "remora-nat" in pod.state()


def test_an_interrupted_apply_is_completed_by_the_next(pod: Namespace) -> None:
    before = pod.state()
    pod.ip("-6", "address", "add", "::6/128", "dev", "lo")
    pod.ip("rule", "add", "fwmark", "1337", "lookup", "133")
    pod.run("nft", "-f", "-", text="table inet remora-nat { chain istio-output { }; }")
    half = "*nat\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -j ISTIO_OUTPUT\nCOMMIT\n"
    pod.run("iptables-restore", "--noflush", text=half)
    pod.remora("capture", "apply", "--mode", "TPROXY")
    whole = nftables.tables(parse_options({"interceptionMode": "TPROXY"}))
    for name, text in whole.items():
        assert pod.run("nft", "-s", "-y", "list", "table", "inet", name).stdout.strip() == text
    assert pod.ip("rule", "show").count("fwmark 0x539") == 1
    assert "ISTIO" not in pod.run("iptables-save").stdout
    pod.remora("capture", "clean")
    assert without_empty_tables(pod.state()) == before


def test_clean_tolerates_what_is_half_gone_and_leaves_what_is_not_ours(pod: Namespace) -> None:
    pod.run("nft", "add", "table", "inet", "somebody")
    pod.run("iptables", "-t", "nat", "-A", "OUTPUT", "-d", "192.0.2.9", "-j", "RETURN")
    pod.remora("capture", "apply", "--backend", "iptables", "--mode", "TPROXY")
    pod.run("iptables", "-t", "nat", "-F", "ISTIO_OUTPUT")
    pod.run("iptables", "-t", "nat", "-D", "OUTPUT", "-j", "ISTIO_OUTPUT")
    pod.ip("-6", "address", "del", "::6/128", "dev", "lo")
    pod.ip("route", "flush", "table", "133")
    pod.remora("capture", "clean")
    assert "ISTIO" not in pod.run("iptables-save").stdout
    assert "-d 192.0.2.9/32 -j RETURN" in pod.run("iptables-save").stdout
    assert "table inet somebody" in pod.state()


@pytest.mark.parametrize("backend", ["nft", "iptables"])
@pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
def test_check_proves_both_directions_in_both_families(
    pod: Namespace, backend: str, mode: str
) -> None:
    pod.remora("capture", "apply", "--backend", backend, "--mode", mode)
    setting = f"interceptionMode={mode}"
    done = pod.remora("capture", "check", "--set", setting, "-o", "json")
    findings = {entry["probe"]: entry["works"] for entry in json.loads(done.stdout)}
    names = [f"{way} {family}" for way in ("outbound", "inbound") for family in ("ipv4", "ipv6")]
    assert findings == dict.fromkeys(names, True)


def test_check_fails_without_rules_and_with_half_of_them(pod: Namespace) -> None:
    done = pod.remora("capture", "check", check=False)
    assert done.returncode == 3
    assert "outbound ipv4: NOT CAPTURED" in done.stdout
    assert "inbound ipv6: NOT CAPTURED" in done.stdout
    pod.remora("capture", "apply", "--include-inbound", "")
    done = pod.remora("capture", "check", check=False)
    # The inbound probe is a call of the proxy to itself, which the rules of output capture; only
    # with the options that the rules were made with can check tell what is missing.
    assert "outbound ipv4: captured" in done.stdout
    pod.run("nft", "flush", "chain", "inet", "remora-nat", "istio-in-redirect")
    done = pod.remora("capture", "check", check=False)
    assert done.returncode == 3
    assert "outbound ipv4: captured" in done.stdout
    assert "inbound ipv4: NOT CAPTURED" in done.stdout


def test_check_goes_by_the_included_ranges_and_users(pod: Namespace) -> None:
    settings = ("--set", "includeOutboundIPRanges=198.51.100.0/24", "--set", "includeUsers=1000")
    pod.remora("capture", "apply", *settings)
    done = pod.remora("capture", "check", *settings)
    assert "it was going to 198.51.100.1:15002" in done.stdout


def test_without_the_capability_there_is_one_clear_line(pod: Namespace) -> None:
    for command in ("apply", "clean", "check"):
        done = pod.run(
            *("setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"),
            *(sys.executable, "-m", "remora", "capture", command),
            check=False,
        )
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "root" in done.stderr


def test_a_root_without_its_capabilities_gets_one_clear_line_too(pod: Namespace) -> None:
    for command in ("apply", "check"):
        done = pod.run(
            *("setpriv", "--bounding-set=-all", "--inh-caps=-all"),
            *(sys.executable, "-m", "remora", "capture", command),
            check=False,
        )
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "CAP_" in done.stderr


def test_a_family_that_the_namespace_has_not_is_left_out(pod: Namespace) -> None:
    pod.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    pod.remora("capture", "apply")
    assert "ipv6" not in pod.remora("capture", "check").stdout
    pod.remora("capture", "clean")


def test_iptables_is_used_where_nft_is_missing(pod: Namespace, tmp_path: Path) -> None:
    for folder in os.environ["PATH"].split(os.pathsep):
        for tool in Path(folder).glob("*"):
            link = tmp_path / tool.name
            if tool.name.startswith(("ip", "xtables")) and not link.exists():
                link.symlink_to(tool)
    command = [sys.executable, "-m", "remora", "capture", "apply"]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "PATH": str(tmp_path)}
    whole = ["nsenter", f"--net=/run/netns/{pod.name}", "env", f"PATH={tmp_path}", *command]
    subprocess.run(whole, check=True, env={**environment, "PATH": os.environ["PATH"]})
    assert "ISTIO_OUTPUT" in pod.run("iptables-save").stdout
    assert "remora-nat" not in pod.state()
