"""Finds the classes behind entry points, for backends, targets, filters and weighers; each failure is one sentence.

Called by the loaders. A plugin is imported only if no untrusted user can change its files or the directories above
them. Trusted are root, this user, and the owner of blockstore's own code, since that code runs already.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoints
from pathlib import Path
from typing import Any

from blockstore.errors import ConfigError
from blockstore.trusted_paths import user_name, weak_place

CODE = Path(__file__).resolve().parent


def entry_points(group: str) -> EntryPoints:
    """Return the installed entry points of a group."""
    return _groups(tuple(sys.path)).get(group, EntryPoints())


@functools.cache
def _groups(_path: tuple[str, ...]) -> dict[str, EntryPoints]:
    # Cached, because each search reads a file of every installed package.
    found = importlib.metadata.entry_points()
    return {group: found.select(group=group) for group in found.groups if group.startswith("blockstore.")}


def installed(group: str) -> list[str]:
    """Return the names of the installed plugins of a group."""
    return sorted(entry_points(group).names)


def find(group: str, name: str, base: type, where: str) -> Any:
    """Return the class of a plugin. Raise ConfigError if it is unknown, broken, or others may change its files."""
    found = entry_points(group).select(name=name)
    if not found:
        raise ConfigError(f"{where} plugin is {name!r}; installed are {', '.join(installed(group))}.")
    entry = next(iter(found))
    prove(entry, f"{where} the plugin {name}")
    try:
        cls = entry.load()
    except Exception as exc:
        raise ConfigError(f"{where} the plugin {name} cannot be loaded: {type(exc).__name__}: {exc}") from exc
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ConfigError(f"{where} the plugin {name} is not a subclass of {base.__name__}.")
    return cls


def prove(entry: importlib.metadata.EntryPoint, what: str) -> None:
    """Raise ConfigError if an untrusted user could change the code behind an entry point.

    Does not import the module. Imports the packages above it, to find it, each after its own check.
    """
    owners = trusted_owners()
    parts = entry.module.split(".")
    if parts[0] == __package__:
        return  # it is part of blockstore, which runs already
    if entry.dist is not None:
        _refuse_weak(Path(str(entry.dist.locate_file(""))), owners, what)
    for depth in range(1, len(parts) + 1):
        try:
            spec = importlib.util.find_spec(".".join(parts[:depth]))
        except Exception:
            return  # the import reports the reason better
        if spec is None:
            return
        for path in _files(spec):
            _refuse_weak(path, owners, what)


def trusted_owners() -> frozenset[int]:
    """Return the ids of the users whose code may run here: root, this user, the owner of blockstore's own code."""
    return frozenset({0, os.geteuid(), CODE.stat().st_uid})


def foreign_code() -> str | None:
    """Return a warning if another user owns the code of this process, and so can do all that this user can."""
    owner = CODE.stat().st_uid
    if owner in (0, os.geteuid()):
        return None
    return (
        f"{user_name(os.geteuid())} runs the code in {CODE}, which belongs to {user_name(owner)}: users who can change"
        f" this code have all rights of {user_name(os.geteuid())}. To prevent that, install blockstore as root"
    )


def _files(spec: Any) -> Iterator[Path]:
    """Yield the file of a module; for a package, its directory and the code files in it."""
    if spec.origin and spec.has_location:
        yield Path(spec.origin)
        yield Path(spec.origin).with_name("__pycache__")  # Python reads bytecode there instead of the source
    for folder in spec.submodule_search_locations or ():
        yield Path(folder)
        # The package may import these. Subpackages that an entry point names are checked at their own depth.
        inside = Path(folder).iterdir() if Path(folder).is_dir() else ()
        yield from (path for path in list(inside) if path.suffix in (".py", ".so"))


def _refuse_weak(path: Path, owners: frozenset[int], what: str) -> None:
    if reason := _weak(path, owners):
        raise ConfigError(f"{what} is not loaded from {path}: {reason}.")


@functools.cache
def _weak(path: Path, owners: frozenset[int]) -> str | None:
    return weak_place(path, owners)
