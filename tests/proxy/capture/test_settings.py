from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigError
from proxy.capture.options import CaptureOptions, Family, InterceptionMode
from proxy.capture.settings import SETTINGS, from_annotations, from_document, parse_options


def test_nothing_set_is_istios_default_everything_captured() -> None:
    options = parse_options({})
    assert options.include_outbound_ranges == "*"
    assert options.include_inbound_ports == "*"
    assert options.exclude_inbound_ports == (15090, 15021, 15020)
    assert (options.proxy_uids, options.proxy_gids) == ((1337,), (1337,))
    assert (options.outbound_port, options.inbound_port) == (15001, 15006)
    assert options.mode is InterceptionMode.REDIRECT
    assert options.families == (Family.IPV4, Family.IPV6)


def test_every_list_is_read_in_its_order_without_repeats() -> None:
    options = parse_options(
        {
            "includeOutboundIPRanges": "10.0.0.0/8, fd00::/8,10.0.0.0/8",
            "excludeOutboundIPRanges": "10.1.0.0/16",
            "includeInboundPorts": "8080,80",
            "includeOutboundPorts": "443",
            "excludeOutboundPorts": "25,587",
            "includeUsers": "1000,0",
            "excludeGroups": "12",
            "excludeInterfaces": "eth1,docker0",
            "virtualInterfaces": "k6t-eth0",
            "dropInvalid": "true",
            "ipFamilies": "ipv6",
        }
    )
    assert options.include_outbound_ranges == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert options.exclude_outbound_ranges == (ip_network("10.1.0.0/16"),)
    assert options.include_inbound_ports == (8080, 80)
    assert options.include_outbound_ports == (443,)
    assert options.exclude_outbound_ports == (25, 587)
    assert options.include_users == (1000, 0)
    assert options.exclude_groups == (12,)
    assert options.exclude_interfaces == ("eth1", "docker0")
    assert options.virtual_interfaces == ("k6t-eth0",)
    assert options.drop_invalid
    assert options.families == (Family.IPV6,)


def test_an_empty_list_of_inbound_ports_captures_none_and_a_missing_one_all() -> None:
    assert parse_options({"includeInboundPorts": ""}).include_inbound_ports == ()
    assert parse_options({"includeInboundPorts": " * "}).include_inbound_ports == "*"


def test_the_groups_are_the_users_unless_they_are_given() -> None:
    assert parse_options({"proxyUID": "7"}).proxy_gids == (7,)
    assert parse_options({"proxyUID": "7", "proxyGID": "8"}).proxy_gids == (8,)


@pytest.mark.parametrize(
    ("setting", "value", "complaint"),
    [
        ("excludeOutboundIPRanges", "*", "is not a range"),
        ("includeOutboundIPRanges", "10.0.0.1/8", "has host bits set"),
        ("includeOutboundIPRanges", "*,10.0.0.0/8", "is not a range"),
        ("includeInboundPorts", "0", "is not a port"),
        ("excludeInboundPorts", "65536", "is not a port"),
        ("excludeOutboundPorts", "80-90", "is not a port"),
        ("outboundPort", "", "is not a port"),
        ("proxyUID", "istio-proxy", "is not a numeric user"),
        ("proxyUID", "4294967295", "is not a numeric user"),
        ("proxyUID", "", "without a proxy uid"),
        ("excludeInterfaces", 'eth0" accept', "is not the name of a network interface"),
        ("excludeInterfaces", "-j", "is not the name of a network interface"),
        ("excludeInterfaces", "eth0+", "is not the name of a network interface"),
        ("excludeInterfaces", "an-interface-name-too-long", "is not the name"),
        ("interceptionMode", "redirect", "is not one of REDIRECT, TPROXY, NONE"),
        ("ipFamilies", "ipv5", "is not one of ipv4, ipv6"),
        ("ipFamilies", "", "at least one of ipv4 and ipv6"),
        ("dropInvalid", "yes", "is not one of true, false"),
        ("inboundPort", "15001", "cannot be both"),
        ("excludeInboundPorts", ",".join(map(str, range(1, 1003))), "more than the 1000 allowed"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(
    setting: str, value: str, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_options({setting: value})


def test_users_are_included_or_excluded_not_both() -> None:
    with pytest.raises(ConfigError, match="either included or excluded"):
        parse_options({"includeUsers": "1", "excludeUsers": "2"})


def test_a_yaml_document_has_numbers_lists_and_booleans() -> None:
    settings = from_document(
        {"excludeOutboundPorts": [25, "587"], "dropInvalid": True, "includeInboundPorts": None}, "f"
    )
    assert settings == {
        "excludeOutboundPorts": "25,587",
        "dropInvalid": "true",
        "includeInboundPorts": "",
    }


def test_a_misspelled_setting_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean excludeOutboundPorts"):
        from_document({"excludeOutboundPort": 25}, "f")


@pytest.mark.parametrize("tree", [None, [], "text", {"dropInvalid": {"a": 1}}])
def test_a_document_of_another_shape_is_refused(tree: object) -> None:
    with pytest.raises(ConfigError, match="f"):
        from_document(tree, "f")


def test_istios_annotations_of_a_pod_and_of_a_deployments_template() -> None:
    annotations = {
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8",
        "traffic.sidecar.istio.io/excludeInboundPorts": "9000",
        "sidecar.istio.io/interceptionMode": "TPROXY",
        "istio.io/reroute-virtual-interfaces": "veth7",
        "prometheus.io/scrape": "true",
    }
    pod = {"kind": "Pod", "metadata": {"annotations": annotations}, "spec": {}}
    deployment = {
        "kind": "Deployment",
        "metadata": {"annotations": {"traffic.sidecar.istio.io/excludeInboundPorts": "1"}},
        "spec": {"template": {"metadata": {"annotations": annotations}}},
    }
    for document in (pod, deployment):
        options = parse_options(from_document(document, "pod.yaml"))
        assert options.include_outbound_ranges == (ip_network("10.0.0.0/8"),)
        assert options.exclude_inbound_ports == (15090, 15021, 15020, 9000)
        assert options.mode is InterceptionMode.TPROXY
        assert options.virtual_interfaces == ("veth7",)


def test_a_misspelled_traffic_annotation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"did you mean traffic\.sidecar\.istio\.io/exclude"):
        from_annotations({"traffic.sidecar.istio.io/excludeInboundPort": "1"})


@given(st.dictionaries(st.sampled_from(sorted(SETTINGS)), st.text(max_size=30)))
def test_any_text_becomes_options_or_a_complaint(settings: dict[str, str]) -> None:
    try:
        options = parse_options(settings)
    except ConfigError:
        return
    assert isinstance(options, CaptureOptions)
