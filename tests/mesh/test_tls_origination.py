"""Servers that are known by their names and by the user's roots."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mesh.tls import ClientCertificate, TlsContext, TlsSession, server_context
from mesh.tls_origination import UserCredential, names_verifier, origination_context
from mesh.verify import PeerRejected
from tests.pki import NOW, Authority, Leaf, make_root


@pytest.fixture(scope="module")
def root() -> Authority:
    return make_root("the user's CA")


def server(root: Authority, *names: str, demanding: bool = False) -> TlsContext:
    leaf = Leaf(sans=names)
    credential = UserCredential(chain=(root.sign(leaf),), key=leaf.key)
    mode = ClientCertificate.REQUIRED if demanding else ClientCertificate.NONE
    return server_context(
        credential,
        root.bundle(),
        client_certificate=mode,
    )


def shake(client: TlsContext, far: TlsContext) -> tuple[TlsSession, TlsSession]:
    near_end, far_end = client.session(NOW, server_name="x.test"), far.session(NOW)
    done = [False, False]
    while not all(done):
        done = [near_end.handshake(), far_end.handshake()]
        far_end.feed(near_end.pending_output())
        near_end.feed(far_end.pending_output())
    return near_end, far_end


@pytest.mark.parametrize(
    ("expected", "shown"),
    [
        (["a.test"], ["a.test"]),
        (["A.test"], ["a.TEST"]),
        (["a.test"], ["b.test", "a.test"]),
        (["c.test", "a.test"], ["a.test"]),
        (["a.test"], ["*.test"]),
        (["10.0.0.1"], ["10.0.0.1"]),
        (["::1"], ["0:0::1"]),
        (["spiffe://td/x"], ["spiffe://td/x"]),
    ],
)
def test_a_server_with_an_expected_name_is_believed(
    root: Authority, expected: Sequence[str], shown: Sequence[str]
) -> None:
    client = origination_context(names=expected, roots=[root.certificate])
    near, far = shake(client, server(root, *shown))
    assert far.server_name == "x.test"
    near.write(b"hello")
    far.feed(near.pending_output())
    assert far.read() == b"hello"


@pytest.mark.parametrize(
    ("expected", "shown"),
    [
        (["a.test"], ["b.test"]),
        (["a.b.test"], ["*.test"]),
        (["test"], ["*.test"]),
        (["*.test"], ["a.test"]),
        (["a.test"], ["a.test.evil"]),
        (["10.0.0.1"], ["10.0.0.2"]),
        (["10.0.0.1"], ["a.test"]),
        (["spiffe://td/x"], ["spiffe://td/X"]),
        ([], ["a.test"]),
        (["a.test"], []),
    ],
)
def test_any_other_server_is_refused(
    root: Authority, expected: Sequence[str], shown: Sequence[str]
) -> None:
    client = origination_context(names=expected, roots=[root.certificate])
    with pytest.raises(PeerRejected, match="the server's certificate is for"):
        shake(client, server(root, *shown))


def test_a_server_of_another_ca_is_refused(root: Authority) -> None:
    client = origination_context(names=["a.test"], roots=[root.certificate])
    with pytest.raises(PeerRejected, match="not trusted"):
        shake(client, server(make_root("evil"), "a.test"))


def test_the_systems_roots_do_not_include_the_users(root: Authority) -> None:
    with pytest.raises(PeerRejected, match="not trusted"):
        shake(origination_context(names=["a.test"]), server(root, "a.test"))


def test_a_certificate_is_shown_when_there_is_one(root: Authority) -> None:
    leaf = Leaf(sans=["spiffe://cluster.local/ns/foo/sa/user"])
    credential = UserCredential(chain=(root.sign(leaf),), key=leaf.key)
    client = origination_context(names=["a.test"], roots=[root.certificate], credential=credential)
    _, far = shake(client, server(root, "a.test", demanding=True))
    assert far.peer_chain[0] == credential.leaf


def test_without_verification_anybody_is_believed(root: Authority) -> None:
    client = origination_context(names=["a.test"], roots=[], verify=False)
    shake(client, server(make_root("evil"), "b.test"))


def test_a_certificate_without_names_matches_nothing(root: Authority) -> None:
    with pytest.raises(PeerRejected, match=r"for no name, and not for a\.test"):
        names_verifier(["a.test"])([root.certificate])
