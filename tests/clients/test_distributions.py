"""The command ``openstack`` of Ubuntu 22.04 and 24.04, Debian 12 and 13: README's first minute.

Each version lies in a folder of .clients, without what it shares with .venv, and is run by the same Python: they are
written in Python alone, and installing them takes seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import CONFIG, INSTALL, Cloud
from tests.conftest import ROOT, Served, need

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # pip installs them

DISTRIBUTIONS = Path(__file__).parent / "distributions"
CLIENTS = ROOT / ".clients"


def install(name: str) -> Path:
    """Make the folder of a distribution, when it is not there or its file has changed."""
    requirements, folder = DISTRIBUTIONS / f"{name}.txt", CLIENTS / name
    stamp = folder / ".installed"
    if not (stamp.exists() and stamp.read_text() == requirements.read_text()):
        shutil.rmtree(folder, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*pip, "--target", folder, "-r", requirements], capture_output=True, text=True)
        need(done.returncode == 0, f"pip install -r {requirements}: {done.stderr[-500:]}")
        stamp.write_text(requirements.read_text())
    return folder


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """One process for all of them."""
    need((Path(sys.executable).parent / "openstack").exists(), INSTALL)
    served = Served(tmp_path_factory.mktemp("served"), f"{CONFIG}plugin = memory\n")
    yield Cloud(served, tmp_path_factory.mktemp("home"))
    served.kill()


@pytest.mark.parametrize("name", sorted(path.stem for path in DISTRIBUTIONS.glob("*.txt")))
def test_the_first_minute(name: str, cloud: Cloud) -> None:
    """Create, snapshot, list and delete, with the environment of ``blockstore openrc``."""
    folder = install(name)
    environment = {**cloud.environment, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"}
    environment.pop("XDG_CACHE_HOME", None)

    def openstack(command: str) -> str:
        argv = [sys.executable, "-m", "openstackclient.shell", *command.split()]
        done = subprocess.run(
            argv, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, cwd=os.sep
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    volume = f"{name}-first"
    openstack(f"volume create --size 1 {volume}")
    cloud.settle()
    openstack(f"volume snapshot create --volume {volume} {name}-monday")
    cloud.settle()
    if name == "ubuntu-22.04":  # its list asks for a compute service before anything else, and none is claimed here
        shown = openstack(f"volume show {volume} -f value -c name -c status").split()
    else:
        shown = openstack("volume list -f value -c Name -c Status").split()
    assert shown == [volume, "available"]
    (made,) = cloud.get(f"/snapshots/detail?name={name}-monday")["snapshots"]
    assert made["status"] == "available"
    openstack(f"volume delete --purge {volume}")
    cloud.settle()
    assert cloud.get(f"/volumes?name={volume}")["volumes"] == []
    assert cloud.get(f"/snapshots?name={name}-monday")["snapshots"] == []
