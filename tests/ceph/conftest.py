"""A real Ceph of one monitor, one manager and one OSD, up in two seconds, for the whole session."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from blockstore_plugins.rbd import RbdBackend, RbdOptions
from blockstore_plugins.rbd.librbd import bindings

from blockstore import private_files
from blockstore.app.service import Service
from tests import sampling

HERE = Path(__file__).parent
POOLS = ("volumes", "fast", "small")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """End the process of a test that hangs: no signal interrupts a call of librbd."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(sampling.effort(1200, 3600), method="thread"))


@dataclass
class Ceph:
    """A cluster that runs."""

    folder: Path

    @property
    def conf(self) -> Path:
        return self.folder / "ceph.conf"

    @property
    def keyring(self) -> Path:
        return self.folder / "cinder.keyring"

    def run(self, *words: str, check: bool = True, timeout_s: float = 600) -> str:
        """Run one of Ceph's programs as the cluster's administrator."""
        done = subprocess.run(
            words,
            env={**os.environ, "CEPH_CONF": str(self.conf)},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        assert not check or done.returncode == 0, (words, done.stderr)
        return done.stdout

    def options(self, **more: Any) -> RbdOptions:
        """Return the options of a backend on this cluster."""
        given = {"ceph_conf": self.conf, "user": "cinder", "keyring": self.keyring, "timeout_s": 120, **more}
        return RbdOptions(**given)

    def backend(self, state_dir: Path, **more: Any) -> RbdBackend:
        """Return a backend on this cluster."""
        made = RbdBackend("ceph", self.options(**more), state_dir)
        made.check()
        return made

    def pid(self, daemon: str) -> int:
        """Return the process id of mon, mgr or osd."""
        return int((self.folder / "run" / f"{daemon}.pid").read_text())


def looked_at(service: Service) -> Service:
    """Return a service that has looked at all of its backends: programs may be too slow for its start."""
    if not all(service.pool_reports.get(name) for name in service.backends):
        service.report()
    return service


def up(folder: Path, *options: str) -> Ceph:
    """Start a cluster."""
    pools = [word for pool in POOLS for word in ("--pool", pool)]
    subprocess.run([HERE / "ceph-up", *pools, *options, folder], check=True, stdout=subprocess.PIPE, timeout=600)
    return Ceph(folder)


def down(cluster: Ceph) -> None:
    """Stop a cluster, and remove it."""
    subprocess.run([HERE / "ceph-down", "--rm", cluster.folder], check=True, timeout=600)


@pytest.fixture(scope="session")
def new_ceph() -> Iterator[Callable[..., Ceph]]:
    """Give a function that starts a cluster; it ends with the session."""
    if shutil.which("ceph-osd") is None:
        sentence = "Ceph is not installed: run tests/ceph/install.sh"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    made: list[Ceph] = []

    def start(*options: str) -> Ceph:
        made.append(up(Path(tempfile.mkdtemp(prefix="ceph-", dir="/var/tmp")) / "c", *options))
        return made[-1]

    yield start
    for cluster in made:
        if cluster.folder.exists():
            down(cluster)
        cluster.folder.parent.rmdir()


@pytest.fixture(scope="session")
def ceph(new_ceph: Callable[..., Ceph]) -> Ceph:
    """Give the cluster that all tests share which do it no harm."""
    return new_ceph("--size", "16G")


@pytest.fixture(params=["yes", "no"], ids=["librbd", "commands"])
def way(request: pytest.FixtureRequest) -> str:
    """Ask the cluster in both ways."""
    if request.param == "yes" and bindings() is None:
        sentence = "Ceph's Python bindings are not installed for this Python: apt-get install python3-rbd"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    return str(request.param)


@pytest.fixture(autouse=True)
def one_installation(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Give the services of the shared cluster one key: the mark of another installation takes pools down."""
    if "start_service" in request.fixturenames:
        state_dir = tmp_path / "state"
        state_dir.mkdir(mode=0o700)
        private_files.write(state_dir / "attachments.key", b"5e" * 32 + b"\n")
