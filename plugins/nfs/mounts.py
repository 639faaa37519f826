"""Mounts an export, and proves that what is mounted is that export: mount(8), umount(8), /proc/self/mountinfo."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from blockstore_plugins.directory import files
from blockstore_plugins.directory.files import Folder, closing

from blockstore import private_files
from blockstore.backends.contract import no_progress
from blockstore.backends.process import run
from blockstore.errors import ToolFailed, Unreachable

PACKAGE = "nfs-common"
_DELEGATIONS = Path("/sys/module/nfsv4/parameters/delegation_watermark")


def mounted(export: str, at: Path, options: str, timeout_s: int) -> int:
    """Return the device number of an export's mount, which is made, or made again, if need be. Raises Unreachable."""
    source = source_of(at)
    if source is not None and source != export:
        raise Unreachable(f"{source} is mounted at {at}, where {export} is to be. Unmount it: umount {at}")
    if source is not None and _is_stale(at):
        unmount(at, timeout_s)
        source = None
    if source is None:
        if not at.exists():
            private_files.make_directory(at)
        if os.geteuid():
            raise Unreachable(f"{export} is not mounted at {at}, and only root may mount it: run the service as root.")
        _run("mount", "-t", "nfs4", "-o", options, export, str(at), timeout_s=timeout_s)
    try:
        device = at.stat().st_dev
    except OSError as exc:
        raise Unreachable(f"The NFS server of {export} does not answer: {exc.strerror}.") from exc
    if source_of(at) != export:
        raise Unreachable(f"{export} could not be mounted at {at}.")
    return device


def unmount(at: Path, timeout_s: int) -> None:
    """Take a mount away that leads nowhere any more, though somebody may have files of it open."""
    _run("umount", "-l", str(at), timeout_s=timeout_s)


def prove_writable(root: Folder) -> None:
    """Raise the error that making a file meets; what the client remembers of its rights may be a minute old."""
    try:
        with closing(root.nameless(".probe")):
            pass
    except OSError as exc:
        if exc.errno not in (errno.EEXIST, errno.ENOSPC, errno.EDQUOT):  # another service's; full, and can be emptied
            raise


def copies_by_itself(at: Path, root: Folder) -> bool:
    """Say whether a share's server copies files, so that their bytes do not pass the network; tried on a small one."""
    with closing(root.nameless(".probe-from")) as source, closing(root.nameless(".probe-to")) as target:
        files.write_start(source, b"probe")
        files.flush(source)
        before = _copies_made(at)
        files.copy(source, target, str(at), no_progress)
        files.flush(target)
        return _copies_made(at) > before


def _copies_made(at: Path) -> int:
    """Count what the kernel had the server copy: a copy that the kernel itself had to make does not count."""
    count, ours = 0, False
    for line in Path("/proc/self/mountstats").read_text().splitlines():
        words = line.split()
        if words[:1] == ["device"]:
            ours = _unescaped(words[4]) == str(at)
        elif ours and words and words[0] in ("CLONE:", "COPY:") and len(words) > 9:
            count += int(words[1]) - int(words[9])
    return count


def refuse_others(export: str, at: Path) -> None:
    """Refuse a share that this machine has mounted a second time with other options. Raises Unreachable.

    To the server both are one client, to which it delegates its files; the kernel then reads by the one mount what it
    remembers, not what was written by the other. Mounts that share all options share what they remember.
    """
    if not _DELEGATIONS.exists() or _DELEGATIONS.read_text().strip() == "0":
        return
    client = attrgetter("address", "path", "version")
    ours = next((one for one in _mounts() if one.at == at), None)
    for one in _mounts():
        if ours and client(one) == client(ours) and one.device != ours.device:
            raise Unreachable(
                f"{export} is mounted at {one.at}, too, with other options; NFS would hide from one what is written by"
                f" the other. Let its users take {at.parent} (of nova: nfs_mount_point_base), or: echo 0 >"
                f" {_DELEGATIONS}"
            )


class _Mount(NamedTuple):
    at: Path
    device: str
    source: str
    """HOST:/PATH; of another kind of file system, that kind."""
    path: str
    address: str
    version: str


def _mounts() -> Iterator[_Mount]:
    """Yield what is mounted; asks no server."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, source, options = after.split()[:3]
        known = dict(word.partition("=")[::2] for word in options.split(","))
        source = _unescaped(source) if kind.startswith("nfs") else kind
        at, device = Path(_unescaped(before.split()[4])), before.split()[2]
        yield _Mount(at, device, source, source.partition(":/")[2], known.get("addr", ""), known.get("vers", ""))


def source_of(at: Path) -> str | None:
    """Return what is mounted at a place by NFS or otherwise, or None."""
    found = None
    for one in _mounts():  # the last one covers the others
        if one.at == at:
            found = one.source
    return found


def _unescaped(word: str) -> str:
    for code in ("040", "011", "012", "134"):
        word = word.replace(f"\\{code}", chr(int(code, 8)))
    return word


def _is_stale(at: Path) -> bool:
    try:
        at.stat()
    except OSError as exc:
        return exc.errno == errno.ESTALE
    return False


def _run(*argv: str, timeout_s: int) -> None:
    try:
        run(argv, timeout_s=timeout_s, package=PACKAGE)
    except ToolFailed as exc:
        raise Unreachable(f"The share cannot be mounted: {exc}{_hint(exc.stderr)}") from exc


def _hint(said: str) -> str:
    """Return what to look at, where the server refused the mount."""
    if "access denied" in said:
        return " Is this machine among those that the server exports it to? There: exportfs -v"
    if "No such file or directory" in said:
        return " Is it called so on the server? There: exportfs -v"
    return ""
