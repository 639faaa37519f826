"""Removes our entries from the file that ``targetcli saveconfig`` writes for the next boot.

Used by ``__init__.py``. A saved export of ours would return with its former volume and password, even if the volume has
another owner then. Entries of others are not changed, and the file is written only if it has entries of ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blockstore import private_files
from blockstore.errors import Unreachable

SAVED = Path("/etc/target/saveconfig.json")
"""The file that target.service restores; targetcli writes it on request, and when its shell is left."""

_TRIES = 5


def forget(storage_objects: str, targets: str) -> int:
    """Remove entries whose names have these prefixes; return their number. Raise Unreachable if the file cannot be
    changed."""
    for _ in range(_TRIES):
        before = _stamp()
        if before is None:
            return 0
        try:
            saved = json.loads(SAVED.read_text())
            taken = _take_out(saved, storage_objects, targets)
        except (ValueError, TypeError, AttributeError, KeyError):
            return 0  # damaged, or of another program: target.service restores nothing from it
        except OSError as exc:
            raise Unreachable(f"{SAVED} cannot be read: {exc.strerror}.") from exc
        if not taken:
            return 0
        if _replace(saved, before):
            return taken
    raise Unreachable(f"{SAVED} changes all the time, so the entries of this service cannot be removed.")


def _take_out(saved: dict[str, Any], storage_objects: str, targets: str) -> int:
    taken = 0
    for kind, key, beginning in (("storage_objects", "name", storage_objects), ("targets", "wwn", targets)):
        entries_of_kind = saved.get(kind, [])
        kept = [entry for entry in entries_of_kind if not str(entry[key]).startswith(beginning)]
        taken += len(entries_of_kind) - len(kept)
        if len(kept) < len(entries_of_kind):
            saved[kind] = kept
    return taken


def _replace(saved: dict[str, Any], before: tuple[int, int, int]) -> bool:
    """Write the file as rtslib does, completely or not at all; return False if the file was changed meanwhile."""
    data = json.dumps(saved, sort_keys=True, indent=2).encode() + b"\n"
    try:
        return private_files.write(SAVED, data, temporary=f"{SAVED.name}.blockstore", is_due=lambda: _stamp() == before)
    except OSError as exc:
        raise Unreachable(
            f"{SAVED} names exports of this service, which target.service would restore with their old passwords, and"
            f" cannot be written: {exc.strerror}. Make it writable for root."
        ) from exc


def _stamp() -> tuple[int, int, int] | None:
    """Return inode, time and size, which change with every write of the file; None if there is no file."""
    try:
        found = SAVED.stat()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise Unreachable(f"{SAVED} cannot be read: {exc.strerror}.") from exc
    return found.st_ino, found.st_mtime_ns, found.st_size
