"""Returns the options of a plugin as its own class.

Used by storage and target plugins: the service passes each plugin the options that it parsed for the plugin.
"""

from __future__ import annotations

from typing import TypeVar

from blockstore.errors import ConfigError

Options = TypeVar("Options")


def of_type(expected: type[Options], options: object, where: str) -> Options:
    """Return a section's options as the plugin's own class. Raise ConfigError if they are another plugin's.

    ``where``: the section, for the sentence.
    """
    if not isinstance(options, expected):
        plugin = expected.__name__.removesuffix("Options").lower()
        raise ConfigError(f"{where} needs the options of the plugin {plugin}.")
    return options
