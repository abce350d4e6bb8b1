from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from agent.answer import Issued, check_answer
from agent.csr import SigningRequest, new_request
from agent.errors import (
    AnswerExpired,
    AnswerForeignIdentity,
    AnswerForeignKey,
    AnswerIncomplete,
    AnswerNotYetValid,
    AnswerRefused,
    AnswerUnreadable,
    AnswerUntrusted,
)
from mesh.spiffe import SpiffeId
from tests.pki import NOW, Authority, Leaf, make_root, new_key

IDENTITY = "spiffe://cluster.local/ns/foo/sa/httpbin"


@pytest.fixture(scope="module")
def root() -> Authority:
    return make_root()


@pytest.fixture(scope="module")
def other() -> Authority:
    return make_root("other")


@pytest.fixture(scope="module")
def request_() -> SigningRequest:
    return new_request(SpiffeId.parse(IDENTITY))


def pem(*certificates: x509.Certificate) -> str:
    return "".join(c.public_bytes(serialization.Encoding.PEM).decode() for c in certificates)


def leaf(request: SigningRequest, authority: Authority, **facts: object) -> x509.Certificate:
    template = Leaf(sans=[IDENTITY], key=request.key)
    for name, value in facts.items():
        setattr(template, name, value)
    return authority.sign(template)


def check(request: SigningRequest, *elements: str) -> Issued:
    return check_answer(elements, request, created=NOW - timedelta(seconds=1), now=NOW)


def names(certificates: Sequence[x509.Certificate]) -> list[str]:
    return [c.subject.rfc4514_string() for c in certificates]


def test_self_signed_ca(request_: SigningRequest, root: Authority) -> None:
    certificate = leaf(request_, root)
    issued = check(request_, pem(certificate), pem(root.certificate))
    assert issued.svid.chain == (certificate,)
    assert str(issued.svid.id) == IDENTITY
    assert issued.svid.key.private_numbers() == request_.key.private_numbers()
    assert issued.bundle.authorities == (root.certificate,)
    assert issued.created == NOW - timedelta(seconds=1)


def test_intermediates_stay_in_the_chain_in_order(
    request_: SigningRequest, root: Authority
) -> None:
    middle = root.intermediate("middle")
    lower = middle.intermediate("lower")
    answer = [leaf(request_, lower), lower.certificate, middle.certificate, root.certificate]
    issued = check(request_, *[pem(certificate) for certificate in answer])
    assert names(issued.svid.chain) == ["", "O=lower", "O=middle"]
    assert names(issued.bundle.authorities) == ["O=root"]


def test_chain_in_one_element(request_: SigningRequest, root: Authority) -> None:
    middle = root.intermediate("middle")
    issued = check(request_, pem(leaf(request_, middle), middle.certificate), pem(root.certificate))
    assert names(issued.svid.chain) == ["", "O=middle"]


def test_root_repeated_in_the_chain_is_not_served(
    request_: SigningRequest, root: Authority
) -> None:
    certificate, anchor = pem(leaf(request_, root)), pem(root.certificate)
    assert len(check(request_, certificate, anchor, anchor).svid.chain) == 1


def test_several_roots_in_the_last_element(
    request_: SigningRequest, root: Authority, other: Authority
) -> None:
    roots = pem(other.certificate, root.certificate, other.certificate)
    issued = check(request_, pem(leaf(request_, root)), roots)
    assert names(issued.bundle.authorities) == ["O=other", "O=root"]


def test_intermediate_that_is_also_an_anchor_stays_in_the_chain(
    request_: SigningRequest, root: Authority
) -> None:
    middle = root.intermediate("middle")
    roots = pem(root.certificate, middle.certificate)
    issued = check(request_, pem(leaf(request_, middle)), pem(middle.certificate), roots)
    assert names(issued.svid.chain) == ["", "O=middle"]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_elements(request_: SigningRequest, root: Authority, count: int) -> None:
    with pytest.raises(AnswerIncomplete, match=f"has {count} elements"):
        check(request_, *[pem(leaf(request_, root))][:count])


def test_no_root_but_the_leaf_twice(request_: SigningRequest, root: Authority) -> None:
    certificate = pem(leaf(request_, root))
    with pytest.raises(AnswerUntrusted, match="is not a CA"):
        check(request_, certificate, certificate)


@pytest.mark.parametrize(
    "junk",
    ["", "no pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "\u00e9"],
)
@pytest.mark.parametrize("place", [0, 1])
def test_junk(request_: SigningRequest, root: Authority, junk: str, place: int) -> None:
    answer = [pem(leaf(request_, root)), pem(root.certificate)]
    answer[place] = junk
    with pytest.raises(AnswerUnreadable, match="not a PEM file"):
        check(request_, *answer)


def test_another_identity(request_: SigningRequest, root: Authority) -> None:
    stranger = leaf(request_, root, sans=["spiffe://cluster.local/ns/bar/sa/sleep"])
    with pytest.raises(AnswerForeignIdentity, match=r"ns/bar/sa/sleep where .*ns/foo/sa/httpbin"):
        check(request_, pem(stranger), pem(root.certificate))


def test_the_same_account_in_another_trust_domain(
    request_: SigningRequest, root: Authority
) -> None:
    stranger = leaf(request_, root, sans=["spiffe://other.local/ns/foo/sa/httpbin"])
    with pytest.raises(AnswerForeignIdentity):
        check(request_, pem(stranger), pem(root.certificate))


def test_another_key(request_: SigningRequest, root: Authority) -> None:
    with pytest.raises(AnswerForeignKey, match="another key"):
        check(request_, pem(leaf(request_, root, key=new_key())), pem(root.certificate))


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"sans": [IDENTITY, "spiffe://cluster.local/ns/a/sa/b"]}, id="two IDs"),
        pytest.param({"sans": ["httpbin.foo"]}, id="no ID"),
        pytest.param({"ca": True}, id="a CA"),
        pytest.param({"usage": ("digital_signature", "key_cert_sign")}, id="may sign"),
    ],
)
def test_what_is_no_svid(
    request_: SigningRequest, root: Authority, fault: dict[str, object]
) -> None:
    with pytest.raises(AnswerUnreadable):
        check(request_, pem(leaf(request_, root, **fault)), pem(root.certificate))


def test_other_root_than_the_signer(
    request_: SigningRequest, root: Authority, other: Authority
) -> None:
    with pytest.raises(AnswerUntrusted, match="peers with the roots that came with it"):
        check(request_, pem(leaf(request_, root)), pem(other.certificate))


def test_missing_intermediate(request_: SigningRequest, root: Authority) -> None:
    middle = root.intermediate("middle")
    with pytest.raises(AnswerUntrusted):
        check(request_, pem(leaf(request_, middle)), pem(root.certificate))


def test_stray_leaf_in_the_chain(request_: SigningRequest, root: Authority) -> None:
    certificate = pem(leaf(request_, root))
    with pytest.raises(AnswerUnreadable, match="only CAs may follow"):
        check(request_, certificate, certificate, pem(root.certificate))


def test_expired(request_: SigningRequest, root: Authority) -> None:
    late = leaf(
        request_,
        root,
        not_before=NOW - timedelta(hours=2),
        not_after=NOW - timedelta(seconds=95),
    )
    with pytest.raises(AnswerExpired, match=r"ended 95 s ago.*clock is ahead"):
        check(request_, pem(late), pem(root.certificate))


def test_ends_this_very_second(request_: SigningRequest, root: Authority) -> None:
    with pytest.raises(AnswerExpired, match="ended 0 s ago"):
        check(request_, pem(leaf(request_, root, not_after=NOW)), pem(root.certificate))


def test_not_yet_valid(request_: SigningRequest, root: Authority) -> None:
    early = leaf(request_, root, not_before=NOW + timedelta(seconds=300))
    with pytest.raises(AnswerNotYetValid, match=r"begins 300 s from now.*clock is behind"):
        check(request_, pem(early), pem(root.certificate))


@pytest.mark.parametrize(
    ("shift", "error"), [(-800, AnswerExpired), (800, AnswerNotYetValid)], ids=["past", "future"]
)
def test_root_out_of_its_time(
    request_: SigningRequest, shift: int, error: type[AnswerRefused]
) -> None:
    root = make_root(now=NOW + timedelta(days=shift))
    certificate = leaf(
        request_,
        root,
        not_before=NOW - timedelta(minutes=1),
        not_after=NOW + timedelta(hours=1),
    )
    with pytest.raises(error, match="cannot be used"):
        check(request_, pem(certificate), pem(root.certificate))


def test_every_refusal_has_a_reason_of_its_own() -> None:
    leaves = AnswerRefused.__subclasses__()
    assert len({leaf.reason for leaf in leaves}) == len(leaves) == 7
