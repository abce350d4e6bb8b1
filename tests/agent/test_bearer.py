from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path

import pytest

from agent.bearer import Claims, account_of, explain_rejection, parse_token, read_claims
from agent.errors import TokenMissing, TokenUnusable
from mesh.spiffe import ServiceAccount
from tests.pki import NOW

PATH = Path("/var/run/secrets/tokens/istio-token")


def jwt(claims: object) -> str:
    return f"e30.{encode(json.dumps(claims))}.c2ln"


def encode(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("data", "token"),
    [
        pytest.param(b"abc.def.ghi", "abc.def.ghi", id="bare"),
        pytest.param(b"  abc.def.ghi\r\n\n", "abc.def.ghi", id="trimmed"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b" \n\t\n", None, id="blank"),
    ],
)
def test_token_file(data: bytes, token: str | None) -> None:
    assert parse_token(data, PATH) == token


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"abc\ndef", id="two lines"),
        pytest.param(b"abc\r\nx-evil: 1", id="header injection"),
        pytest.param(b"Bearer abc", id="two words"),
        pytest.param("t\u00f6ken".encode(), id="not ascii"),
        pytest.param(b"abc\0", id="nul"),
        pytest.param(b"a" * 20_000, id="huge"),
    ],
)
def test_token_file_without_a_token(data: bytes) -> None:
    with pytest.raises(TokenUnusable, match=r"istio-token does not hold a token"):
        parse_token(data, PATH)


def test_claims_are_read() -> None:
    claims = read_claims(jwt({"sub": "me", "aud": ["a", "b"], "exp": 12.5}))
    assert claims == Claims(subject="me", audiences=("a", "b"), expires=12.5)


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        pytest.param({"aud": "one"}, Claims(audiences=("one",)), id="audience as a string"),
        pytest.param({"aud": [1, "x", None]}, Claims(audiences=("x",)), id="odd audiences"),
        pytest.param({"exp": "12"}, Claims(), id="exp as text"),
        pytest.param({"exp": True}, Claims(), id="exp as truth"),
        pytest.param({"exp": 10**400}, Claims(), id="exp beyond floats"),
        pytest.param({"sub": 7}, Claims(), id="sub as number"),
        pytest.param([1, 2], Claims(), id="not an object"),
        pytest.param("text", Claims(), id="a string"),
    ],
)
def test_odd_claims_are_ignored(claims: object, expected: Claims) -> None:
    assert read_claims(jwt(claims)) == expected


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("opaque", id="opaque"),
        pytest.param("a.b", id="two parts"),
        pytest.param("a.b.c.d", id="four parts"),
        pytest.param("a.!!!.c", id="not base64"),
        pytest.param("a.b.c", id="bad padding"),
        pytest.param(f"a.{encode('{')}.c", id="not json"),
        pytest.param(f"a.{encode('[' * 100_000)}.c", id="deep json"),
        pytest.param("a./w.c", id="not utf-8"),
        pytest.param("..", id="dots"),
    ],
)
def test_what_is_no_jwt_claims_nothing(token: str) -> None:
    assert read_claims(token) == Claims()


def test_account_comes_from_the_subject() -> None:
    token = jwt({"sub": "system:serviceaccount:foo:httpbin"})
    assert account_of(token, PATH) == ServiceAccount("foo", "httpbin")


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param("system:serviceaccount:foo", id="three parts"),
        pytest.param("system:serviceaccount:foo:a:b", id="five parts"),
        pytest.param("system:serviceaccountx:foo:a", id="another kind"),
        pytest.param("system:serviceaccount::a", id="empty namespace"),
        pytest.param("system:serviceaccount:foo:", id="empty name"),
        pytest.param("system:serviceaccount:f/x:a", id="slash"),
        pytest.param("", id="empty"),
        pytest.param("foo/httpbin", id="short form"),
    ],
)
def test_other_subjects_name_no_account(subject: str) -> None:
    with pytest.raises(TokenUnusable, match="istio-token"):
        account_of(jwt({"sub": subject}), PATH)


def test_opaque_token_names_no_account() -> None:
    with pytest.raises(TokenUnusable, match="give --service-account"):
        account_of("opaque", PATH)


def test_no_token_names_no_account() -> None:
    with pytest.raises(TokenMissing, match="missing or empty"):
        account_of(None, PATH)


@pytest.mark.parametrize(
    ("token", "advice"),
    [
        pytest.param(None, "missing or empty: create it", id="none"),
        pytest.param(
            jwt({"exp": (NOW - timedelta(seconds=90)).timestamp(), "aud": "other"}),
            "expired 90 s ago",
            id="expired",
        ),
        pytest.param(jwt({"aud": ["vault", "k8s"]}), "for audience vault, k8s", id="audience"),
        pytest.param(
            jwt({"exp": (NOW + timedelta(hours=1)).timestamp(), "aud": "istio-ca"}),
            "its issuer",
            id="looks fine",
        ),
        pytest.param("opaque", "its audience, its expiry", id="opaque"),
    ],
)
def test_rejection_is_explained(token: str | None, advice: str) -> None:
    text = explain_rejection(token, PATH, NOW)
    assert advice in text
    assert token is None or token not in text
