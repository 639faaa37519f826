"""os-brick as the initiator: as Nova's compute host, and by cinder's plugin, python-brick-cinderclient-ext.

The target is ``local``, whose connector os-brick has and which needs nothing of the kernel; the lab attaches by iSCSI.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.compute_host import BLOCK
from tests.clients.conftest import Cloud
from tests.conftest import ROOT, need

GIB = 2**30


@pytest.fixture
def volume(cloud: Cloud) -> Iterator[str]:
    """The id of a volume."""
    need(importlib.util.find_spec("os_brick"), "pip install os-brick")
    prefix = cloud.make_volumes(1)
    (made,) = cloud.get(f"/volumes?name={prefix}0")["volumes"]
    yield made["id"]
    left, status = cloud.get("/attachments")["attachments"], cloud.status(made["id"])
    for one in left:
        cloud.delete(f"/attachments/{one['id']}")
    cloud.remove(made["id"])
    assert (left, status) == ([], "available")


class TestLocal:
    """On the directory backend."""

    backend = "plugin = directory\n"

    def test_a_compute_host_attaches_writes_and_detaches(self, cloud: Cloud, volume: str) -> None:
        """Reserve, connect with os-brick's properties, write, detach; not while the disk is open."""
        need(os.geteuid() == 0, "run the tests as root: os-brick reads the initiator's name as root")
        done = subprocess.run(
            [sys.executable, "-m", "tests.clients.compute_host", cloud.served.url, volume],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "OS_TOKEN": cloud.token},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
        file = cloud.served.state_dir / "disk/volumes" / f"volume-{volume}.raw"
        assert (seen["reserved"], seen["attached"], seen["detached"]) == ("reserved", "in-use", "available")
        assert seen["properties"]["host"] == socket.gethostname()
        assert seen["info"]["driver_volume_type"] == "local"
        assert seen["device"] == {"type": "local", "path": str(file)}
        assert seen["size"] == GIB
        assert seen["kept"] == "attached"
        assert f"{file} is still in use on this node, by PID" in seen["while_open"]
        assert "(HTTP 409)" in seen["while_open"]
        assert file.read_bytes()[8192 : 8192 + len(BLOCK)] == BLOCK


class TestCindersPlugin:
    """``cinder local-attach`` and ``local-detach``."""

    backend = "plugin = directory\n"

    @pytest.fixture
    def cloud(self, cloud: Cloud, tmp_path: Path) -> Iterator[Cloud]:
        """The cloud, with a sudo that has nothing to do: the plugin puts one in front of everything."""
        need(importlib.util.find_spec("brick_cinderclient_ext"), "pip install python-brick-cinderclient-ext")
        need(os.geteuid() == 0, "run the tests as root: the plugin refuses anybody else")
        sudo = tmp_path / "sudo"
        sudo.write_text('#!/bin/sh\nexec "$@"\n')
        sudo.chmod(0o755)
        before = cloud.environment["PATH"]
        cloud.environment["PATH"] = f"{tmp_path}:{before}"
        yield cloud
        cloud.environment["PATH"] = before

    def test_it_takes_no_local_path_and_leaves_an_attachment_that_its_detach_ends(
        self, cloud: Cloud, volume: str
    ) -> None:
        """The plugin, 2.8, knows iSCSI, RBD and Fibre Channel only, and learns the protocol after it has connected."""
        said = cloud.cinder_fails("local-attach", volume)
        assert "Connect to volume via protocol LOCAL not supported" in said
        (left,) = cloud.get(f"/attachments/detail?volume_id={volume}")["attachments"]
        assert (left["status"], left["connection_info"]["driver_volume_type"]) == ("attaching", "local")
        assert cloud.status(volume) == "attaching"
        assert cloud.run("cinder", "local-detach", volume)[0] == 0

    def test_its_older_flow_leaves_nothing_attached(self, cloud: Cloud, volume: str) -> None:
        """Before 3.27 it reserves and initializes; what it gives up is available again."""
        said = cloud.cinder_fails("--os-volume-api-version", "3.26", "local-attach", volume)
        assert "Connect to volume via protocol LOCAL not supported" in said
        assert cloud.status(volume) == "available"
