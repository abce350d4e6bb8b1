"""The keys that sign JWT-SVIDs: made, published, used and retired by the clock.

Each key is a file of the state directory, named for the time it was made. A key is published from
then on, used once everybody has had time to hear of it, and removed when nothing that it signed is
alive any more. Replicas of a CA on one directory see the same files and come to the same
conclusions, so they need not talk.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from ca.tokens import key_id
from mesh.errors import ConfigError
from mesh.files import read_file, write_private
from mesh.svid import InvalidSvid, parse_private_key_pem, private_key_pem

KEY_LIFE = timedelta(days=30)
"""After which the next key is made. SPIRE's default is a day, with its life; ours outlives restarts
on disk, where the root's key lies too."""

PUBLISHED_AHEAD = timedelta(hours=1)
"""A new key is known for so long before it signs: SPIFFE wants three to five refresh intervals."""

KEPT_AFTER = timedelta(hours=2)
"""A key is published for so long after the next one has taken over: tokens live an hour at most."""

_NAME = re.compile(r"jwt-key-([0-9]{8}T[0-9]{6})Z\.pem")
_TIME = "%Y%m%dT%H%M%S"


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSigningKey:
    """A key, and when it was made."""

    made: datetime
    key: ec.EllipticCurvePrivateKey

    @property
    def kid(self) -> str:
        """The key's name in tokens and bundles."""
        return key_id(self.key.public_key())


@dataclass(frozen=True, slots=True)
class JwtKeyring:
    """All keys that are there, the oldest first, never none."""

    keys: tuple[JwtSigningKey, ...]

    def signing(self, now: datetime) -> JwtSigningKey:
        """Return the key to sign with: the newest that everybody knows, else the oldest."""
        known = [key for key in self.keys if key.made + PUBLISHED_AHEAD <= now]
        return known[-1] if known else self.keys[0]

    def published(self) -> Mapping[str, ec.EllipticCurvePublicKey]:
        """Return what the bundle shows, by `kid`."""
        return {key.kid: key.key.public_key() for key in self.keys}

    def due(self, now: datetime) -> bool:
        """Tell whether it is time to make the next key."""
        return self.keys[-1].made + KEY_LIFE <= now

    def spent(self, now: datetime) -> tuple[JwtSigningKey, ...]:
        """Return the keys of which nothing is alive any more."""
        return tuple(
            key
            for key, successor in zip(self.keys, self.keys[1:], strict=False)
            if successor.made + PUBLISHED_AHEAD + KEPT_AFTER <= now
        )


def load_jwt_keys(directory: Path, now: datetime) -> JwtKeyring:
    """Load the keys, make the next one if it is time, remove those that are spent.

    Blocks: give it a thread. Raises ConfigError.
    """
    ring = _read(directory)
    if ring is None or ring.due(now):
        _make(directory, now)
        ring = _read(directory)
    if ring is None:
        raise ConfigError(f"{directory} lost its JWT keys while they were made: is it being wiped?")
    spent = ring.spent(now)
    for key in spent:
        with suppress(FileNotFoundError):
            _path(directory, key.made).unlink()
    return JwtKeyring(tuple(key for key in ring.keys if key not in spent))


def _read(directory: Path) -> JwtKeyring | None:
    try:
        names = sorted(path.name for path in directory.iterdir() if _NAME.fullmatch(path.name))
    except OSError as error:
        raise ConfigError(f"cannot read state directory {directory}: {error.strerror}") from error
    keys = tuple(_load(directory / name) for name in names)
    return JwtKeyring(keys) if keys else None


def _load(path: Path) -> JwtSigningKey:
    match = _NAME.fullmatch(path.name)
    data = read_file(path, "JWT key")
    if path.stat().st_mode & 0o007:
        raise ConfigError(f"JWT key {path} is open to every user: run `chmod 600 {path}`")
    try:
        key = parse_private_key_pem(data)
        made = datetime.strptime(match[1] if match else "", _TIME).replace(tzinfo=UTC)
    except (InvalidSvid, ValueError) as error:
        raise ConfigError(f"JWT key {path} cannot be used: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(f"JWT key {path} is not an EC P-256 key, as its algorithm ES256 needs")
    return JwtSigningKey(made=made, key=key)


def _make(directory: Path, now: datetime) -> None:
    """Make a key, unless another replica makes one in the same second."""
    path = _path(directory, now)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_private(draft, private_key_pem(ec.generate_private_key(ec.SECP256R1())))
    try:
        with suppress(FileExistsError):
            path.hardlink_to(draft)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    finally:
        draft.unlink()


def _path(directory: Path, made: datetime) -> Path:
    return directory / f"jwt-key-{made.astimezone(UTC):{_TIME}}Z.pem"
