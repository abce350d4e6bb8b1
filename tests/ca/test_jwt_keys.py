from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from ca.jwt_keys import (
    KEPT_AFTER,
    KEY_LIFE,
    PUBLISHED_AHEAD,
    JwtKeyring,
    JwtSigningKey,
    load_jwt_keys,
)
from mesh.errors import ConfigError
from tests.pki import NOW, make_root, new_key, svid_pem

FIRST = JwtSigningKey(made=NOW, key=new_key())
SECOND = JwtSigningKey(made=NOW + KEY_LIFE, key=new_key())
BOTH = JwtKeyring((FIRST, SECOND))


def test_the_first_key_signs_at_once() -> None:
    assert JwtKeyring((FIRST,)).signing(NOW) is FIRST


def test_the_next_key_signs_when_everybody_knows_it() -> None:
    taken_over = SECOND.made + PUBLISHED_AHEAD
    assert BOTH.signing(taken_over - timedelta(seconds=1)) is FIRST
    assert BOTH.signing(taken_over) is SECOND
    assert set(BOTH.published()) == {FIRST.kid, SECOND.kid}


def test_the_old_key_is_spent_when_its_tokens_are_dead() -> None:
    dead = SECOND.made + PUBLISHED_AHEAD + KEPT_AFTER
    assert BOTH.spent(dead - timedelta(seconds=1)) == ()
    assert BOTH.spent(dead) == (FIRST,)
    assert JwtKeyring((FIRST,)).spent(NOW + timedelta(days=999)) == ()


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_life_of_keys_on_disk(tmp_path: Path) -> None:
    ring = load_jwt_keys(tmp_path, NOW)
    assert files(tmp_path) == ["jwt-key-20260601T120000Z.pem"]
    assert (tmp_path / files(tmp_path)[0]).stat().st_mode & 0o777 == 0o600
    again = load_jwt_keys(tmp_path, NOW + KEY_LIFE - timedelta(seconds=1))
    assert again.published() == ring.published()
    later = load_jwt_keys(tmp_path, NOW + KEY_LIFE)
    assert len(later.keys) == 2
    assert later.keys[0].kid == ring.keys[0].kid
    end = load_jwt_keys(tmp_path, NOW + KEY_LIFE + PUBLISHED_AHEAD + KEPT_AFTER)
    assert [key.kid for key in end.keys] == [later.keys[1].kid]
    assert files(tmp_path) == ["jwt-key-20260701T120000Z.pem"]


def test_replicas_that_start_together_have_one_key(tmp_path: Path) -> None:
    first, second = load_jwt_keys(tmp_path, NOW), load_jwt_keys(tmp_path, NOW)
    assert first.published() == second.published()


@pytest.mark.parametrize("fault", ["not a key", "open", "a chain"])
def test_odd_keys_stop_the_start(tmp_path: Path, fault: str) -> None:
    load_jwt_keys(tmp_path, NOW)
    path = tmp_path / "jwt-key-20260601T120000Z.pem"
    if fault == "open":
        path.chmod(0o644)
    else:
        svid = make_root().issue("spiffe://cluster.local/x")
        path.write_bytes(b"junk" if fault == "not a key" else svid_pem(svid)[0])
    with pytest.raises(ConfigError, match="JWT key"):
        load_jwt_keys(tmp_path, NOW)
