"""Makes a target from its configuration section: parses the options of its plugin and makes the instance.

Called by ``app/service.py`` and the command line. Each failure is one sentence naming section, plugin and option.
"""

from __future__ import annotations

from pathlib import Path

from blockstore.config import TargetSection, parse
from blockstore.plugins import find
from blockstore.targets.contract import Target, TargetOptions

GROUP = "blockstore.targets"


def load(section: TargetSection, state_dir: Path, owner: str) -> Target:
    """Return the target of one section; change nothing. Raises ConfigError."""
    cls = plugin(section.plugin, section.source)
    return cls(section.name, options(section), state_dir, owner)


def options(section: TargetSection) -> TargetOptions:
    """Return the options of a section's plugin. Raises ConfigError."""
    return parse(plugin(section.plugin, section.source).Options, section.plugin_options, section.source)


def plugin(name: str, where: str) -> type[Target]:
    """Return the class of a plugin. Raise ConfigError if it is unknown, broken, or others may change its files."""
    found: type[Target] = find(GROUP, name, Target, where)
    return found
