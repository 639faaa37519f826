"""Mounts an export, and verifies the mount: mount(8), umount(8), /proc/self/mountinfo."""

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
    """Mount an export if it is not mounted or its mount is stale; return the device number. Raise Unreachable if this
    fails."""
    source = source_of(at)
    if source is not None and source != export:
        raise Unreachable(f"{source} is mounted at {at}, the mount point of {export}. Unmount it: umount {at}")
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
        raise no_answer(export, exc) from exc
    if source_of(at) != export:
        raise Unreachable(f"{export} could not be mounted at {at}.")
    return device


def no_answer(export: str, exc: OSError) -> Unreachable:
    """Return the error for a server that answers nothing, or errors that it should not have."""
    return Unreachable(
        f"The NFS server of {export} does not answer correctly: {exc.strerror or exc}. Check the server."
    )


def unmount(at: Path, timeout_s: int) -> None:
    """Unmount a stale mount lazily, even if files on it are open."""
    _run("umount", "-l", str(at), timeout_s=timeout_s)


def prove_writable(root: Folder) -> None:
    """Make a file, and raise the OSError of a failure. The client's cached permissions may be a minute old."""
    try:
        with closing(root.nameless(".probe")):
            pass
    except OSError as exc:
        if exc.errno not in (errno.EEXIST, errno.ENOSPC, errno.EDQUOT):  # another service's probe; a full share
            raise


def copies_by_itself(at: Path, root: Folder) -> bool:
    """Return True if the server copies files without passing the network; tested with a small file."""
    with closing(root.nameless(".probe-from")) as source, closing(root.nameless(".probe-to")) as target:
        files.write_start(source, b"probe")
        files.flush(source)
        before = _copies_made(at)
        files.copy(source, target, str(at), no_progress)
        files.flush(target)
        return _copies_made(at) > before


def _copies_made(at: Path) -> int:
    """Return the number of copies made by the server. Failed ones, which the kernel made itself, do not count."""
    count, ours = 0, False
    for line in Path("/proc/self/mountstats").read_text().splitlines():
        words = line.split()
        if words[:1] == ["device"]:
            ours = _unescaped(words[4]) == str(at)
        elif ours and words and words[0] in ("CLONE:", "COPY:") and len(words) > 9:
            count += int(words[1]) - int(words[9])
    return count


def refuse_others(export: str, at: Path) -> None:
    """Raise Unreachable if this machine has mounted the share a second time with other options.

    For the server both mounts are one client, to which it delegates files. The kernel then reads outdated bytes from
    the cache of one mount after a write through the other. Mounts with the same options share one cache.
    """
    if not _DELEGATIONS.exists() or _DELEGATIONS.read_text().strip() == "0":
        return
    client = attrgetter("address", "path", "version")
    ours = next((mount for mount in _mounts() if mount.at == at), None)
    for mount in _mounts():
        if ours and client(mount) == client(ours) and mount.device != ours.device:
            raise Unreachable(
                f"{export} is also mounted at {mount.at}, with other options; NFS would hide writes of one mount from"
                f" the other. Make its users mount it in {at.parent} (in nova: nfs_mount_point_base), or: echo 0 >"
                f" {_DELEGATIONS}"
            )


class _Mount(NamedTuple):
    at: Path
    device: str
    source: str
    """HOST:/PATH for NFS; otherwise the type of the file system."""
    path: str
    address: str
    version: str


def _mounts() -> Iterator[_Mount]:
    """Yield all mounts without asking a server."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, source, options = after.split()[:3]
        known = dict(word.partition("=")[::2] for word in options.split(","))
        source = _unescaped(source) if kind.startswith("nfs") else kind
        at, device = Path(_unescaped(before.split()[4])), before.split()[2]
        yield _Mount(at, device, source, source.partition(":/")[2], known.get("addr", ""), known.get("vers", ""))


def source_of(at: Path) -> str | None:
    """Return the source of the mount at a path: HOST:/PATH or a file system type; None if nothing is mounted there."""
    found = None
    for mount in _mounts():  # the last mount covers the others
        if mount.at == at:
            found = mount.source
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


def _hint(output: str) -> str:
    """Return advice for the error of a refused mount; empty if there is none."""
    if "access denied" in output:
        return " Does the server export it to this machine? On the server: exportfs -v"
    if "No such file or directory" in output:
        return " Does the server export this path? On the server: exportfs -v"
    return ""
