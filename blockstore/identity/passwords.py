"""Passwords and secrets of application credentials, kept as Argon2id hashes only."""

from __future__ import annotations

import base64
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

MAX_LENGTH = 4096

# The first choice of OWASP's password storage cheat sheet: some 20 ms, and 19 MiB for each running login.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)


def hashed(password: str) -> str:
    """Return the hash to store for a password."""
    return _HASHER.hash(password)


def matches(kept: str | None, password: str) -> bool:
    """Return True if a password matches the stored hash; False, after as long a time, if there is none."""
    try:
        return _HASHER.verify(kept or _NOBODY, password) and kept is not None
    except (VerificationError, InvalidHashError):
        return False


def _unmatched() -> str:
    """Return a hash that no password matches, and that takes as long to compare as any other."""
    salt, digest = (base64.b64encode(secrets.token_bytes(size)).rstrip(b"=").decode() for size in (16, 32))
    cost = f"m={_HASHER.memory_cost},t={_HASHER.time_cost},p={_HASHER.parallelism}"
    return f"$argon2id$v=19${cost}${salt}${digest}"


_NOBODY = _unmatched()
