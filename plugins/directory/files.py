"""File access without trust: each name is relative to an open directory; links are not followed; files are checked
before use.

Used by the directory plugin. It is the plugin's only file that calls the operating system, and knows no volumes.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blockstore import private_files
from blockstore.backends import file_locks
from blockstore.backends.contract import Progress
from blockstore.errors import BackendError, InUse

# _IOW(0x94, 9, int) of linux/fs.h: share all blocks of another file.
FICLONE = 0x40049409

_NO_REFLINK = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS})
_CHUNK = 64 * 2**20
_COARSE_CLOCK_NS = 20_000_000
_NFS_REMAINS_S = 2.0
_TRIES = 3


class Folder:
    """An open directory that belongs to this user; leaving the context closes it."""

    def __init__(self, fd: int, label: Path):
        self.fd = fd
        self.label = label

    @classmethod
    def open_root(cls, path: Path, *, may_enter: bool = False) -> Folder:
        """Open the pool's directory. Raise PermissionError if other users can change it, or enter it without
        ``may_enter``."""
        forbidden = 0o022 if may_enter else 0o077
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), path)._proved(forbidden)

    @classmethod
    def open_any(cls, path: Path) -> Folder:
        """Open a directory that may belong to another user, to read one of its files."""
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), path)

    def open_sub(self, name: str) -> Folder | None:
        """Open a directory inside this one; return None if it is missing."""
        try:
            folder = self._enter(name)
        except FileNotFoundError:
            return None
        return folder._proved()

    def make_sub(self, name: str) -> Folder:
        """Open a directory inside this one; make it first if it is missing."""
        try:
            os.mkdir(name, 0o700, dir_fd=self.fd)
            os.chmod(name, 0o700, dir_fd=self.fd)  # independent of the umask
            self.sync()
        except FileExistsError:
            pass
        return self._enter(name)._proved()

    def _enter(self, name: str) -> Folder:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return Folder(os.open(name, flags, dir_fd=self.fd), self.label / name)
        except NotADirectoryError:
            raise BackendError(f"{self.label / name} must be a directory, but is not. Remove it.") from None

    def _proved(self, forbidden: int = 0o077) -> Folder:
        """Return the folder. Close it and raise PermissionError if it belongs to another user or has a ``forbidden``
        mode bit."""
        try:
            found = os.fstat(self.fd)
            if found.st_uid != os.geteuid():
                raise PermissionError(errno.EACCES, "it belongs to another user")
            if found.st_mode & forbidden:
                raise PermissionError(errno.EACCES, "other users can enter or change it")
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Close the directory."""
        os.close(self.fd)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # --- reading

    def entries(self) -> Iterator[os.DirEntry[str]]:
        """Yield the entries of the directory without hidden names."""
        with os.scandir(self.fd) as found:
            for entry in found:
                if not entry.name.startswith("."):
                    yield entry

    def hidden(self, prefix: str) -> list[str]:
        """Return the names with a prefix, also hidden ones."""
        with os.scandir(self.fd) as found:
            return [entry.name for entry in found if entry.name.startswith(prefix)]

    def stat(self, name: str, *, names: int = 1) -> os.stat_result | None:
        """Return the stat of a private plain file; None if it is missing. Raise BackendError if the file is another
        kind."""
        try:
            found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        self._prove_file(name, found, names)
        return found

    def read_fresh(self, name: str, length: int, *, names: int = 1) -> bytes:
        """Read the first bytes of a file from the storage, not from this node's cache, which may be outdated.

        While NFS holds a delegation of a file, it answers stat, open and read without asking the server.
        """
        try:
            os.fstatvfs(self.fd)  # asks the server, with a timeout; an open may wait for ever
        except OSError as exc:
            if exc.errno != errno.ESTALE:  # ESTALE: the share has another disk now; reading the file shows it
                raise
        try:
            with closing(self.open(name, names=names, flags=os.O_DIRECT)) as fd:
                return read_start(fd, length)
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # local file systems need aligned memory, and their cache is right
                raise
        with closing(self.open(name, names=names)) as fd:
            return read_start(fd, length)

    def open(self, name: str, *, write: bool = False, names: int = 1, flags: int = 0) -> int:
        """Open a private plain file. Raise FileNotFoundError if it is missing, BackendError if it is anything else.

        ``names``: the highest allowed number of hard links of the file.
        """
        if self.stat(name, names=names) is None:  # checked before the open, which would block on a pipe
            raise FileNotFoundError(errno.ENOENT, "No such file", str(self.label / name))
        flags |= (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=self.fd)
        except OSError as exc:
            if exc.errno == errno.ELOOP:
                raise self._planted(name, "a symbolic link") from None
            raise
        try:
            self._prove_file(name, os.fstat(fd), names)  # again, for the file that was opened
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _prove_file(self, name: str, found: os.stat_result, names: int) -> None:
        """Raise BackendError for files that this plugin never makes: they could be planted to redirect reads and
        writes."""
        if stat.S_ISLNK(found.st_mode):
            raise self._planted(name, "a symbolic link")
        if not stat.S_ISREG(found.st_mode):
            raise self._planted(name, "not a plain file")
        if found.st_nlink > names:
            raise self._planted(name, f"one of {found.st_nlink} hard links to the same bytes")
        if found.st_mode & 0o077:
            raise BackendError(
                f"{self.label / name} has mode {stat.S_IMODE(found.st_mode):04o}, so other users can reach its data,"
                f" and it is not used. Find out who changed the mode, then: chmod 600 {self.label / name}"
            )

    def _planted(self, name: str, what: str) -> BackendError:
        return BackendError(
            f"{self.label / name} is {what}, which blockstore never creates and does not use. Find out who created it."
        )

    # --- changing

    @contextmanager
    def building(self, name: str, temporary: str) -> Iterator[int]:
        """Give a new private file; it gets its name, durably, only if the block succeeds.

        An existing file of that name is replaced atomically.
        """
        fresh = self.stat(name) is None
        self.remove(temporary)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=self.fd)
        current_name = temporary
        try:
            os.fchmod(fd, 0o600)  # independent of the umask
            yield fd
            os.fsync(fd)
            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            current_name = name if fresh else ""
            self.sync()
        except BaseException:
            if current_name:
                with suppress(OSError):
                    self.remove(current_name)
            raise
        finally:
            os.close(fd)

    def nameless(self, name: str) -> int:
        """Return a new private file whose name is removed already, so that it vanishes if the process dies."""
        self.remove(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self.fd)
        try:
            os.fchmod(fd, 0o600)
            self.remove(name)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def rename(self, name: str, to: str, folder: Folder | None = None) -> None:
        """Rename a file to an unused name, here or in another directory; the rename survives a power cut."""
        os.rename(name, to, src_dir_fd=self.fd, dst_dir_fd=folder.fd if folder else self.fd)
        self.sync()
        if folder and folder is not self:
            folder.sync()

    def link(self, name: str, also: str) -> None:
        """Give a file a second name."""
        os.link(name, also, src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)

    def remove(self, name: str) -> bool:
        """Remove a file; return False if it was missing."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            return False
        return True

    def remove_sub(self, name: str) -> None:
        """Remove a directory and the unfinished files in it; do nothing if it is missing."""
        folder = self.open_sub(name)
        if folder is None:
            return
        deadline = time.monotonic() + _NFS_REMAINS_S
        with folder:
            while True:
                try:
                    with os.scandir(folder.fd) as left:
                        for entry in left:
                            folder.remove(entry.name)
                    os.rmdir(name, dir_fd=self.fd)
                except OSError as exc:
                    # An NFS client keeps a file that was removed while open as .nfsXXXX, until it is closed.
                    if exc.errno not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
                else:
                    return

    def sync(self) -> None:
        """Make the names in the directory survive a power cut."""
        os.fsync(self.fd)

    def space(self) -> tuple[int, int]:
        """Return total and free bytes, as df does: space reserved for root is in neither."""
        now = os.fstatvfs(self.fd)
        free = now.f_bavail * now.f_frsize
        return (now.f_blocks - now.f_bfree) * now.f_frsize + free, free

    def prove_writable(self) -> None:
        """Raise the OSError that making a file would raise."""
        if os.fstatvfs(self.fd).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, "its file system is read-only")
        if not os.access(f"/proc/self/fd/{self.fd}", os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, "no files can be created in it")


def temporary_name(name: str) -> str:
    """Return the name of the unfinished file of ``name``."""
    return f".{name}.tmp"


def make_root(path: Path, *, parents: bool) -> None:
    """Make the pool's directory if it is missing."""
    if not path.exists():
        if parents:
            private_files.make_directory(path)
        else:
            path.mkdir(0o700, exist_ok=True)
            path.chmod(0o700)


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close a file descriptor at the end. Errors of the close are ignored: a flush or a present error reports them
    already."""
    try:
        yield fd
    finally:
        with suppress(OSError):
            os.close(fd)


def size_of(fd: int) -> int:
    """Return the size of an open file in bytes."""
    return os.fstat(fd).st_size


def set_size(fd: int, size: int) -> None:
    """Set the size of an open file; an added part is a hole, which reads as zeros."""
    os.ftruncate(fd, size)


def read_start(fd: int, length: int) -> bytes:
    """Read the first bytes of an open file."""
    return os.pread(fd, length, 0)


def write_start(fd: int, data: bytes) -> None:
    """Write a few bytes to a new file."""
    os.pwrite(fd, data, 0)


def flush(fd: int) -> None:
    """Make an open file's bytes survive a power cut."""
    os.fsync(fd)


def forget_cached(fd: int) -> None:
    """Drop a flushed file from this node's cache, so that its bytes are read from the storage."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def is_open_elsewhere(fd: int) -> bool:
    """Return True if the file is open elsewhere on this machine; False if it is not, or if the file system cannot
    tell."""
    for patience in range(_TRIES, -1, -1):
        if file_locks.is_sole_opener(fd) is not False:
            return False
        if patience:
            # A process that another thread is starting holds our closed files until its exec.
            time.sleep(0.01)
    return True


# QEMU's own protocol: a QEMU with an open image locks some of these bytes; on NFS the server keeps the locks.
_LOCKED_BYTES = (100, 200)
_NO_WRITERS = 201
"""Lock byte 201: its holder does not share the image with writers."""


def is_image_open(fd: int) -> bool:
    """Return True if a QEMU, on this machine or another one, has an image open."""
    return file_locks.is_locked(fd, *_LOCKED_BYTES)


def lock_image(fd: int) -> bool:
    """Keep every QEMU from opening an image until ``fd``, which must be open for writing, is closed.

    Return False if a QEMU has the image open.
    """
    try:
        file_locks.lock(fd, fcntl.F_WRLCK, *_LOCKED_BYTES)
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def let_read(fd: int) -> None:
    """Allow QEMUs to open a locked image again, but not for writing."""
    first, count = _LOCKED_BYTES
    file_locks.lock(fd, fcntl.F_RDLCK, _NO_WRITERS, 1)
    file_locks.lock(fd, fcntl.F_UNLCK, first, _NO_WRITERS - first)
    file_locks.lock(fd, fcntl.F_UNLCK, _NO_WRITERS + 1, first + count - _NO_WRITERS - 1)


# --- copying -----------------------------------------------------------------------------------------------


def _any(_length: int) -> None:
    """Allow any number of bytes to be written, without checking the disk."""


def copy(source: int, target: int, label: str, progress: Progress, prove_space: Callable[[int], None] = _any) -> None:
    """Copy a consistent state of a file to a new, empty file. Blocks are shared if the file system can; holes stay
    holes.

    If the source was written while its bytes were copied, the copy starts again. ``prove_space`` is called with the
    number of bytes before they are written. Raise InUse if the source is written during every try.
    """
    progress(0)
    if _reflink(source, target):
        return
    highest = 0

    def rising(percent: int) -> None:
        nonlocal highest
        highest = max(highest, percent)
        progress(highest)

    for _ in range(_TRIES):
        before = _stamp(source)
        _copy_sparse(source, target, rising, prove_space)
        if _stamp(source) == before:
            return
        os.ftruncate(target, 0)
    raise InUse(
        f"{label} was written while it was copied, {_TRIES} times. Stop the writer, or keep the volumes on btrfs or"
        " xfs, which copy a file in one instant."
    )


def _reflink(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as exc:
        if exc.errno in _NO_REFLINK:
            return False
        raise
    return True


def _stamp(fd: int) -> tuple[int, int, int]:
    """Return size and times of a file; they change whenever the file is written."""
    found = os.fstat(fd)
    age = time.time_ns() - found.st_mtime_ns
    if 0 <= age < _COARSE_CLOCK_NS:
        # Before Linux 6.13, two writes within one clock tick leave the same time.
        time.sleep((_COARSE_CLOCK_NS - age) / 1e9)
        found = os.fstat(fd)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _copy_sparse(source: int, target: int, progress: Progress, prove_space: Callable[[int], None]) -> None:
    """Copy the data without holes; the target is new and empty, so that the holes read as zeros."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    for start, end in data_of(source, size):
        position = start
        while position < end:
            progress(position * 100 // size)
            length = min(end - position, _CHUNK)
            prove_space(length)
            copied = _copy_range(source, target, position, length)
            if not copied:
                break  # the source was truncated meanwhile; its stamp will differ
            position += copied
    progress(100)


def data_of(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each region of data between the holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return  # only a hole is left
            raise
        end = min(size, os.lseek(fd, start, os.SEEK_HOLE))
        yield start, end


def _copy_range(source: int, target: int, position: int, length: int) -> int:
    try:
        copied = os.copy_file_range(source, target, length, position, position)
    except OSError as exc:
        if exc.errno not in _NO_REFLINK:
            raise
        copied = 0
    if copied:
        return copied
    return os.pwrite(target, os.pread(source, min(length, 2**20), position), position)


# --- an open volume ----------------------------------------------------------------------------------------


class VolumeFile(io.FileIO):
    """An open volume: an unbuffered file that writing cannot make larger."""

    def __init__(self, fd: int, *, write: bool, no_space: Callable[[], BackendError]):
        super().__init__(fd, "r+b" if write else "rb", closefd=False)
        self._no_space = no_space

    def write(self, data: bytes) -> int:  # type: ignore[override]
        space = os.fstat(self.fileno()).st_size - self.tell()
        part = memoryview(data).cast("B")
        if self.writable() and part.nbytes and space <= 0:
            raise OSError(errno.ENOSPC, "This is past the end of the volume.")
        try:
            return super().write(part[: max(0, space)])
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._no_space() from exc
            raise

    def pread(self, length: int, offset: int) -> bytes:
        """Read at a position; safe for several threads at once."""
        return os.pread(self.fileno(), length, offset)

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        """Write at a position, within the size; safe for several threads at once."""
        part = memoryview(data).cast("B")
        space = os.fstat(self.fileno()).st_size - offset
        if part.nbytes and space <= 0:
            raise OSError(errno.ENOSPC, "This is past the end of the volume.")
        try:
            return os.pwrite(self.fileno(), part[: max(0, space)], offset)
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._no_space() from exc
            raise

    def truncate(self, _size: int | None = None) -> int:
        raise io.UnsupportedOperation("The size of a volume is changed by extend_volume only.")
