"""The mark files of a directory of volumes: its identity, and the installation that uses it.

    .blockstore-identity    the identity, also on another disk or path; made once
    .blockstore-owner       the id of the installation

A mark is the first word of a small file. If a kill interrupts its creation, the file may have two names for a while.
"""

from __future__ import annotations

import secrets
import threading
from contextlib import suppress

from blockstore_plugins.directory import files
from blockstore_plugins.directory.files import Folder, temporary_name

OWNER = ".blockstore-owner"
IDENTITY = ".blockstore-identity"

_marking = threading.Lock()
"""Held while a mark is changed: several sections of one installation may use the same directory."""


def read(root: Folder, name: str) -> str | None:
    """Return the value of a mark, read from the storage; None if the mark is missing."""
    try:
        return next(iter(root.read_fresh(name, 64, names=2).decode("ascii", "replace").split()), None)
    except FileNotFoundError:
        return None


def change_owner(root: Folder, former: str | None, owner: str | None) -> None:
    """Replace the owner ``former`` by ``owner``, and give an identity to a directory without one.

    Do nothing if the directory has another owner than ``former``. None stands for no owner.
    """
    with _marking:
        if read(root, OWNER) != former:
            return
        if owner is None:
            root.remove(OWNER)
            root.sync()
            return
        if read(root, IDENTITY) is None:  # before the owner: a former owner may exist without an identity
            _make_once(root, IDENTITY, f".identity-{owner}", _identity(secrets.token_hex(8)))
        if former is None:
            _make_once(root, OWNER, f".owner-{owner}", _owner(owner))
        elif former != owner:
            for left in (*root.hidden(".owner-"), *root.hidden(".identity-")):  # left by a kill, with two names
                root.remove(left)
            with root.building(OWNER, temporary_name(f"owner-{owner}")) as fd:
                files.write_start(fd, _owner(owner))
        root.sync()


def _make_once(root: Folder, name: str, fresh: str, text: bytes) -> None:
    """Make a mark unless it exists; if two processes make it at once, the first mark stays."""
    with root.building(fresh, temporary_name(fresh.removeprefix("."))) as fd:
        files.write_start(fd, text)
    with suppress(FileExistsError):
        root.link(fresh, name)
    root.remove(fresh)


def _owner(owner: str) -> bytes:
    return f"{owner}\nThe installation of blockstore that uses this directory; see `blockstore backend`.\n".encode()


def _identity(word: str) -> bytes:
    return (
        f"{word}\nBy this blockstore knows the directory, wherever it is mounted; see `blockstore backend`.\n".encode()
    )
