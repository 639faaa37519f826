"""Each plugin takes options of its own class, and says so of any others."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blockstore.backends.contract import BackendOptions
from blockstore.backends.options import of_type
from blockstore.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OtherOptions(BackendOptions):
    """Options of no plugin."""


def test_options_of_the_class_are_given_back() -> None:
    options = OtherOptions()
    assert of_type(BackendOptions, options, "[backend:b]") is options
    assert of_type(OtherOptions, options, "[backend:b]") is options


@pytest.mark.parametrize("group", ["blockstore.backends", "blockstore.targets"])
def test_every_plugin_refuses_the_options_of_another(group: str, tmp_path: Path) -> None:
    section = group.removeprefix("blockstore.").removesuffix("s")
    for entry in importlib.metadata.entry_points(group=group):
        cls: Any = entry.load()
        more = ("owner",) if section == "target" else ()
        with pytest.raises(ConfigError) as caught:
            cls("name", OtherOptions(), tmp_path, *more)
        assert str(caught.value) == f"[{section}:name] needs the options of the plugin {entry.name}."
