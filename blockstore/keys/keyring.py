"""The secrets of attachments, made from one key file and stored nowhere.

An attachment's secret is a function of the key and the attachment's id. So the database, its copies and its backups
contain no secrets, not even encrypted, and a restored export has the secret that its initiator knows.
Made by ``app/service.py``; used by the manager for exports and by the API for the one reply that has the secret.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import os
import stat
from pathlib import Path

from blockstore import private_files
from blockstore.errors import ConfigError

KEY_BYTES = 32
SECRET_LENGTH = 16
"""Letters and digits: 95 bits. Some initiators take no more characters, and none takes fewer than 12."""


class Keyring:
    """One key file of mode 0600."""

    def __init__(self, path: Path) -> None:
        """Keep the path; the file is read, or made, when it is first needed."""
        self._path = path

    @property
    def owner(self) -> str:
        """Return the unique id of this installation. It reveals nothing about the key."""
        return self._derive("owner").hex()[:8]

    def secret(self, attachment_id: str) -> str:
        """Return the secret of an attachment: 16 letters and digits. Raise ConfigError if the key cannot be read."""
        # At most a third of a base64 text is + and /, so 64 bytes leave more than enough.
        text = base64.b64encode(self._derive(f"attachment {attachment_id}")).decode()
        return "".join(c for c in text if c.isalnum())[:SECRET_LENGTH]

    def _derive(self, purpose: str) -> bytes:
        return hmac.digest(self._key, purpose.encode(), hashlib.sha512)

    @functools.cached_property
    def _key(self) -> bytes:
        with private_files.explained(self._path.parent, "which holds the key of all secrets"):
            if not os.path.lexists(self._path):
                private_files.write(self._path, os.urandom(KEY_BYTES).hex().encode() + b"\n", replace=False)
            return self._read()

    def _read(self) -> bytes:
        fd = private_files.open_file(self._path, names=2)  # another process may be about to finish the file
        try:
            if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
                raise ConfigError(
                    f"{self._path} holds the key of all secrets and can be read by others: change its mode to 600."
                )
            key = bytes.fromhex(os.read(fd, 4096).decode("ascii"))
        except ValueError:
            key = b""
        finally:
            os.close(fd)
        if len(key) != KEY_BYTES:
            raise ConfigError(f"{self._path} is not a key of {KEY_BYTES} bytes in hexadecimal; restore a copy of it.")
        return key
