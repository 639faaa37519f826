"""The import contracts name what is allowed, and report what is not: proved by planting imports in a copy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINT = (
    "from importlinter.cli import lint_imports;"
    " raise SystemExit(lint_imports('setup.cfg', limit_to_contracts=('{contract}',), no_cache=True))"
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a copy of the sources, small enough to lint in a second: a plugin imports what it likes of blockstore."""
    place = tmp_path_factory.mktemp("sources")
    (place / "setup.cfg").write_bytes((ROOT / "setup.cfg").read_bytes())
    for folder, name in (("blockstore", "blockstore"), ("plugins", "blockstore_plugins")):
        for path in (ROOT / folder).rglob("*.py"):
            target = place / name / path.relative_to(ROOT / folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return place


def lint(place: Path, contract: str) -> subprocess.CompletedProcess[str]:
    code = LINT.format(contract=contract)
    return subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False)


def test_plugins_keep_the_contract(copy: Path) -> None:
    done = lint(copy, "plugins")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "line", ["import blockstore", "from blockstore.accounting import quotas; from blockstore.operations import runner"]
)
def test_a_plugin_that_imports_another_module_is_reported(copy: Path, line: str) -> None:
    planted = copy / "blockstore_plugins" / "directory" / "planted.py"
    planted.write_text(f"{line}\n")
    try:
        done = lint(copy, "plugins")
    finally:
        planted.unlink()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout
    names = [
        f"blockstore.{name}" for name in ("accounting.quotas", "operations.runner") if name.partition(".")[2] in line
    ]
    for name in names:
        assert f"blockstore_plugins.directory.planted -> {name} (l.1)" in done.stdout


def test_every_import_of_a_plugin_is_one_that_the_contract_names(copy: Path) -> None:
    """The modules that exist are forbidden unless they are named: a new one needs no line to be forbidden."""
    (copy / "blockstore" / "planted.py").write_text("")
    planted = copy / "blockstore_plugins" / "lvm" / "planted.py"
    planted.write_text("from blockstore import planted\n")
    try:
        done = lint(copy, "plugins")
    finally:
        planted.unlink()
        (copy / "blockstore" / "planted.py").unlink()
    assert "blockstore_plugins.lvm.planted -> blockstore.planted (l.1)" in done.stdout
