from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from mesh.resources.loader import KINDS, Loaded, load_mesh_config, load_objects, load_resources
from mesh.resources.mesh_config import MeshConfig, Normalization, OutboundMode
from mesh.resources.networking import DestinationRule, ServiceEntry, TlsMode
from mesh.resources.problem import Refused
from mesh.resources.security import Action, AuthorizationPolicy, MtlsMode, PeerAuthentication
from mesh.resources.values import age_order

STRICT = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: foo}
spec:
  mtls: {mode: STRICT}
"""

ALLOW = """\
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata:
  name: viewer
  namespace: foo
  creationTimestamp: 2020-02-02T02:02:02Z
spec:
  selector: {matchLabels: {app: httpbin}}
  rules:
  - from:
    - source: {principals: [cluster.local/ns/foo/sa/sleep]}
    to:
    - operation: {ports: ["80"]}
"""


def messages(loaded: Loaded) -> list[str]:
    return [str(problem) for problem in loaded.problems]


def test_good_documents_become_values() -> None:
    loaded = load_resources(f"{STRICT}---\n{ALLOW}", file="mesh.yaml")
    assert loaded.problems == loaded.warnings == loaded.skipped == ()
    strict, allow = loaded.resources
    assert isinstance(strict, PeerAuthentication)
    assert strict.spec.mtls.mode is MtlsMode.STRICT
    assert strict.key == "foo/default"
    assert isinstance(allow, AuthorizationPolicy)
    assert allow.spec.action is Action.ALLOW
    assert allow.spec.rules[0].from_[0].source.principals == ("cluster.local/ns/foo/sa/sleep",)
    assert allow.metadata.creation_timestamp == datetime(2020, 2, 2, 2, 2, 2, tzinfo=UTC)


def test_a_problem_names_file_line_resource_field_and_says_one_sentence() -> None:
    loaded = load_resources(ALLOW.replace("principals", "principal"), file="authz.yaml")
    (message,) = messages(loaded)
    assert message == (
        "authz.yaml:11: AuthorizationPolicy foo/viewer: spec.rules[0].from[0].source.principal: "
        "there is no field 'principal' here: did you mean principals?"
    )


def test_every_problem_of_a_document_is_told_at_once() -> None:
    text = ALLOW.replace("[cluster.local/ns/foo/sa/sleep]", "text").replace("80", "x")
    text = text.replace("selector:", "selectr:")
    assert [problem.field for problem in load_resources(text).problems] == [
        "spec.selectr",
        "spec.rules[0].from[0].source.principals",
    ]
    text = ALLOW.replace('"80"', '"x", "", "80", "65536"')
    assert [problem.field for problem in load_resources(text).problems] == [
        f"spec.rules[0].to[0].operation.ports[{index}]" for index in (0, 1, 3)
    ]


def test_one_bad_document_never_takes_the_good_ones_down() -> None:
    bad = ["kind: [", "just text", "- a\n- list", "kind: PeerAuthentication", "a: !!x y"]
    for text in bad:
        loaded = load_resources(f"{STRICT}---\n{text}\n---\n{ALLOW}")
        assert [resource.metadata.name for resource in loaded.resources] == ["default", "viewer"]
        assert len(loaded.problems) == 1


@pytest.mark.parametrize(
    ("change", "field", "sentence"),
    [
        (("STRICT", "strict"), "spec.mtls.mode", "did you mean STRICT"),
        (("STRICT", "SIMPLE"), "spec.mtls.mode", "UNSET, DISABLE, PERMISSIVE, STRICT"),
        (("STRICT", "1"), "spec.mtls.mode", "not the number 1"),
        (("{mode: STRICT}", "STRICT"), "spec.mtls", "must be a mapping, not the text 'STRICT'"),
        (("{mode: STRICT}", "[STRICT]"), "spec.mtls", "not a list"),
        (("mtls", "mTLS"), "spec.mTLS", "did you mean mtls"),
        (("spec", "Spec"), "Spec", "did you mean spec"),
        (("foo", "Foo"), "metadata.namespace", "not a namespace"),
        (("foo", "5"), "metadata.namespace", "put it in quotes"),
        (("name: default, ", ""), "metadata", "'name' is required"),
        (("default", "De_fault"), "metadata.name", "not a name"),
        (("default", "''"), "metadata.name", "must not be empty"),
        (("security.istio.io/v1", "security.istio.io/v1alpha1"), "apiVersion", "v1beta1"),
        (("security.istio.io/v1", "networking.istio.io/v1"), "apiVersion", "security.istio.io/v1"),
        (("PeerAuthentication", "PeerAuth"), "kind", "did you mean PeerAuthentication"),
        (("kind: PeerAuthentication\n", ""), "kind", "needs an apiVersion and a kind"),
        (("apiVersion: security.istio.io/v1\n", ""), "apiVersion", "needs an apiVersion"),
        (
            ("namespace: foo", "creationTimestamp: yesterday"),
            "metadata.creationTimestamp",
            "must be a time",
        ),
        (
            ("namespace: foo", "creationTimestamp: 2020-02-02T02:02:02"),
            "metadata.creationTimestamp",
            "must be a time",
        ),
        (("namespace: foo", "labels: {a: yes}"), "metadata.labels.a", "not the boolean true"),
        (("namespace: foo", "colour: red"), "metadata.colour", "there is no field"),
    ],
)
def test_what_is_wrong_with_a_document(change: tuple[str, str], field: str, sentence: str) -> None:
    loaded = load_resources(STRICT.replace(*change, 1))
    assert loaded.resources == ()
    (problem,) = loaded.problems
    assert problem.field == field
    assert sentence in problem.message
    assert problem.line > 0


def test_what_is_refused_is_named_so_that_nobody_takes_it_for_absent() -> None:
    bad = ALLOW.replace("principals", "principal")
    old = STRICT.replace("istio.io/v1", "istio.io/v1alpha1")
    loaded = load_resources(f"{bad}---\n{STRICT}---\n{old}---\nkind: Other\napiVersion: v1\n")
    assert [str(one) for one in loaded.refused] == [
        "AuthorizationPolicy foo/viewer",
        "PeerAuthentication foo/default",
    ]
    assert load_resources(STRICT).refused == ()


@pytest.mark.parametrize(
    ("change", "meant"),
    [
        pytest.param(("name: default", "name: 12"), ("PeerAuthentication", "foo", ""), id="number"),
        pytest.param(("name: default", "name: A_b"), ("PeerAuthentication", "foo", ""), id="name"),
        pytest.param(
            ("namespace: foo", "namespace: Foo_"),
            ("PeerAuthentication", "", "default"),
            id="namespace",
        ),
        pytest.param(
            ("namespace: foo", "namespace: 5"),
            ("PeerAuthentication", "", "default"),
            id="namespace-number",
        ),
        pytest.param(
            ("PeerAuthentication", "PeerAuthentification"),
            ("PeerAuthentication", "foo", "default"),
            id="misspelt",
        ),
        pytest.param(
            ("PeerAuthentication", "Rule"), ("AuthorizationPolicy", "foo", "default"), id="group"
        ),
        pytest.param(
            ("kind: PeerAuthentication", ""), ("AuthorizationPolicy", "foo", "default"), id="none"
        ),
        pytest.param(("metadata:", "meta: {"), ("AuthorizationPolicy", "", ""), id="not-yaml"),
    ],
)
def test_what_has_no_name_is_told_as_far_as_it_says_what_it_is(
    change: tuple[str, str], meant: tuple[str, str, str]
) -> None:
    assert change[0] in STRICT
    loaded = load_resources(STRICT.replace(*change, 1))
    assert (loaded.resources, loaded.refused) == ((), ())
    assert loaded.problems
    assert loaded.unnamed == (Refused(*meant),)


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("v1", "Service"),
        ("v1", "ServiceAccount"),
        ("monitoring.coreos.com/v1", "ServiceMonitor"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
        ("networking.istio.io/v1", "VirtualService"),
    ],
)
def test_kinds_of_other_controllers_are_not_taken_for_ours(version: str, kind: str) -> None:
    loaded = load_resources(f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n")
    assert len(loaded.problems) == 1
    assert loaded.unnamed == (Refused(kind, "default", "a"),)


def test_unknown_kinds_are_named_and_skipped_only_on_request() -> None:
    text = f"apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: x}}\n---\n{STRICT}"
    loaded = load_resources(text, file="f")
    assert messages(loaded) == [
        "f:2: Deployment default/x: kind: Deployment of apps/v1 is not a kind that is read here"
    ]
    loaded = load_resources(text, file="f", skip_unknown_kinds=True)
    assert loaded.problems == ()
    assert [skipped.resource for skipped in loaded.skipped] == ["Deployment default/x"]
    assert len(loaded.resources) == 1


def test_a_known_kind_of_an_unknown_version_is_never_skipped() -> None:
    text = STRICT.replace("istio.io/v1", "istio.io/v2")
    assert load_resources(text, skip_unknown_kinds=True).problems


def test_what_kubernetes_adds_is_passed_over() -> None:
    text = STRICT.replace(
        "{name: default, namespace: foo}",
        "{name: default, namespace: foo, uid: x, generation: 3, managedFields: [{a: 1}], "
        "resourceVersion: '7', creationTimestamp: null}",
    )
    loaded = load_resources(text + "status: {conditions: []}\n")
    assert loaded.problems == ()
    assert loaded.resources[0].metadata.resource_version == "7"


def test_null_fields_count_as_absent_and_null_items_do_not() -> None:
    assert load_resources(STRICT.replace("{mode: STRICT}", "")).problems == ()
    loaded = load_resources(ALLOW.replace("[cluster.local/ns/foo/sa/sleep]", "[~]"))
    assert loaded.problems[0].message == "must be text, not nothing"


def test_the_default_namespace_is_the_callers() -> None:
    text = STRICT.replace(", namespace: foo", "")
    assert load_resources(text).resources[0].key == "default/default"
    assert load_resources(text, default_namespace="bar").resources[0].key == "bar/default"


def test_a_resource_given_twice_is_a_problem_and_the_first_counts() -> None:
    loaded = load_resources(f"{STRICT}---\n{STRICT.replace('STRICT', 'DISABLE')}")
    assert [problem.message for problem in loaded.problems] == ["this resource is given twice"]
    (resource,) = loaded.resources
    assert isinstance(resource, PeerAuthentication)
    assert resource.spec.mtls.mode is MtlsMode.STRICT


def test_lists_as_kubectl_prints_them_are_unpacked() -> None:
    items = "\n".join("  " + line for line in STRICT.splitlines()).replace("  api", "- api", 1)
    loaded = load_resources(f"apiVersion: v1\nkind: List\nitems:\n{items}\n")
    assert loaded.problems == ()
    assert loaded.resources == load_resources(STRICT).resources


def test_json_is_read_like_yaml() -> None:
    text = (
        '{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication",'
        '"metadata":{"name":"default","namespace":"foo"},"spec":{"mtls":{"mode":"STRICT"}}}'
    )
    assert load_resources(text).resources == load_resources(STRICT).resources


def test_values_survive_the_wire_in_istios_own_names() -> None:
    for resource in load_resources(f"{STRICT}---\n{ALLOW}").resources:
        data = msgspec.json.encode(resource)
        assert b'"apiVersion"' in data
        assert b'"kind"' in data
        assert msgspec.json.decode(data, type=type(resource)) == resource
        assert load_objects([msgspec.json.decode(data)]).resources == (resource,)


def test_a_field_from_the_future_is_refused_on_the_wire_too() -> None:
    data = msgspec.json.encode(load_resources(STRICT).resources[0])
    with pytest.raises(msgspec.ValidationError, match="future"):
        msgspec.json.decode(
            data.replace(b'"spec":{', b'"spec":{"future":1,'), type=PeerAuthentication
        )


def test_port_keys_may_be_text_or_numbers() -> None:
    text = STRICT + "  selector: {matchLabels: {a: b}}\n  portLevelMtls: {80: {}, '81': {}}\n"
    (resource,) = load_resources(text).resources
    assert isinstance(resource, PeerAuthentication)
    assert list(resource.spec.port_level_mtls) == [80, 81]


@pytest.mark.parametrize(
    ("ports", "sentence"),
    [
        ("{abc: {}}", "must be a number"),
        ("{}", "must not be empty"),
        ("{0: {}}", "1 to 65535"),
        ("{65536: {}}", "1 to 65535"),
        ("{080: {}, '80': {}}", "given twice"),
        ("{80: {mode: STRICT}}", ""),
        ("{80: ~}", "must be a mapping"),
        ("{-1: {}}", "1 to 65535"),
        ("{'08': {}, 8: {}}", "given twice"),
    ],
)
def test_port_keys_that_are_refused(ports: str, sentence: str) -> None:
    text = f"{STRICT}  selector: {{matchLabels: {{a: b}}}}\n  portLevelMtls: {ports}\n"
    problems = load_resources(text).problems
    assert bool(problems) == bool(sentence)
    assert all(sentence in problem.message for problem in problems)


def test_objects_that_are_already_held_are_taken_with_a_warning() -> None:
    invalid = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "p", "namespace": "foo"},
        "spec": {"portLevelMtls": {"80": {"mode": "DISABLE"}}},
    }
    assert load_objects([invalid]).resources == ()
    loaded = load_objects([invalid], already_admitted=True)
    assert len(loaded.resources) == len(loaded.warnings) == 1
    assert loaded.problems == ()
    broken = {**invalid, "spec": {"mtls": {"mode": "OPEN"}}}
    assert load_objects([broken], already_admitted=True).resources == ()


def test_age_order_is_time_then_name_then_namespace() -> None:
    def policy(namespace: str, name: str, created: str) -> str:
        stamp = f", creationTimestamp: '{created}'" if created else ""
        return STRICT.replace(
            "{name: default, namespace: foo}", f"{{name: {name}, namespace: {namespace}{stamp}}}"
        )

    texts = [
        policy("z", "z", "2020-01-01T00:00:01Z"),
        policy("a", "b", "2020-01-01T00:00:00.9Z"),
        policy("b", "a", "2020-01-01T01:00:00.1+01:00"),
        policy("a", "a", "2020-01-01T00:00:00.5Z"),
        policy("y", "y", ""),
    ]
    resources = load_resources("---\n".join(texts)).resources
    assert [one.key for one in sorted(resources, key=age_order)] == [
        "y/y", "a/a", "b/a", "a/b", "z/z",
    ]  # fmt: skip


def test_mesh_settings_have_istios_defaults() -> None:
    config, problems = load_mesh_config("")
    assert problems == ()
    assert config == MeshConfig()
    assert config.trust_domain == "cluster.local"
    assert config.root_namespace == "istio-system"
    assert config.enable_auto_mtls
    assert config.outbound_traffic_policy.mode is OutboundMode.ALLOW_ANY


def test_mesh_settings_are_read_and_other_known_ones_passed_over() -> None:
    config, problems = load_mesh_config(
        "trustDomain: td1\ntrustDomainAliases: [td2]\nenableAutoMtls: false\n"
        "pathNormalization: {normalization: MERGE_SLASHES}\naccessLogFile: /dev/stdout\n"
        "meshMTLS: {minProtocolVersion: TLSV1_3}\nprotocolDetectionTimeout: 5s\n"
        "extensionProviders: [{name: x, envoyExtAuthzGrpc: {service: a, port: 1}}]\n"
    )
    assert problems == ()
    assert config is not None
    assert config.trust_domain_aliases == ("td2",)
    assert config.path_normalization.normalization is Normalization.MERGE_SLASHES


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("trustDomain: a_b", "trustDomain"),
        ("trustDomainAliases: [ok, '']", "trustDomainAliases[1]"),
        ("rootNamespace: A", "rootNamespace"),
        ("trustDomian: x", "trustDomian"),
        ("protocolDetectionTimeout: soon", "protocolDetectionTimeout"),
        ("outboundTrafficPolicy: {mode: ANY}", "outboundTrafficPolicy.mode"),
        ("extensionProviders: [{name: a}, {name: a}]", "extensionProviders[1].name"),
        ("a: [", ""),
        ("a: 1\n---\nb: 2", "a"),
        ("rootNamespace: x\n---\nb: 2", ""),
    ],
)
def test_mesh_settings_that_are_refused(text: str, field: str) -> None:
    config, problems = load_mesh_config(text, file="mesh.yaml")
    assert config is None
    assert problems[0].field == field
    assert problems[0].file == "mesh.yaml"


def test_all_kinds_are_known_by_their_names() -> None:
    assert sorted(KINDS) == [
        "AuthorizationPolicy", "DestinationRule", "PeerAuthentication", "RequestAuthentication",
        "ServiceEntry", "WorkloadEntry", "WorkloadGroup",
    ]  # fmt: skip


def test_networking_kinds_are_read_under_all_their_versions() -> None:
    for version in ("v1", "v1beta1", "v1alpha3"):
        loaded = load_resources(
            f"apiVersion: networking.istio.io/{version}\nkind: DestinationRule\n"
            "metadata: {name: a}\nspec: {host: a.b, trafficPolicy: {tls: {mode: SIMPLE}, "
            "loadBalancer: {simple: LEAST_REQUEST}, connectionPool: {http: {anything: 1}}}}\n---\n"
            f"apiVersion: networking.istio.io/{version}\nkind: ServiceEntry\n"
            "metadata: {name: a}\nspec: {hosts: [a.b], ports: [{number: 80, name: http}]}\n"
        )
        assert loaded.problems == ()
        rule, entry = loaded.resources
        assert isinstance(rule, DestinationRule)
        assert rule.spec.traffic_policy is not None
        assert rule.spec.traffic_policy.tls is not None
        assert rule.spec.traffic_policy.tls.mode is TlsMode.SIMPLE
        assert isinstance(entry, ServiceEntry)
        assert entry.spec.ports[0].number == 80


def test_a_text_that_is_too_long_is_one_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.resources.yaml_text.MAX_TEXT", 10)
    assert messages(load_resources(STRICT, file="f"))[0].startswith("f: the text has ")
    config, (problem,) = load_mesh_config("trustDomain: example.com")
    assert config is None
    assert "split it" in problem.message


def test_a_field_with_a_digit_is_written_as_istio_writes_it() -> None:
    loaded = load_resources("""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: rule, namespace: foo}
spec: {host: a.test, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3}}}
""")
    assert loaded.problems == ()
