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


class Thing(NamedTuple):
    """A file (its file system and inode) or a block device (its number)."""

    kind: str
    first: int
    second: int = 0


def identity(path: Path) -> Thing | None:
    """Return the regular file or block device at a path; None if there is none."""
    try:
        return _known_as(path.stat())
    except OSError:
        return None


def _known_as(found: os.stat_result) -> Thing | None:
    if stat.S_ISBLK(found.st_mode):
        return Thing("device", found.st_rdev)
    return Thing("file", found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def prove() -> None:
    """Raise Unreachable if holders cannot be found on this system."""
    for path in (_PROC / "self/fd", _PROC / "self/mountinfo", _SYS / "dev/block"):
        if not os.access(path, os.R_OK):
            raise Unreachable(f"{path} cannot be read, so processes that use a volume cannot be found. Mount it.")


def find(things: Collection[Thing]) -> Mapping[Thing, tuple[str, ...]]:
    """Return the holders of each thing, described for a person; things without a known holder are left out."""
    parts = {part: thing for thing in things for part in _with_partitions(thing)}
    found: dict[Thing, dict[str, None]] = {}
    for source in (_processes(parts), _mounts(), _swaps(), _loops(), _stacked(parts)):
        for thing, who in source:
            if thing in parts:
                found.setdefault(parts[thing], {})[who] = None
    return {thing: tuple(names) for thing, names in found.items()}


def of(path: Path) -> str:
    """Return the holders of a file or device, for a sentence."""
    thing = identity(path)
    who = find({thing}).get(thing, ()) if thing else ()
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
    thing = identity(path)
    return any(found == thing for found in _open_files(_PROC / "self"))


# --- sources of holders: each yields pairs of a thing and its holder ----------------------------------------------


def _processes(wanted: Collection[Thing]) -> Iterator[tuple[Thing | None, str]]:
    for process in _entries(_PROC):
        if not process.name.isdecimal() or int(process.name) == os.getpid():
            continue
        held = {*_open_files(process), *_mapped(process, wanted)} & {*wanted}
        who = f"PID {process.name} ({_text(process / 'comm').strip() or '?'})" if held else ""
        yield from ((thing, who) for thing in held)


def _open_files(process: Path) -> Iterator[Thing | None]:
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


def _mapped(process: Path, wanted: Collection[Thing]) -> Iterator[Thing | None]:
    """Yield the mapped files of a process that may be wanted: a mapping outlives the closing of its file."""
    inodes = {str(thing.second) for thing in wanted if thing.kind == "file"}
    devices = any(thing.kind == "device" for thing in wanted)
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


def _mounts() -> Iterator[tuple[Thing | None, str]]:
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
                yield Thing("device", os.makedev(int(major), int(minor))), who
                if major == "0" and source.startswith("/dev/"):  # btrfs has a device number of its own
                    yield identity(Path(_plain(source))), who


def _swaps() -> Iterator[tuple[Thing | None, str]]:
    for line in _text(_PROC / "swaps").splitlines()[1:]:
        yield identity(Path(_plain(line.split()[0]))), "swap"


def _loops() -> Iterator[tuple[Thing | None, str]]:
    for loop in (_SYS / "block").glob("loop*"):
        file = _text(loop / "loop/backing_file").rstrip("\n")
        if file:
            yield identity(Path(file)), loop.name


def _stacked(wanted: Collection[Thing]) -> Iterator[tuple[Thing | None, str]]:
    for thing in wanted:
        for holder in _entries(_sys_of(thing) / "holders") if thing.kind == "device" else ():
            name = _text(_SYS / "block" / holder.name / "dm/name").strip()
            yield thing, f"{holder.name} ({name})" if name else holder.name


# --- reading files that may vanish meanwhile ---------------------------------------------------------------------


def _with_partitions(thing: Thing) -> Iterator[Thing]:
    yield thing
    for part in _entries(_sys_of(thing)) if thing.kind == "device" else ():
        if (part / "partition").exists():
            major, _, minor = _text(part / "dev").strip().partition(":")
            yield Thing("device", os.makedev(int(major), int(minor)))


def _sys_of(thing: Thing) -> Path:
    return _SYS / "dev/block" / f"{os.major(thing.first)}:{os.minor(thing.first)}"


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
