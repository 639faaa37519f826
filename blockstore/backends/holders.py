"""Finds the holders of a file or block device on this node: processes, mounts, swap, loop and stacked devices.

Used by plugins. Asks the kernel; knows no exports. Files and devices are identified by device and inode numbers, never
by name, because they may have several names. Leaves out the service's own process. Starts no process and changes
nothing.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from blockstore.backends import file_locks
from blockstore.errors import Unreachable

_PROC, _SYS = Path("/proc"), Path("/sys")


class FileOrDevice(NamedTuple):
    """A file (its file system and inode) or a block device (its number)."""

    kind: str
    first: int
    second: int = 0


def identity(path: Path) -> FileOrDevice | None:
    """Return the regular file or block device at a path; None if there is none."""
    try:
        return _known_as(path.stat())
    except OSError:
        return None


def _known_as(found: os.stat_result) -> FileOrDevice | None:
    if stat.S_ISBLK(found.st_mode):
        return FileOrDevice("device", found.st_rdev)
    return FileOrDevice("file", found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def prove() -> None:
    """Raise Unreachable if holders cannot be found on this system."""
    for path in (_PROC / "self/fd", _PROC / "self/mountinfo", _SYS / "dev/block"):
        if not os.access(path, os.R_OK):
            raise Unreachable(f"{path} cannot be read, so processes that use a volume cannot be found. Mount it.")


def find(files_or_devices: Collection[FileOrDevice]) -> Mapping[FileOrDevice, tuple[str, ...]]:
    """Return the holders of each thing, described for a person; things without a known holder are left out."""
    parts = {part: file_or_device for file_or_device in files_or_devices for part in _with_partitions(file_or_device)}
    found: dict[FileOrDevice, dict[str, None]] = {}
    for source in (_processes(parts), _mounts(), _swaps(), _loops(), _stacked(parts)):
        for file_or_device, who in source:
            if file_or_device in parts:
                found.setdefault(parts[file_or_device], {})[who] = None
    return {file_or_device: tuple(names) for file_or_device, names in found.items()}


def of(path: Path) -> str:
    """Return the holders of a file or device, for a sentence."""
    file_or_device = identity(path)
    who = find({file_or_device}).get(file_or_device, ()) if file_or_device else ()
    return ", ".join(who) or "something that this user cannot see: the kernel, a container, or this service"


def is_free(path: Path) -> bool | None:
    """Return True if nothing holds a file, False if something does; None if the kernel cannot tell.

    The kernel also knows of other users, containers and itself. Of a file it knows every holder. Of a device it knows
    only exclusive holders (a mount, an export, a stacked device), so that a device is never reported as free.
    """
    if _own(path):
        return None  # the kernel would count this process
    is_device = path.is_block_device()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_EXCL * is_device | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        return False if exc.errno == errno.EBUSY else None
    try:
        if is_device:
            return None
        return file_locks.is_sole_opener(fd)
    finally:
        os.close(fd)


def _own(path: Path) -> bool:
    file_or_device = identity(path)
    return any(found == file_or_device for found in _open_files(_PROC / "self"))


# --- sources of holders: each yields pairs of a thing and its holder ----------------------------------------------


def _processes(wanted: Collection[FileOrDevice]) -> Iterator[tuple[FileOrDevice | None, str]]:
    for process in _entries(_PROC):
        if not process.name.isdecimal() or int(process.name) == os.getpid():
            continue
        held = {*_open_files(process), *_mapped(process, wanted)} & {*wanted}
        who = f"PID {process.name} ({_text(process / 'comm').strip() or '?'})" if held else ""
        yield from ((file_or_device, who) for file_or_device in held)


def _open_files(process: Path) -> Iterator[FileOrDevice | None]:
    """Yield the open files of a process. Some have a hundred thousand, so this avoids all overhead."""
    try:
        folder = os.open(process / "fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return  # it ended, or is another user's
    try:
        with suppress(OSError), os.scandir(folder) as links:
            for link in links:
                with suppress(OSError):
                    yield _known_as(link.stat())
    finally:
        os.close(folder)


def _mapped(process: Path, wanted: Collection[FileOrDevice]) -> Iterator[FileOrDevice | None]:
    """Yield the mapped files of a process that may be wanted: a mapping outlives the closing of its file."""
    inodes = {str(file_or_device.second) for file_or_device in wanted if file_or_device.kind == "file"}
    devices = any(file_or_device.kind == "device" for file_or_device in wanted)
    text = _text(process / "maps")
    if not (devices and "/dev/" in text) and not any(f" {inode} " in text for inode in inodes):
        return  # most processes: their lines need no parsing
    seen = set()
    for line in text.splitlines():
        place, _mode, _offset, *known_as, path = (*line.split(maxsplit=5), "")[:6]
        if (known_as[1] in inodes or (devices and path.startswith("/dev/"))) and (*known_as, path) not in seen:
            seen.add((*known_as, path))
            start, _, end = place.partition("-")
            yield identity(process / "map_files" / f"{int(start, 16):x}-{int(end, 16):x}")


def _mounts() -> Iterator[tuple[FileOrDevice | None, str]]:
    """Yield the mounts of every mount namespace that this process may read."""
    seen = set()
    for process in (_PROC / "self", *(p for p in _entries(_PROC) if p.name.isdecimal())):
        with suppress(OSError):
            namespace = (process / "ns/mnt").readlink()
            if namespace in seen:
                continue
            seen.add(namespace)
            for line in _text(process / "mountinfo").splitlines():
                words = line.split()
                major, minor = words[2].split(":")
                source = words[words.index("-") + 2]
                who = f"mounted on {_plain(words[4])}"
                yield FileOrDevice("device", os.makedev(int(major), int(minor))), who
                if major == "0" and source.startswith("/dev/"):  # btrfs has a device number of its own
                    yield identity(Path(_plain(source))), who


def _swaps() -> Iterator[tuple[FileOrDevice | None, str]]:
    for line in _text(_PROC / "swaps").splitlines()[1:]:
        yield identity(Path(_plain(line.split()[0]))), "swap"


def _loops() -> Iterator[tuple[FileOrDevice | None, str]]:
    for loop in (_SYS / "block").glob("loop*"):
        file = _text(loop / "loop/backing_file").rstrip("\n")
        if file:
            yield identity(Path(file)), loop.name


def _stacked(wanted: Collection[FileOrDevice]) -> Iterator[tuple[FileOrDevice | None, str]]:
    for file_or_device in wanted:
        for holder in _entries(_sys_of(file_or_device) / "holders") if file_or_device.kind == "device" else ():
            name = _text(_SYS / "block" / holder.name / "dm/name").strip()
            yield file_or_device, f"{holder.name} ({name})" if name else holder.name


# --- reading files that may vanish meanwhile ---------------------------------------------------------------------


def _with_partitions(file_or_device: FileOrDevice) -> Iterator[FileOrDevice]:
    yield file_or_device
    for part in _entries(_sys_of(file_or_device)) if file_or_device.kind == "device" else ():
        if (part / "partition").exists():
            major, _, minor = _text(part / "dev").strip().partition(":")
            yield FileOrDevice("device", os.makedev(int(major), int(minor)))


def _sys_of(file_or_device: FileOrDevice) -> Path:
    return _SYS / "dev/block" / f"{os.major(file_or_device.first)}:{os.minor(file_or_device.first)}"


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _plain(word: str) -> str:
    """Undo the escapes of mountinfo and swaps: a blank is written as its octal number."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)
