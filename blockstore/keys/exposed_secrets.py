"""Finds secrets of the configuration that every user of this machine can read; the start warns of them.

Checks secret options, passwords inside URLs, and the key files that options name.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blockstore.backends import loader
from blockstore.config import SECTIONS, Config
from blockstore.targets import loader as target_loader

_PASSWORD_IN_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/@\s]*:[^/@\s]+@|[?&]password=[^&\s]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def warnings(config: Config) -> list[str]:
    """Return a sentence for each file whose secrets every user can read. Raises ConfigError."""
    sentences = []
    options = list(_options(config))
    if config.source != Config.source and _is_open(Path(config.source)):
        names = [where for where, metadata, value in options if _is_secret(metadata, value)]
        if names:
            sentences.append(_sentence(Path(config.source), ", ".join(names)))
    for where, metadata, value in options:
        if metadata.get("secret_file") and isinstance(value, Path) and _is_open(value):
            sentences.append(_sentence(value, where))
    return sentences


def _options(config: Config) -> Iterator[tuple[str, Any, object]]:
    """Yield each option's section and name, its metadata, and its value."""
    parts: list[tuple[str, object]] = [(section, getattr(config, section)) for section in SECTIONS]
    parts += [(f"backend:{section.name}", loader.options(section)) for section in config.backends]
    parts += [(f"target:{section.name}", target_loader.options(section)) for section in config.targets]
    for section, part in parts:
        for f in dataclasses.fields(part):  # type: ignore[arg-type]
            yield f"[{section}] {f.name}", f.metadata, getattr(part, f.name)


def _is_secret(metadata: Any, value: object) -> bool:
    text = str(value or "")
    if _URL.match(text):
        return bool(_PASSWORD_IN_URL.search(text))
    return bool(metadata.get("secret") and text)


def _is_open(file: Path) -> bool:
    try:
        return bool(file.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False  # the code that opens the file reports this


def _sentence(file: Path, what: str) -> str:
    name = shlex.quote(str(file))
    mine = file.stat().st_uid == os.geteuid()
    cure = f"chmod 600 {name}" if mine else f"chown {os.geteuid()} {name} && chmod 600 {name}"
    return f"{file} holds secrets ({what}), and every user of this machine can read it; run: {cure}"
