"""Writes the TLS credentials of qemu-nbd, which reads the keys again for each connection.

Called by ``NbdTarget`` before a server starts. Only this module writes the secret; it never returns or logs it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from blockstore import private_files
from blockstore.errors import BackendError

KEYS = "keys.psk"
"""The name of the file of keys in an export's directory."""

_SECRET = re.compile(r"[0-9A-Za-z]{16,}", re.ASCII)

# The group ffdhe2048 of RFC 7919. Without this file qemu-nbd generates a group, which may take seconds.
_GROUP = """\
-----BEGIN DH PARAMETERS-----
MIIBDAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAgICAQA=
-----END DH PARAMETERS-----
"""


def write_keys(directory: Path, identity: str, secret: str) -> None:
    """Write the credentials of one identity, readable only for the service's user."""
    if not _SECRET.fullmatch(secret):
        raise BackendError(f"Export {identity} has no usable secret, and its server requires one.")
    _write(directory / KEYS, f"{identity}:{secret.encode().hex()}\n")
    _write(directory / "dh-params.pem", _GROUP)


def _write(path: Path, text: str) -> None:
    with os.fdopen(private_files.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
        file.write(text)
