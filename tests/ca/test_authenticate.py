from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest

from ca.authenticate import (
    Authenticator,
    Caller,
    CertificateAuthenticator,
    Presented,
    TokenAuthenticator,
    bearer_token,
    identify,
)
from ca.errors import (
    CallerUnknown,
    CertificateExpired,
    CertificateForeign,
    CertificateRevoked,
    NoCredential,
    TokenExpired,
)
from ca.tokens import create_token, own_issuer
from mesh.spiffe import ServiceAccount
from tests.ca.workshop import CLUSTER, WEB, WEB_CALLER
from tests.pki import NOW, Leaf, make_root, new_key

KEY = new_key()
BY_TOKEN = TokenAuthenticator(
    name="own-token", issuer=own_issuer(KEY.public_key(), ["istio-ca"]), trust_domain=CLUSTER
)


def token(ttl: timedelta = timedelta(hours=1)) -> str:
    account = ServiceAccount("foo", "web")
    return create_token(KEY, account, audience="istio-ca", ttl=ttl, now=NOW)


@dataclass
class Fixed:
    """An authenticator that always answers the same."""

    name: str
    answer: Caller | None
    asked: list[tuple[Presented, datetime]] = field(default_factory=list)

    async def authenticate(self, presented: Presented, now: datetime) -> Caller:
        self.asked.append((presented, now))
        if self.answer is None:
            raise NoCredential(f"{self.name} saw nothing")
        return self.answer


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(["Bearer abc"], "abc", id="plain"),
        pytest.param(["Basic xyz", "Bearer abc"], "abc", id="after-another-scheme"),
        pytest.param(["Bearer abc", "Bearer def"], "abc", id="first-wins"),
        pytest.param(["Bearer a b"], "a b", id="only-the-prefix-goes"),
    ],
)
def test_the_first_bearer_value_wins(values: list[str], expected: str) -> None:
    assert bearer_token(values) == expected


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        pytest.param([], "no authorization metadata", id="none"),
        pytest.param([""], "no bearer token", id="empty"),
        pytest.param(["Basic abc"], "no bearer token", id="another-scheme"),
        pytest.param(["bearer abc"], "no bearer token", id="lower-case"),
        pytest.param(["Bearer"], "no bearer token", id="no-space"),
        pytest.param([" Bearer abc"], "no bearer token", id="leading-space"),
        pytest.param(["Bearer\tabc"], "no bearer token", id="tab"),
        pytest.param(["Bearer "], "is empty", id="no-token"),
    ],
)
def test_what_is_no_bearer_token(values: list[str], sentence: str) -> None:
    with pytest.raises(NoCredential, match=sentence):
        bearer_token(values)


async def test_a_token_gives_the_identity_of_its_service_account() -> None:
    caller = await BY_TOKEN.authenticate(Presented(authorization=[f"Bearer {token()}"]), NOW)
    assert caller == Caller(identity=WEB, authenticator="own-token")


async def test_a_token_may_be_used_again_until_it_expires() -> None:
    presented = Presented(authorization=[f"Bearer {token()}"])
    for minutes in (0, 1, 59):
        await BY_TOKEN.authenticate(presented, NOW + timedelta(minutes=minutes))
    with pytest.raises(TokenExpired):
        await BY_TOKEN.authenticate(presented, NOW + timedelta(minutes=60))


async def test_the_first_authenticator_that_knows_decides() -> None:
    silent, second, third = Fixed("a", None), Fixed("b", WEB_CALLER), Fixed("c", WEB_CALLER)
    authenticators: list[Authenticator] = [silent, second, third]
    presented = Presented(authorization=["anything"])
    assert await identify(authenticators, presented, NOW) == WEB_CALLER
    assert silent.asked == second.asked == [(presented, NOW)]
    assert third.asked == []


async def test_when_nobody_knows_every_reason_is_kept_for_the_log() -> None:
    with pytest.raises(CallerUnknown) as caught:
        await identify([Fixed("a", None), BY_TOKEN], Presented(), NOW)
    assert [(name, failure.reason) for name, failure in caught.value.failures] == [
        ("a", "no_credential"),
        ("own-token", "no_credential"),
    ]
    assert "a: a saw nothing; own-token: no authorization" in str(caught.value)


async def test_without_authenticators_nobody_is_known() -> None:
    with pytest.raises(CallerUnknown):
        await identify([], Presented(authorization=[f"Bearer {token()}"]), NOW)


BY_CERTIFICATE = CertificateAuthenticator(trust_domain=CLUSTER)


async def test_a_verified_certificate_names_its_caller_until_it_ends() -> None:
    svid = make_root().issue(str(WEB), "web.test")
    presented = Presented(chain=svid.chain)
    caller = await BY_CERTIFICATE.authenticate(presented, svid.not_after)
    assert caller == Caller(identity=WEB, authenticator="client-certificate")
    with pytest.raises(CertificateExpired):
        await BY_CERTIFICATE.authenticate(presented, svid.not_after + timedelta(seconds=1))


@pytest.mark.parametrize(
    "sans",
    [
        pytest.param([], id="none"),
        pytest.param(["web.test"], id="dns-only"),
        pytest.param([str(WEB), str(WEB)], id="twice"),
        pytest.param([str(WEB), "https://web.test"], id="another-uri"),
        pytest.param(["spiffe://cluster.local"], id="trust-domain"),
        pytest.param(["spiffe://cluster.local.evil/ns/foo/sa/web"], id="other-trust-domain"),
        pytest.param(["spiffe://cluster.local/ns/foo/sa/web\n"], id="newline"),
    ],
)
async def test_a_certificate_that_does_not_name_exactly_one_of_ours(sans: list[str]) -> None:
    leaf = make_root().sign(Leaf(sans=sans))
    with pytest.raises(CertificateForeign):
        await BY_CERTIFICATE.authenticate(Presented(chain=[leaf]), NOW)


async def test_a_certificate_that_was_revoked_after_its_connection_began() -> None:
    svid, other = make_root().issue(str(WEB)), make_root().issue(str(WEB))
    checking = CertificateAuthenticator(trust_domain=CLUSTER, revoked=lambda: {svid.serial})
    with pytest.raises(CertificateRevoked, match=f"{svid.serial:x} was revoked"):
        await checking.authenticate(Presented(chain=svid.chain), NOW)
    await checking.authenticate(Presented(chain=other.chain), NOW)


async def test_without_a_certificate_there_is_nothing_to_go_by() -> None:
    with pytest.raises(NoCredential):
        await BY_CERTIFICATE.authenticate(Presented(authorization=["Bearer x"]), NOW)
