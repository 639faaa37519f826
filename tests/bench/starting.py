"""Start to first answer, and memory of a service that does nothing.

Measured in a virtual environment as ``make serve`` makes it. With the 120 packages of the development environment a
start takes a tenth longer, because each import that looks for entry points reads a file of every installed package.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.figures import Figure, Load, Watch, quantile
from tests.bench.server import served, state_dir

ROOT = Path(__file__).parents[2]


def measure(quick: bool) -> Iterator[Figure]:
    """Start on an empty directory, which brings up the database, and again on what that left."""
    first, again, memory = [], [], []
    with state_dir() as environment:
        python = _installed(environment)
        watch = Watch()
        for _ in range(3 if quick else 7):
            with state_dir() as directory:
                with served(directory, python=python) as server:
                    first.append(server.start_s)
                with served(directory, python=python) as server:
                    again.append(server.start_s)
                    time.sleep(1)
                    memory.append(server.memory_mib()[0])
        load = watch.read()
    yield _start("start, empty, new database", first, load)
    yield _start("start, empty, second time", again, load)
    idle = statistics.median(memory)
    yield Figure(
        name="memory idle", target="≤ 80 MiB", met=idle <= 80, unit="MiB", median=idle, samples=len(memory), load=load
    )


def _installed(environment: Path) -> str:
    """Install blockstore and what its lock names; return the interpreter."""
    python = str(environment / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "-r", ROOT / "requirements" / "base.lock"], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", ROOT], check=True)
    return python


def _start(name: str, seconds: list[float], load: Load) -> Figure:
    median = statistics.median(seconds)
    return Figure(
        name=name, target="≤ 0.6 s", met=median <= 0.6, unit="s", median=median, p95=quantile(seconds, 95),
        samples=len(seconds), load=load,
    )  # fmt: skip
