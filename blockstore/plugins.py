"""Finds the class behind an entry point, for backends and for targets; each failure is one sentence.

Called by the loaders. Refuses what lies where others may write.
"""

from __future__ import annotations

import importlib.metadata
import stat
import sys
from pathlib import Path
from typing import Any

from blockstore.errors import ConfigError


def installed(group: str) -> list[str]:
    """Return the names of the installed plugins of a group."""
    return sorted(importlib.metadata.entry_points(group=group).names)


def find(group: str, name: str, base: type, where: str) -> Any:
    """Return the class of a plugin. Raises ConfigError when it is unknown, broken, or lies where others may write."""
    found = importlib.metadata.entry_points(group=group, name=name)
    if not found:
        raise ConfigError(f"{where} plugin is {name!r}; installed are {', '.join(installed(group))}.")
    try:
        cls = next(iter(found)).load()
    except Exception as exc:
        raise ConfigError(f"{where} the plugin {name} cannot be loaded: {type(exc).__name__}: {exc}") from exc
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ConfigError(f"{where} the plugin {name} is not a subclass of {base.__name__}.")
    _refuse_if_others_may_write(cls, f"{where} the plugin {name}")
    return cls


def _refuse_if_others_may_write(cls: type, what: str) -> None:
    file = getattr(sys.modules[cls.__module__], "__file__", None)
    for path in (Path(file), Path(file).parent) if file else ():
        mode = path.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise ConfigError(f"{what} lies in {path}, which everybody may write; run: chmod o-w {path}")
