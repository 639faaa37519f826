"""What the tests of the plugin lio share: exports with their initiator, and what of ours is in the kernel."""

from __future__ import annotations

import dataclasses
import itertools
import os
import uuid
from pathlib import Path

from blockstore_plugins.lio import LioOptions, LioTarget

from blockstore.targets.contract import Connection, Export

from .conftest import Disk, run
from .libiscsi import Session

CONFIGFS = Path("/sys/kernel/config/target")
ALICE = "iqn.1993-08.org.debian:01:alice"
BOB = "iqn.1993-08.org.debian:01:bob"
MIB = 2**20


def make_target(owner: str, **options: object) -> LioTarget:
    """Return a target on the usual port, which all targets of LIO share."""
    return LioTarget("lab", LioOptions(**options), Path("/nonexistent"), owner)  # type: ignore[arg-type]


def make_lv(disk: Disk, name: str = "", size: str = "64m", fill: bytes = b"") -> Export:
    """Make a logical volume; return an export of it for Alice."""
    name = name or f"volume-{uuid.uuid4()}"
    run("lvcreate", "-y", "-Wn", "-Zn", "-L", size, "-n", name, disk.vg)
    export = an_export(name, Path("/dev") / disk.vg / name)
    if fill:
        with export.path.open("r+b") as file:
            file.write(fill)
            os.fsync(file.fileno())
    return export


def an_export(volume: str, path: Path, initiator: str = ALICE, **fields: object) -> Export:
    """Return an export with an id and a secret of its own."""
    connector = {"initiator": initiator, "host": "lab", "ip": "127.0.0.1"}
    secret = uuid.uuid4().hex[:16]
    made = Export(id=str(uuid.uuid4()), volume=volume, path=path, connector=connector, secret=secret)
    return dataclasses.replace(made, **fields)  # type: ignore[arg-type]


def log_in(connection: Connection, export: Export, **lies: object) -> Session:
    """Log in as the export's initiator should, or almost."""
    truth = {"initiator": str(export.connector["initiator"]), "password": export.secret}
    return Session(connection.data, **{**truth, **lies})  # type: ignore[arg-type]


def left_over(owner: str) -> list[str]:
    """Return the targets and storage objects of an owner, and all adapters that hold nothing."""
    found = [
        path for path in itertools.chain(CONFIGFS.glob("iscsi/*"), CONFIGFS.glob("core/*/*")) if owner in path.name
    ]
    found += [path for path in CONFIGFS.glob("core/*_*") if not any(part.is_dir() for part in path.iterdir())]
    return [str(path.relative_to(CONFIGFS)) for path in found]


def is_closed(path: Path) -> bool:
    """Say whether nobody holds the block device."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL))
    except OSError:
        return False
    return True
