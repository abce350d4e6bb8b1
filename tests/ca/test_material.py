from __future__ import annotations

import fcntl
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

import ca.state
from ca.material import Material, load_or_create, load_token_key
from ca.state import CA_CERT, CA_KEY, LOCK, ROOT_CERT, TOKEN_KEY, VERSION_FILE
from mesh.errors import ConfigError
from mesh.spiffe import TrustDomain
from mesh.svid import certificates_pem, private_key_pem
from tests.ca.workshop import CLUSTER, make_authority, needs_openssl, openssl
from tests.pki import NOW, Leaf, make_root, new_key

FILES = {CA_KEY, CA_CERT, ROOT_CERT, TOKEN_KEY, VERSION_FILE}


def load(directory: Path) -> Material:
    return load_or_create(directory, CLUSTER, NOW)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A directory in which a CA was started once."""
    load(tmp_path / "state")
    return tmp_path / "state"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_first_start_makes_everything_and_the_second_reads_it(tmp_path: Path) -> None:
    first = load(tmp_path / "state")
    assert first.created
    assert {path.name for path in (tmp_path / "state").iterdir()} == FILES | {LOCK}
    second = load(tmp_path / "state")
    assert not second.created
    assert second.signer.certificate == first.signer.certificate
    assert second.signer.key.private_numbers() == first.signer.key.private_numbers()
    assert second.token_key.private_numbers() == first.token_key.private_numbers()
    assert second.roots == first.roots


def test_keys_are_for_their_owner_alone_and_certificates_for_all(state: Path) -> None:
    assert mode(state) == 0o700
    assert mode(state / CA_KEY) == 0o600
    assert mode(state / TOKEN_KEY) == 0o600
    assert mode(state / CA_CERT) == 0o644
    assert mode(state / ROOT_CERT) == 0o644


def test_the_root_is_a_p256_certificate_for_ten_years(state: Path) -> None:
    material = load(state)
    root = material.signer.certificate
    assert material.roots.authorities == (root,)
    assert isinstance(root.public_key(), ec.EllipticCurvePublicKey)
    assert root.not_valid_after_utc == NOW + timedelta(days=3650)


@needs_openssl
def test_the_openssl_command_accepts_the_root(state: Path) -> None:
    at = str(int(NOW.timestamp()))
    done = openssl(
        "verify", "-x509_strict", "-check_ss_sig", "-attime", at, "-CAfile", ROOT_CERT, CA_CERT,
        cwd=state,
    )  # fmt: skip
    assert done == b"ca-cert.pem: OK\n"


def test_a_second_start_needs_no_right_to_write(state: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in state.iterdir()}
    (state / LOCK).unlink()
    load(state)
    del before[LOCK]
    assert {path.name: path.stat().st_mtime_ns for path in state.iterdir()} == before


@pytest.mark.parametrize("lost", [CA_KEY, CA_CERT, ROOT_CERT])
def test_a_part_of_a_ca_is_refused_and_left_alone(state: Path, lost: str) -> None:
    (state / lost).unlink()
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    with pytest.raises(ConfigError, match=f"{lost} missing"):
        load(state)
    assert {path.name: path.read_bytes() for path in state.iterdir()} == before


def test_a_lost_token_key_is_made_anew_which_ends_all_old_tokens(state: Path) -> None:
    first = load(state)
    (state / TOKEN_KEY).unlink()
    second = load(state)
    assert not second.created
    assert second.signer.certificate == first.signer.certificate
    assert second.token_key.public_key() != first.token_key.public_key()


def replace(path: Path, data: bytes) -> None:
    path.write_bytes(data)  # keeps the mode


def test_a_key_of_another_ca_is_refused(state: Path) -> None:
    replace(state / CA_KEY, private_key_pem(new_key()))
    with pytest.raises(ConfigError, match="is not the key of"):
        load(state)


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        pytest.param(CA_KEY, b"", "unencrypted PEM private key", id="key-empty"),
        pytest.param(CA_KEY, b"junk", "unencrypted PEM private key", id="key-junk"),
        pytest.param(CA_CERT, b"junk", "not a PEM file of certificates", id="cert-junk"),
        pytest.param(ROOT_CERT, b"", "not a PEM file of certificates", id="root-empty"),
        pytest.param(TOKEN_KEY, b"junk", "unencrypted PEM private key", id="token-junk"),
        pytest.param(
            TOKEN_KEY,
            private_key_pem(ec.generate_private_key(ec.SECP384R1())),
            "is not an EC P-256 key",
            id="token-p384",
        ),
        pytest.param(
            ROOT_CERT, make_root().pem, "does not contain the certificate", id="root-other"
        ),
        pytest.param(ROOT_CERT, b"x" * 2_000_000, "larger than", id="root-huge"),
    ],
)
def test_files_that_cannot_be_used(state: Path, name: str, data: bytes, sentence: str) -> None:
    replace(state / name, data)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(state)
    assert str(state / name) in str(caught.value)


def test_encrypted_and_odd_keys_are_refused(state: Path) -> None:
    secret = new_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    odd = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    for data in (secret, odd):
        replace(state / CA_KEY, data)
        with pytest.raises(ConfigError, match=CA_KEY):
            load(state)


def test_a_key_that_everyone_may_read_is_refused(state: Path) -> None:
    for name in (CA_KEY, TOKEN_KEY):
        (state / name).chmod(0o644)
        with pytest.raises(ConfigError, match="chmod 600"):
            load(state)
        (state / name).chmod(0o640)
        load(state)


def put_root(state: Path, root: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    pem = certificates_pem([root])
    replace(state / CA_KEY, private_key_pem(key))
    replace(state / CA_CERT, pem)
    replace(state / ROOT_CERT, pem)


def test_the_root_of_another_trust_domain_is_refused(state: Path) -> None:
    with pytest.raises(ConfigError, match=r"'O=cluster\.local', not that of trust domain other"):
        load_or_create(state, TrustDomain("other"), NOW)


def test_an_expired_root_is_refused(state: Path) -> None:
    with pytest.raises(ConfigError, match="cannot sign: the certificate is valid from"):
        load_or_create(state, CLUSTER, NOW + timedelta(days=3650))


def test_a_leaf_in_place_of_the_root_is_refused(state: Path) -> None:
    leaf = Leaf(subject="cluster.local", key=new_key())
    assert isinstance(leaf.key, ec.EllipticCurvePrivateKey)
    put_root(state, make_root().sign(leaf), leaf.key)
    with pytest.raises(ConfigError, match="not a CA certificate"):
        load(state)


def test_a_ca_that_is_not_self_signed_is_refused(state: Path) -> None:
    middle = make_root().intermediate("cluster.local")
    put_root(state, middle.certificate, middle.key)
    with pytest.raises(ConfigError, match="it is no root"):
        load(state)


def test_two_certificates_in_place_of_one_are_refused(state: Path) -> None:
    pem = (state / CA_CERT).read_bytes()
    replace(state / CA_CERT, pem + pem)
    with pytest.raises(ConfigError, match="holds 2 certificates"):
        load(state)


def test_more_roots_may_be_published_than_sign(state: Path) -> None:
    other = make_authority().signer.certificate
    replace(state / ROOT_CERT, (state / ROOT_CERT).read_bytes() + certificates_pem([other]))
    material = load(state)
    assert material.roots.authorities == (material.signer.certificate, other)


def test_a_directory_whose_parent_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        load(tmp_path / "not" / "there")


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigError, match=str(tmp_path / "state")):
        load(tmp_path / "state")


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(ConfigError, match="writable by others"):
        load(tmp_path / "state")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        load(tmp_path / "state")


def test_a_directory_in_which_nothing_can_be_made_is_refused() -> None:
    """Nobody can make files there, not even root."""
    with pytest.raises(ConfigError, match="cannot write to state directory /proc/self/fdinfo"):
        load(Path("/proc/self/fdinfo"))


def test_a_symlink_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot write to state directory"):
        load(state)
    assert not (tmp_path / "elsewhere").exists()


def test_cas_that_start_together_agree_on_one_root(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def start(_: int) -> Material:
        together.wait()
        return load(tmp_path / "state")

    with ThreadPoolExecutor(8) as pool:
        started = list(pool.map(start, range(8)))
    assert len({material.signer.certificate for material in started}) == 1
    assert len({material.token_key.private_numbers().private_value for material in started}) == 1
    assert [material.created for material in started].count(True) == 1
    assert {path.name for path in (tmp_path / "state").iterdir()} == FILES | {LOCK}


def test_a_lock_held_too_long_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca.state, "LOCK_PATIENCE", 0.05)
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    with (state / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process has held"):
            load(state)
    assert load(state).created


def test_a_token_key_before_the_first_start_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="remora ca serve --state-dir"):
        load_token_key(tmp_path)
    with pytest.raises(ConfigError, match="cannot read state directory"):
        load_token_key(tmp_path / "typo")
    assert list(tmp_path.iterdir()) == []
