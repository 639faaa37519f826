"""The table of docs/backends.md, from what the plugins declare: `python -m tests.backends_table > docs/backends.md`."""

from __future__ import annotations

import dataclasses
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
    "manage": "Taking over what others made",
    "owner_mark": "Marked as one installation's",
}

HEAD = """\
# What each backend can do

Generated from what the plugins declare, by `python -m tests.backends_table`; the conformance suite proves each line on
the real thing: `blockstore backend check NAME` does so on yours.

"""

FOOT = """
Snapshots and clones on NFS are copies made by the server, at once where it shares blocks (btrfs, xfs), else without
passing the network (NFS 4.2). A share that offers neither gets layers for its qcow2 volumes: taken at once, they cost
what is written from then on. Chains longer than `max_layers` are merged in the background while nobody uses the volume;
`deepest_chain` and `background` of the pool (`cinder get-pools --detail`) tell how long they are and what goes on. An
attached volume is copied by this node, which needs it to rest for that time. Raw volumes are always copied.

If this node is a hypervisor, too, let it take the service's own mounts: Nova's `[libvirt] nfs_mount_point_base` is then
`STATE_DIR/NAME/mnt`. To an NFS server all mounts of a machine are one client, and the kernel shows by one what it
remembers, not what was written by another that has other options. A qcow2 pool says so and is down until that is
mended, or until `echo 0 > /sys/module/nfsv4/parameters/delegation_watermark`; raw volumes are read past what is
remembered.

With a target between volume and consumer (`docs/targets.md`), multi-attach and extending while attached need both.

A volume moves between any two of them (`openstack volume migrate`, `openstack volume set --type T --migration-policy
on-demand`, `blockstore backend drain`) when it is available and has no snapshots, and when its consumers see logical
blocks of the same size there (`logical_block_size` of the pool): with others they would not find its partitions. Of
thick and thin LVM that is the size of the disks; all else has 512 bytes, and so have the targets `tgt` and `nbd`.
"""


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
    rows.append(["Protocol on the wire without a target", *(has.storage_protocol for _, _, has in columns)])
    reached = ["directly, by os-brick or libvirt" if backend.is_direct else "by a target" for _, backend, _ in columns]
    rows.append(["How consumers elsewhere reach it", *reached])
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows) + FOOT


if __name__ == "__main__":
    print(table(), end="")
