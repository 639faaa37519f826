"""Makes backends from a configuration section: parses the options of its plugin and makes the instances.

Called by ``app/service.py`` and the command line. Each failure is one sentence naming section, plugin and option.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blockstore.backends.contract import Backend, BackendOptions
from blockstore.config import BackendSection, parse
from blockstore.plugins import find, installed

GROUP = "blockstore.backends"


def plugins() -> list[str]:
    """Return the names of the installed plugins."""
    return installed(GROUP)


def load(section: BackendSection, state_dir: Path) -> Sequence[Backend]:
    """Return the backends of one section, one for each pool; does not access the storage. Raises ConfigError."""
    cls = plugin(section.pool.plugin, section.source)
    return cls.open_pools(section.name, options(section), state_dir)


def options(section: BackendSection) -> BackendOptions:
    """Return the options of a section's plugin. Raises ConfigError."""
    return parse(plugin(section.pool.plugin, section.source).Options, section.plugin_options, section.source)


def plugin(name: str, where: str) -> type[Backend]:
    """Return the class of a plugin. Raise ConfigError if it is unknown, broken, or others may change its files."""
    found: type[Backend] = find(GROUP, name, Backend, where)
    return found
