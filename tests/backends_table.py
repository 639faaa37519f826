"""The table of docs/backends.md, from what the plugins declare: `python -m tests.backends_table > docs/backends.md`.

With ``--short`` the table of README.md.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

from blockstore_plugins.directory import DirectoryBackend, DirectoryOptions
from blockstore_plugins.lvm import LvmBackend, LvmOptions
from blockstore_plugins.nfs import NfsBackend, NfsOptions
from blockstore_plugins.rbd import RbdBackend, RbdOptions

from blockstore.backends.contract import Backend, Capabilities

HERE = Path("/nowhere")

WORDS = {
    "snapshots": "Snapshots",
    "clone": "Clones, and volumes from snapshots, by the storage itself",
    "revert": "Revert to a snapshot",
    "online_extend": "Extend while attached",
    "multiattach": "Multi-attach",
    "thin": "Thin: space is taken when written",
    "thick": "Thick: space is taken when created",
    "group_snapshots": "Snapshots of several volumes at one instant",
    "qos": "QoS limits kept by the storage",
    "manage": "Manage existing volumes and snapshots",
    "owner_mark": "Marks of identity and owner",
}

HEAD = """\
# What each backend can do

Generated from the plugins' declarations by `python -m tests.backends_table`. The conformance suite proves each line;
`blockstore backend check NAME` runs it on your own storage.

"""

FOOT = """
- With a target between volume and consumer ([attaching.md](attaching.md)), multi-attach and extending while attached
  need both: the backend and the target.
- Which snapshots and clones on NFS are copies and which are layers: [nfs.md](nfs.md).
- Which volumes can be migrated where: [migration.md](migration.md).
"""

SHORT = {
    "snapshots": "Snapshots, clones, revert",
    "online_extend": "Extend while attached",
    "multiattach": "Multi-attach",
    "thin": "Thin",
    "qos": "QoS by the storage",
    "manage": "Manage existing",
}
"""The columns of README's table: a capability, or one that stands for others."""


def backends() -> Iterator[tuple[str, Backend]]:
    """Return what has a column, in its forms."""
    for kind in ("raw", "qcow2"):
        yield f"directory, {kind}", DirectoryBackend("d", DirectoryOptions(format=kind), HERE)
    for kind in ("thin", "thick"):
        yield f"lvm, {kind}", LvmBackend("l", LvmOptions(lvm_type=kind), HERE)
    for kind in ("raw", "qcow2"):
        yield f"nfs, {kind}", NfsBackend("n", NfsOptions(exports="host:/path", format=kind), HERE)
    yield "rbd", RbdBackend("r", RbdOptions(), HERE)


def table() -> str:
    """Return the whole page."""
    columns = [(title, backend, backend.capabilities()) for title, backend in backends()]
    rows = [["", *(title for title, _, _ in columns)], ["---"] * (len(columns) + 1)]
    declared = {field.name for field in dataclasses.fields(Capabilities) if field.type in (bool, "bool")}
    assert declared == set(WORDS), declared ^ set(WORDS)
    for name, words in WORDS.items():
        rows.append([words, *("yes" if getattr(has, name) else "-" for _, _, has in columns)])
    rows.append(["Protocol without a target", *(has.storage_protocol for _, _, has in columns)])
    reached = ["directly, by os-brick or libvirt" if backend.is_direct else "by a target" for _, backend, _ in columns]
    rows.append(["How consumers elsewhere reach it", *reached])
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows) + FOOT


def short() -> str:
    """Return the table of README.md: a row for each backend."""
    rows = [["Backend", *SHORT.values(), "Reached by"], ["---"] * (len(SHORT) + 2)]
    for title, backend in backends():
        has = backend.capabilities()
        assert has.snapshots == has.clone == has.revert
        words = ["yes" if getattr(has, name) else "-" for name in SHORT]
        rows.append([title, *words, has.storage_protocol if backend.is_direct else "a target"])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    print(short() if "--short" in sys.argv else table(), end="")
