"""The commands as people and scripts call them: output and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from mesh.errors import ConfigError
from remora.cli import app
from tests.remora.policy_tools.shop import ALLOW_WEB, CATALOG, REGISTRY, STRICT, text


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "all.yaml").write_text(text(STRICT, ALLOW_WEB, REGISTRY))
    return folder


def remora(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def check(shop: Path, *words: str | Path) -> Result:
    return remora("check", "-f", shop, *words)


WEB = ("--from", "shop/web-1", "--to", CATALOG, "--port", "80")


def test_a_question_is_answered_by_exit_code_and_words(shop: Path) -> None:
    allowed = check(shop, *WEB, "--path", "/products/1", "--header", "x-a: b")
    assert allowed.exit_code == 0
    assert "shop/catalog-1 port 8080: allowed, mutual TLS" in allowed.output
    assert "! today NOT allowed: proxies judge it as plain TCP until" in allowed.output
    denied = check(shop, *WEB, "--method", "PUT")
    assert "today" not in denied.output
    assert denied.exit_code == 1
    assert "! authorization: denied" in denied.output
    plaintext = check(shop, "--from", "plaintext", "--to", "shop/catalog-1", "--port", "8080")
    assert plaintext.exit_code == 1
    assert "NOT allowed\n" in plaintext.output


def test_a_caller_that_is_in_no_registry_is_a_service_account(shop: Path) -> None:
    """As `remora token create` names it; a sidecar that only calls registers nowhere."""
    allowed = check(shop, "--from", "shop/web", *WEB[2:], "--path", "/products/1", "-o", "json")
    assert allowed.exit_code == 0
    assert json.loads(allowed.stdout)[0]["by"] == "shop/catalog"
    assert "no WorkloadEntry is called shop/web: taken for a service account" in allowed.stderr
    denied = check(shop, "--from", "other/web", *WEB[2:], "--path", "/products/1")
    assert denied.exit_code == 1
    named = check(shop, *WEB, "--path", "/products/1")
    assert named.stderr == ""


def test_a_question_is_answered_in_json(shop: Path) -> None:
    result = check(shop, *WEB, "--path", "/products/1", "-o", "json")
    (answer,) = json.loads(result.output)
    assert (answer["allowed"], answer["mtls"], answer["by"]) == (True, True, "shop/catalog")
    assert answer["allowedAsTcp"] is False


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--from", "shop/web-1", "--to", CATALOG),
        ("--cases", "x", "--from", "shop/web-1"),
        (*WEB[:-1], "70000"),
    ],
)
def test_a_question_must_be_whole(shop: Path, words: tuple[str, ...]) -> None:
    assert check(shop, *words).exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        (*WEB, "--header", "nonsense"),
        (*WEB, "--header", "a: b", "--header", "A: c"),
        ("--from", "nobody", *WEB[2:]),
        ("--from", "shop/no/body", *WEB[2:]),
        (*WEB[:3], "shop/nobody", *WEB[4:]),
        ("--cases", "/nowhere"),
    ],
)
def test_a_bad_question_is_a_complaint(shop: Path, words: tuple[str, ...]) -> None:
    assert isinstance(check(shop, *words).exception, ConfigError)


def test_bad_resources_answer_nothing(shop: Path) -> None:
    (shop / "bad.yaml").write_text(STRICT.replace("STRICT", "OPEN").replace("default", "x"))
    result = check(shop, *WEB)
    assert isinstance(result.exception, ConfigError)
    assert "bad.yaml:5: PeerAuthentication istio-system/x: spec.mtls.mode" in result.output


def test_cases_are_run(shop: Path, tmp_path: Path) -> None:
    cases = shop / "cases.yaml"
    one = f"""
- name: web reads
  from: {{workload: shop/web-1}}
  to: {{service: {CATALOG}, port: 80}}
  request: {{path: /products/1}}
  expect: {{allowed: true}}
"""
    cases.write_text("cases:" + one)
    good = check(shop, "--cases", cases)
    note, passed = good.output.splitlines()
    assert (good.exit_code, passed) == (0, "1 of 1 cases passed")
    assert note.startswith("note: 1 come out otherwise today (-v tells): proxies judge it as plain")
    cases.write_text("cases:" + one + one.replace("allowed: true", "allowed: false"))
    report = tmp_path / "junit.xml"
    bad = check(shop, "--cases", cases, "--junit", report)
    assert bad.exit_code == 1
    assert "    - allowed: false\n    + allowed: true\n" in bad.output
    assert ElementTree.parse(report).getroot().find("testsuite/testcase/failure") is not None
    data = json.loads(check(shop, "--cases", cases, "-o", "json").output)
    assert [one["passed"] for one in data] == [True, False]
    cases.write_text("cases: [{}]")
    assert isinstance(check(shop, "--cases", cases).exception, ConfigError)


def test_control_characters_from_files_do_not_reach_the_terminal(shop: Path) -> None:
    cases = shop / "cases.yaml"
    cases.write_text(
        'cases: [{name: "\\e[31m", from: {plaintext: true}, '
        f"to: {{service: {CATALOG}, port: 80}}, expect: {{allowed: true}}}}]"
    )
    result = check(shop, "--cases", cases)
    assert "\x1b" not in result.output
    assert "\\x1b[31m" in result.output


def test_a_workload_is_described(shop: Path) -> None:
    named = remora("describe", "-f", shop, "shop/catalog-1")
    assert named.exit_code == 0
    assert "port 8080    STRICT      PeerAuthentication istio-system/default" in named.output
    found = remora("describe", "-f", shop, "-n", "shop", "-l", "app=web", "-o", "json")
    (answer,) = json.loads(found.output)
    assert answer["workload"] == "shop/web-1"
    assert remora("describe", "-f", shop, "-n", "shop", "-l", "app").exit_code == 2
    assert isinstance(remora("describe", "-f", shop, "shop/x").exception, ConfigError)
    assert isinstance(remora("describe", "-f", shop).exception, ConfigError)


def test_an_analysis_is_text_or_data_and_fails_from_a_level_on(shop: Path) -> None:
    (shop / "peers.yaml").write_text(STRICT)
    twice = remora("analyze", "-f", shop)
    assert twice.exit_code == 1
    assert "Error [IST0106] (PeerAuthentication istio-system/default)" in twice.output
    (shop / "peers.yaml").write_text(
        STRICT.replace("istio-system", "shop").replace("STRICT", "PERMISSIVE")
    )
    lenient = remora("analyze", "-f", shop)
    assert lenient.exit_code == 0
    assert "Info [REM0001] (PeerAuthentication shop/default)" in lenient.output
    assert "0 Error, 0 Warning, 1 Info" in lenient.output
    strict = remora("analyze", "-f", shop, "--fail-on", "info", "-o", "json")
    assert strict.exit_code == 1
    assert [(one["code"], one["level"]) for one in json.loads(strict.output)] == [
        ("REM0001", "Info")
    ]
    (shop / "peers.yaml").unlink()
    fine = remora("analyze", "-f", shop)
    assert (fine.exit_code, fine.output.splitlines()[-1]) == (0, "nothing to report")


def test_an_analysis_reads_the_logs_of_proxies(shop: Path, tmp_path: Path) -> None:
    log = tmp_path / "proxy.log"
    line = {
        "event": "connection failed", "reason": "plaintext_on_strict", "direction": "inbound",
        "listener": "0.0.0.0:8443", "source": "10.0.0.9:5000",
    }  # fmt: skip
    log.write_text(json.dumps(line) + "\nno json\n")
    result = remora("analyze", "-f", shop, "--proxy-log", log, "--fail-on", "warning")
    assert result.exit_code == 1
    assert "refused plaintext from 10.0.0.9 (shop/old-1), once" in result.output
    assert "passed over 1 of its lines" in result.output
    missing = remora("analyze", "-f", shop, "--proxy-log", tmp_path / "x")
    assert isinstance(missing.exception, ConfigError)
