"""The locked requirements: each that setup.cfg names is in them, in a version that it allows, and with hashes."""

from __future__ import annotations

import configparser
import re
import tomllib
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .conftest import ROOT

SERVING = ("keystone", "lio", "openapi", "policy", "postgresql")


def wanted(lock: str) -> Iterator[Requirement]:
    """Yield what a lock must hold."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["install_requires"].splitlines()
    if lock == "full":
        for extra in SERVING:
            lines += parser["options.extras_require"][extra].splitlines()
    lines += tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    yield from (Requirement(line) for line in lines if line.strip())


def pinned(lock: str) -> dict[str, tuple[str, int]]:
    """Return version and number of hashes by name."""
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    found = {}
    for entry in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE):
        if match := re.match(r"([a-z0-9-]+)==(\S+)", entry):
            found[match[1]] = (match[2], entry.count("--hash=sha256:"))
        else:
            assert entry.startswith("#"), entry
    return found


@pytest.mark.parametrize("lock", ["base", "full"])
def test_lock_agrees_with_setup_cfg(lock: str) -> None:
    found = pinned(lock)
    for requirement in wanted(lock):
        name = canonicalize_name(requirement.name)
        assert name in found, f"requirements/{lock}.lock lacks {name}: make lock"
        version, _ = found[name]
        assert version in requirement.specifier, f"requirements/{lock}.lock has {name} {version}: make lock"


@pytest.mark.parametrize("lock", ["base", "full"])
def test_everything_in_a_lock_has_hashes(lock: str) -> None:
    assert [name for name, (_, hashes) in pinned(lock).items() if hashes == 0] == []


def test_locks_agree_with_each_other() -> None:
    base, full = pinned("base"), pinned("full")
    assert base == {name: full.get(name) for name in base}


def test_every_extra_that_a_service_uses_is_locked() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    assert set(parser["options.extras_require"]) - {"clients", "dev"} == set(SERVING)
    (line,) = re.findall(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert tuple(line.split()) == SERVING
