"""Small file systems to try the plugins on, and what to say where they cannot be had."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PACKAGES = {"mkfs.btrfs": "btrfs-progs", "mkfs.xfs": "xfsprogs", "qemu-img": "qemu-utils", "mount": "mount"}


def need(tool: str) -> None:
    """Skip with the package's name when a tool is missing; in CI, where it must be there, fail."""
    if shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
        sentence = f"{tool} is not installed: apt-get install {PACKAGES[tool]}"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)


def need_root() -> None:
    """Skip unless root runs the tests."""
    if os.geteuid():
        pytest.skip("This test mounts file systems or changes its user: run it as root.")


@contextmanager
def mounted(folder: Path, kind: str, size: str) -> Iterator[Path]:
    """Give a new file system of this kind: tmpfs, or one in a loop device."""
    need_root()
    need("mount")
    point = folder / kind
    point.mkdir()
    if kind == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "blockstore-test", str(point)]
    else:
        need(f"mkfs.{kind}")
        disk = folder / f"{kind}.img"
        subprocess.run(["truncate", "-s", size, disk], check=True)
        subprocess.run([f"/usr/sbin/mkfs.{kind}", "-q", disk], check=True, capture_output=True)
        mount = ["mount", "-t", kind, "-o", "loop", str(disk), str(point)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{kind} cannot be mounted here: {done.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)
