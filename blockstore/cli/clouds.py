"""clouds.yaml: the text of one cloud, and its place in a file with other clouds.

The file is edited as text, so that comments and other clouds stay exactly as they are. A file in a form that this
module does not understand is refused and not changed.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockstore import private_files
from blockstore.errors import ConfigError

_CLOUDS = re.compile(r"clouds:[ \t]*(#.*)?")
_CLOUDS_KEY = re.compile(r"""[{\s]*["']?clouds["']?\s*:""")
_TOP_KEY = re.compile(r"[A-Za-z_][\w\-]*:(\s|$)")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_\-]*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def default_file() -> Path:
    """Return the file of this user that openstack and openstacksdk read."""
    named = os.environ.get("OS_CLIENT_CONFIG_FILE")
    return Path(named) if named else Path.home() / ".config" / "openstack" / "clouds.yaml"


def entry(name: str, cloud: Mapping[str, Any], indent: str = "  ") -> list[str]:
    """Return the lines of one cloud, below ``clouds:``."""
    return [f"{indent}{_key(name)}:", *_lines(cloud, indent, indent)]


def document(name: str, cloud: Mapping[str, Any]) -> str:
    """Return the text of a file with one cloud."""
    return "\n".join(["clouds:", *entry(name, cloud), ""])


def merged(text: str, name: str, cloud: Mapping[str, Any], where: str) -> str:
    """Return the text of a file with a cloud added, or replaced if it has that name. Raises ConfigError."""
    if former := _from_json(text):
        return "\n".join(["clouds:", *(line for pair in {**former, name: cloud}.items() for line in entry(*pair)), ""])
    lines = text.splitlines()
    content = [number for number, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    if not any(_CLOUDS_KEY.match(lines[number]) for number in content) and not _documents(lines, content):
        return "\n".join([*lines, document(name, cloud)])
    heads = [number for number in content if _CLOUDS.fullmatch(lines[number].rstrip())]
    strange = [
        number
        for number in content
        if lines[number][0] not in " \t" and not _TOP_KEY.match(lines[number]) and number != content[0]
    ]
    if (
        len(heads) != 1
        or strange
        or _documents(lines, content)
        or any("\t" in lines[number][: _indent(lines[number]) + 1] for number in content)
    ):
        raise ConfigError(
            f"{where} is not a YAML file with all clouds in lines below one line `clouds:`, so nothing was added to"
            " it. Add the cloud by hand: `blockstore clouds-yaml` prints it."
        )
    start = heads[0] + 1
    end = next((number for number in content if number >= start and _indent(lines[number]) == 0), len(lines))
    below = [number for number in content if start <= number < end]
    indent = " " * (_indent(lines[below[0]]) if below else 2)
    names = [number for number in below if _indent(lines[number]) == len(indent)]
    spellings = {f"{spelling}:" for spelling in (name, _key(name), f"'{name}'", json.dumps(name, ensure_ascii=False))}
    ours = [number for number in names if lines[number].split("#")[0].strip() in spellings]
    others = [number for number in names if number not in ours and _name_of(lines[number]) == name]
    if len(ours) > 1 or others or any(_indent(lines[number]) < len(indent) for number in below):
        raise ConfigError(
            f"{where} has the cloud {name} in a form that cannot be replaced, so nothing was changed. Remove that"
            " cloud, or choose another name with --name."
        )
    if not ours:
        last = below[-1] + 1 if below else start
        return "\n".join([*lines[:last], *entry(name, cloud, indent), *lines[last:], ""])
    (first,) = ours
    inside = [number for number in below if number > first and _indent(lines[number]) > len(indent)]
    following = next((number for number in names if number > first), end)
    last = max([number for number in inside if number < following], default=first) + 1
    return "\n".join([*lines[:first], *entry(name, cloud, indent), *lines[last:], ""])


def merge_into(path: Path, name: str, cloud: Mapping[str, Any]) -> None:
    """Put a cloud into a file, which is replaced completely or not at all. Raises ConfigError."""
    try:
        path = path.expanduser().resolve()
        try:
            present: str | None = path.read_text(encoding="utf-8")
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            present, mode = None, 0o600
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = document(name, cloud) if present is None else merged(present, name, cloud, str(path))
        private_files.write(path, text.encode(), mode=mode)
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text, so nothing was added to it.") from None
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}.") from exc


def _documents(lines: list[str], content: list[int]) -> bool:
    """Return True if the text is anything but one document of keys at its left edge."""
    if not content:
        return False
    first = lines[content[0]]
    return not (first.rstrip() == "---" or _TOP_KEY.match(first))


def _from_json(text: str) -> dict[str, Any] | None:
    """Return the clouds of a file in JSON, as `blockstore clouds-yaml` once printed it."""
    try:
        read = json.loads(text)
    except ValueError:
        return None
    found = read.get("clouds") if isinstance(read, dict) and len(read) == 1 else None
    return found if isinstance(found, dict) and all(isinstance(cloud, dict) for cloud in found.values()) else None


def _lines(values: Mapping[str, Any], indent: str, step: str) -> list[str]:
    indent += step
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{_key(key)}:", *_lines(value, indent, step)]
        else:
            lines.append(f"{indent}{_key(key)}: {_scalar(value)}")
    return lines


def _scalar(value: Any) -> str:
    # A string of JSON is one of YAML, but for pairs of surrogates and characters that YAML wants escaped.
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def _key(name: str) -> str:
    return name if _PLAIN.fullmatch(name) and name.lower() not in _WORDS else _scalar(name)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _name_of(line: str) -> str:
    return line.split(":", 1)[0].strip().strip("\"'")
