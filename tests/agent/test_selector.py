from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.selector import KINDS, InvalidSelector, Selector

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("unix:uid:0", "unix:uid", "0"),
        ("unix:uid:4294967294", "unix:uid", "4294967294"),
        ("unix:user:www-data", "unix:user", "www-data"),
        ("unix:supplementary_gid:27", "unix:supplementary_gid", "27"),
        ("unix:path:/usr/bin/a:b", "unix:path", "/usr/bin/a:b"),
        (f"unix:sha256:{DIGEST}", "unix:sha256", DIGEST),
        ("systemd:id:httpbin.service", "systemd:id", "httpbin.service"),
        ("systemd:id:web@1.service", "systemd:id", "web@1.service"),
        (f"container:id:{DIGEST}", "container:id", DIGEST),
        (
            "k8s:pod-uid:01234567-89ab-cdef-0123-456789abcdef",
            "k8s:pod-uid",
            "01234567-89ab-cdef-0123-456789abcdef",
        ),
    ],
)
def test_selector(text: str, kind: str, value: str) -> None:
    assert Selector.parse(text) == Selector(kind, value)
    assert str(Selector.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix",
        "unix:uid",
        "unix:uid:",
        "unix:uid:-1",
        "unix:uid:+1",
        "unix:uid:007",
        "unix:uid:4294967295",
        "unix:uid:1 ",
        "unix:uid:\u0661",
        "unix:uid:1000\n",
        "unix:path:usr/bin/x",
        "unix:path:/a\0b",
        "unix:path:/" + "a" * 4096,
        f"unix:sha256:{DIGEST.upper()}",
        f"container:id:{DIGEST[:12]}",
        "systemd:id:httpbin",
        "systemd:id:../x.service",
        "docker:label:app:web",
        "UNIX:uid:0",
        " unix:uid:0",
    ],
)
def test_what_is_no_selector(text: str) -> None:
    with pytest.raises(InvalidSelector):
        Selector.parse(text)


@given(
    st.one_of(
        st.text(),
        st.sampled_from(sorted(KINDS)).flatmap(
            lambda kind: st.text().map(lambda value: f"{kind}:{value}")
        ),
    )
)
def test_any_text_is_a_selector_or_refused(text: str) -> None:
    try:
        selector = Selector.parse(text)
    except InvalidSelector:
        return
    assert str(selector) == text
    assert selector.kind in KINDS
