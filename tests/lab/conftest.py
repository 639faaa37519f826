"""Fixtures for tests against real LVM; outside the lab these tests skip and say how to run them."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blockstore_plugins.lvm import LvmBackend, LvmOptions

HOW = (
    "needs a kernel with device-mapper: run it with `make test-lab` (tests/lab/lab-run), after `make lab-setup`"
    " (tests/lab/setup.sh) has installed what that needs"
)
DISKS = Path(os.environ.get("LAB_DISKS", "/var/tmp"))
SERVED = Path("/run/lab-nfs")
"""What the lab's NFS server exports, as 127.0.0.1:/."""


def in_lab() -> bool:
    """Say whether lab-run started us, which alone promises a machine on which volume groups may be made."""
    return "LAB_KIND" in os.environ and os.access("/dev/mapper/control", os.R_OK | os.W_OK)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip lab tests outside the lab; in CI, where `make test-lab` is a step of its own, leave them out silently."""
    if in_lab():
        return
    ours = [item for item in items if item.get_closest_marker("lab")]
    if os.environ.get("CI") == "true":
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]
        return
    for item in ours:
        item.add_marker(pytest.mark.skip(reason=HOW))


def run(*argv: str) -> str:
    """Run a tool and return what it printed."""
    return subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout


class Disk:
    """A sparse file as a loop device with a volume group on it."""

    def __init__(
        self, gib: float, *, dirt: bytes = b"", stride: int = 64 * 1024, extent: str = "4m", sector: int = 512
    ):
        self.image = DISKS / f"{uuid.uuid4().hex[:8]}.img"
        self.vg = "t" + uuid.uuid4().hex[:8]
        size = int(gib * 2**30)
        with self.image.open("wb", buffering=0) as file:
            file.truncate(size)
            if dirt:
                for at in range(2**20, size, stride):
                    os.pwrite(file.fileno(), dirt, at)
        self.device = run("losetup", "-f", "--show", "--sector-size", str(sector), str(self.image)).strip()
        run("vgcreate", "-s", extent, self.vg, self.device)

    def lvs(self, *columns: str) -> list[list[str]]:
        """Return rows of what lvs prints, by name, without internal volumes."""
        said = run("lvs", "--noheadings", "--separator", "|", "-o", ",".join(("lv_name", *columns)), self.vg)
        return sorted([cell.strip() for cell in line.split("|")] for line in said.splitlines() if line.strip())

    def names(self) -> list[str]:
        """Return the names of all logical volumes, finished or not."""
        return [row[0] for row in self.lvs()]

    def holds(self, bytes_: bytes) -> bool:
        """Say whether these bytes are anywhere on the disk, below LVM."""
        os.sync()
        with self.image.open("rb", buffering=0) as file:
            at, size = 0, file.seek(0, os.SEEK_END)
            while at < size:
                try:
                    at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                except OSError:
                    return False
                # Longer than what is looked for by a page, so that nothing hides across a border.
                data = os.pread(file.fileno(), 2**20 + 4096, at)
                if bytes_ in data:
                    return True
                at += 2**20
        return False

    def close(self) -> None:
        """Remove volume group, loop device and file."""
        subprocess.run(["vgremove", "-ff", "-y", self.vg], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        subprocess.run(["losetup", "-d", self.device], check=False)
        self.image.unlink()


@pytest.fixture
def make_disk() -> Iterator[Callable[..., Disk]]:
    """Return a maker of disks, which are gone after the test."""
    made: list[Disk] = []

    def make(gib: float = 16, **options: object) -> Disk:
        made.append(Disk(gib, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for disk in made:
        disk.close()


@pytest.fixture
def disk(make_disk: Callable[..., Disk]) -> Disk:
    """Return a clean disk of 16 GiB with a volume group."""
    return make_disk()


@contextmanager
def second_disk(gib: float, *, copy_of: Path | None = None) -> Iterator[str]:
    """Give the lab another disk, which nobody knows yet."""
    image = DISKS / "second.img"
    if copy_of is None:
        image.touch()
        run("truncate", "-s", str(int(gib * 2**30)), str(image))
    else:
        run("cp", "--sparse=always", str(copy_of), str(image))
    device = run("losetup", "-f", "--show", str(image)).strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=False)
        image.unlink()


def lvm_backend(disk: Disk, lvm_type: str = "auto", *, check: bool = True, **options: object) -> LvmBackend:
    """Return a backend on a disk, checked and so ready."""
    made = LvmBackend(
        "lab",
        LvmOptions(volume_group=disk.vg, lvm_type=lvm_type, **options),
        Path("/nonexistent"),  # type: ignore[arg-type]
    )
    if check:
        made.check()
    return made


@pytest.fixture(params=["thick", "thin"])
def lvm_type(request: pytest.FixtureRequest) -> str:
    """Return each type in turn."""
    return str(request.param)
