"""What is installed from a wheel is whole: an editable install hides what a wheel forgets."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT

pytestmark = pytest.mark.slow


def run(*argv: object, cwd: Path, **env: str) -> str:
    words = [str(word) for word in argv]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=cwd, env={"PATH": "/usr/bin:/bin", **env}, timeout=300
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy of the sources, so that nothing is left in the checkout."""
    base = tmp_path_factory.mktemp("wheel")
    sources = base / "sources"
    sources.mkdir()
    tracked = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "blockstore", "plugins")
    run("cp", "-a", *(ROOT / name for name in tracked), sources, cwd=base)
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    run(sys.executable, "-m", "pip", "wheel", *flags, "-w", base, sources, cwd=base, HOME=str(base))
    (made,) = base.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A directory in which nothing but the wheel is installed."""
    target = wheel.parent / "installed"
    flags = ("--no-deps", "--no-index", "--quiet", "--no-compile")
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        *flags,
        "--target",
        target,
        wheel,
        cwd=wheel.parent,
        HOME=str(wheel.parent),
    )
    return target


def python(installed: Path, code: str) -> str:
    """Run Python with the wheel's files before those of the checkout."""
    return run(sys.executable, "-c", code, cwd=installed.parent, PYTHONPATH=str(installed), HOME=str(installed.parent))


def test_every_source_is_in_the_wheel(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for top, name in (("blockstore", "blockstore"), ("plugins", "blockstore_plugins")):
        for path in (ROOT / top).rglob("*.py"):
            assert str(name / path.relative_to(ROOT / top)) in inside
    assert [name for name in inside if name.endswith(("/licenses/LICENSE", ".dist-info/LICENSE"))]


def test_nothing_else_is_in_the_wheel(wheel: Path) -> None:
    tops = {name.partition("/")[0].partition("-")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"blockstore", "blockstore_plugins"}


def test_command_of_the_wheel_says_its_version(installed: Path) -> None:
    said = run(sys.executable, installed / "bin" / "blockstore", "--version", cwd=installed, PYTHONPATH=str(installed))
    assert said.startswith("blockstore, version ")


def test_entry_points_of_the_wheel_load(installed: Path) -> None:
    said = python(
        installed,
        "from importlib.metadata import entry_points\n"
        "for group in 'backends', 'scheduler.filters', 'scheduler.weighers':\n"
        "    for point in entry_points(group='blockstore.' + group):\n"
        "        point.load()\n"
        "import blockstore, blockstore_plugins\n"
        "print(blockstore.__file__, blockstore_plugins.__file__)\n",
    )
    assert all(Path(file).is_relative_to(installed) for file in said.split()), said


def test_wheel_makes_its_database(installed: Path, tmp_path: Path) -> None:
    said = python(
        installed,
        "import blockstore.db.migrations as m\n"
        "from blockstore.db.session import Database\n"
        f"db = Database('sqlite:///{tmp_path}/x.db')\n"
        "m.upgrade(db)\n"
        "print(m.__file__, m.current(db) == m.HEAD)\n",
    )
    file, same = said.split()
    assert Path(file).is_relative_to(installed)
    assert same == "True"


def test_console_scripts_are_declared(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "blockstore = blockstore.cli:main" in archive.read(name).decode()
