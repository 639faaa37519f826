"""Plugins that others could change are not imported: not for a moment, whatever leads to them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blockstore import plugins
from blockstore.backends.contract import Backend
from blockstore.errors import ConfigError
from blockstore.scheduler import loading
from tests.plugins.mounts import need_root

CODE = """
import pathlib
pathlib.Path(__file__).with_name("imported").touch()
from blockstore.backends.memory import MemoryBackend as Planted
def filter(request, pool): return None
"""

Plant = Callable[[], Path]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a distribution with a backend and a filter, in a package; return the directory it is in."""
    site = tmp_path / "lib" / "site"
    package = site / "planted_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("")
    (package / "inside.py").write_text(CODE)
    info = site / "planted-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[blockstore.backends]\nplanted = planted_package.inside:Planted\n"
        "[blockstore.scheduler.filters]\nplanted = planted_package.inside:filter\n"
    )
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(site))
    plugins._weak.cache_clear()
    return site


@pytest.fixture(autouse=True)
def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "planted_package"]:
        del sys.modules[name]


def find() -> object:
    return plugins.find("blockstore.backends", "planted", Backend, "[backend:x]")


PLACES = {
    "the module": "planted_package/inside.py",
    "the package": "planted_package",
    "what the package begins with": "planted_package/__init__.py",
    "what the module may import": "planted_package/part.py",
    "the directory": ".",
    "an ancestor": "..",
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("who", ["everybody", "the group daemon", "daemon"])
def test_plugin_that_others_could_change_is_not_imported(site: Path, place: str, who: str) -> None:
    path = (site / place).resolve()
    if who == "everybody":
        path.chmod(path.stat().st_mode | 0o002)
    else:
        need_root()
        os.chown(path, 1 if who == "daemon" else 0, 1)
        path.chmod(path.stat().st_mode | (0o020 if who != "daemon" else 0))
    with pytest.raises(ConfigError, match=r"\[backend:x\] the plugin planted is not loaded from .*: ") as told:
        find()
    assert str(path) in told.value.message
    plugins._weak.cache_clear()
    with pytest.raises(ConfigError, match="is not loaded from"):
        loading.load(loading.FILTERS, ["planted"])
    assert not (site / "planted_package" / "imported").exists()


def test_cached_code_that_others_could_change_is_not_imported(site: Path) -> None:
    cache = site / "planted_package" / "__pycache__"
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(ConfigError, match=r"everybody can write to .*__pycache__"):
        find()


def test_plugin_below_a_sticky_directory_is_loaded(site: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    assert isinstance(find(), type)
    assert loading.load(loading.FILTERS, ["planted"])[0][0] == "planted"
    assert (site / "planted_package" / "imported").exists()


def test_plugin_of_the_user_whose_blockstore_root_runs(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `sudo .venv/bin/blockstore serve` does: the code that runs is the user's already."""
    need_root()
    code = tmp_path / "code"
    code.mkdir()
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 1, 1)
    with pytest.raises(ConfigError, match="belongs to daemon"):
        find()
    monkeypatch.setattr(plugins, "CODE", code)
    assert isinstance(find(), type)
    assert f"runs the code in {code}, which belongs to daemon (uid 1)" in (plugins.foreign_code() or "")
    os.chown(site, 2, 2)
    plugins._weak.cache_clear()
    with pytest.raises(ConfigError, match=r"belongs to bin \(uid 2\)"):
        find()


def test_ones_own_code_is_not_foreign() -> None:
    assert plugins.CODE.stat().st_uid not in (0, os.geteuid()) or plugins.foreign_code() is None


def test_importing_plugins_changes_nothing_for_others() -> None:
    """A34: plugins of this field have switched off the verification of TLS, or its warnings, for the whole process."""
    code = """
import importlib.metadata, os, signal, socket, ssl, sys, warnings
def state():
    default = ssl.create_default_context()
    return (ssl._create_default_https_context, default.verify_mode, default.check_hostname, list(warnings.filters),
            socket.getdefaulttimeout(), dict(os.environ), list(sys.path), os.umask(0o022),
            [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)])
os.umask(0o022)
before = state()
for group in ("blockstore.backends", "blockstore.targets"):
    for entry in importlib.metadata.entry_points(group=group):
        entry.load()
changed = [(one, other) for one, other in zip(before, state()) if one != other]
assert not changed, changed
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
