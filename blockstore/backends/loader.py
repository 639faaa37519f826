"""From an ini section to backends: finds the plugin's entry point, reads its options, makes its instances.

Called by ``service.py`` and the command line. Each failure is one sentence naming section, plugin and option.
"""

from __future__ import annotations

import importlib.metadata
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from blockstore.backends.contract import Backend, BackendOptions
from blockstore.config import BackendSection, parse
from blockstore.errors import ConfigError

GROUP = "blockstore.backends"


def plugins() -> list[str]:
    """Return the names of the installed plugins."""
    return sorted(importlib.metadata.entry_points(group=GROUP).names)


def load(section: BackendSection, state_dir: Path) -> Sequence[Backend]:
    """Return the backends of one section, one for each pool; touches no storage. Raises ConfigError."""
    cls = plugin(section.pool.plugin, section.source)
    return cls.open_pools(section.name, options(section), state_dir)


def options(section: BackendSection) -> BackendOptions:
    """Return the options of a section's plugin. Raises ConfigError."""
    cls = plugin(section.pool.plugin, section.source)
    return parse(cls.Options, section.plugin_options, section.source)


def plugin(name: str, where: str) -> type[Backend]:
    """Return the class of a plugin. Raises ConfigError when it is unknown, broken, or lies where others may write."""
    found = importlib.metadata.entry_points(group=GROUP, name=name)
    if not found:
        raise ConfigError(f"{where} plugin is {name!r}; installed are {', '.join(plugins())}.")
    try:
        cls = next(iter(found)).load()
    except Exception as exc:
        raise ConfigError(f"{where} the plugin {name} cannot be loaded: {type(exc).__name__}: {exc}") from exc
    if not (isinstance(cls, type) and issubclass(cls, Backend)):
        raise ConfigError(f"{where} the plugin {name} is not a subclass of Backend.")
    _refuse_if_others_may_write(cls, f"{where} the plugin {name}")
    return cls


def _refuse_if_others_may_write(cls: type[Backend], what: str) -> None:
    file = getattr(sys.modules[cls.__module__], "__file__", None)
    for path in (Path(file), Path(file).parent) if file else ():
        mode = path.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise ConfigError(f"{what} lies in {path}, which everybody may write; run: chmod o-w {path}")
