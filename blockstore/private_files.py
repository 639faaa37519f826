"""Directories and files for this user alone: the state directory, and what the service and its plugins keep in it.

Nothing is opened through a link, nothing that another user owns is used, and modes do not depend on the umask.
Functions raise OSError, whose ``strerror`` says what to do; ``explained`` turns it into the sentence of a start.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blockstore.errors import ConfigError
from blockstore.trusted_paths import user_name, weak_place

SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal")
"""Files that SQLite opens beside a database, by their paths."""

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of the operating system that say so."""


# --- directories -------------------------------------------------------------------------------------------


def make_directory(path: Path) -> None:
    """Make a directory, and the missing ones above it, for this user alone; prove one that exists."""
    if not path.exists():
        if path.parent != path and not path.parent.exists():
            make_directory(path.parent)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            path.chmod(0o700)  # whatever the umask took
    prove_directory(path)


def prove_directory(path: Path) -> None:
    """Raise PermissionError unless a directory is this user's, closed to others, and can be replaced by nobody else."""
    found = path.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if found.st_uid != os.geteuid():
        raise _refused(
            path,
            f"it belongs to {user_name(found.st_uid)}, and this process runs as {user_name(os.geteuid())};"
            " run blockstore as its owner, or use another directory",
        )
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise _refused(
            path, f"it has mode {mode:04o}, and must be closed to other users; `chmod 700 {path}` makes it right"
        )
    if reason := weak_place(path, {0, os.geteuid()}):
        raise _refused(path, f"others could replace it, for {reason}")


# --- files -------------------------------------------------------------------------------------------------


def open_file(path: Path, flags: int = os.O_RDONLY, *, names: int = 1) -> int:
    """Return a descriptor of a plain file of this user; one that O_CREAT makes has mode 0600.

    ``names``: how many hard links the file may have. Raise PermissionError for anything else.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # an open would wait for ever on a pipe
    if flags & os.O_CREAT:
        try:
            fd = os.open(path, flags | os.O_EXCL, 0o600)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            flags &= ~os.O_CREAT
        else:
            os.fchmod(fd, 0o600)  # whatever the umask took
            return fd
    check_file(path, names=names)  # before the open, which has effects on some devices
    try:
        fd = os.open(path, flags)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise _planted(path, "a symbolic link") from None
        raise
    try:
        _prove(path, os.fstat(fd), names)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_file(path: Path, *, names: int = 1) -> bool:
    """Return True if a plain file of this user is there, False if nothing is. Raise PermissionError for anything else.

    For files that others open by their path.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    _prove(path, found, names)
    return True


def check_database(path: Path) -> None:
    """Check the files that SQLite opens for a database."""
    for suffix in SQLITE_SUFFIXES:
        check_file(path.with_name(path.name + suffix))


def create(path: Path) -> bool:
    """Make an empty file unless it is there; return True if it was made."""
    if check_file(path):
        return False  # not opened: closing a database would give up the locks that SQLite holds for this process
    os.close(open_file(path, os.O_RDWR | os.O_CREAT))
    return True


def read(path: Path, *, names: int = 1) -> bytes:
    """Return what a file holds."""
    with os.fdopen(open_file(path, names=names), "rb") as file:
        return file.read()


def write(
    path: Path,
    data: bytes,
    *,
    replace: bool = True,
    mode: int = 0o600,
    temporary: str = "",
    is_due: Callable[[], bool] = lambda: True,
) -> bool:
    """Write a file, whole or not at all, durably; return True unless ``is_due``, asked last, says False.

    ``replace``: False leaves an existing file as it is. ``temporary``: the name beside it under which the data are
    written; one that a killed process left is replaced. By default it is this process's own.
    """
    fresh = path.with_name(temporary or f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    try:
        with os.fdopen(open_file(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if mode != 0o600:
                os.fchmod(file.fileno(), mode)
        if not is_due():
            return False
        if replace:
            fresh.replace(path)
        else:
            with suppress(FileExistsError):
                os.link(fresh, path)
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, str(path)) from exc  # an error of a write names no file
    finally:
        fresh.unlink(missing_ok=True)
    return True


def _prove(path: Path, found: os.stat_result, names: int) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise _planted(path, "a symbolic link")
    if not stat.S_ISREG(found.st_mode):
        raise _planted(path, "not a plain file")
    if found.st_uid != os.geteuid():
        raise _planted(path, f"a file of {user_name(found.st_uid)}")
    if found.st_nlink > names:
        raise _planted(path, f"one of {found.st_nlink} hard links to the same file")


def _planted(path: Path, what: str) -> PermissionError:
    return _refused(
        path, f"it is {what}, which blockstore never makes, and is not used; find out who put it there, then remove it"
    )


def _refused(path: Path, sentence: str) -> PermissionError:
    return PermissionError(errno.EACCES, sentence, str(path))


# --- the state directory ------------------------------------------------------------------------------------


def prepare_state_dir(path: Path) -> Path:
    """Make the state directory, for its owner alone. Raises ConfigError, also for one that others may enter."""
    try:
        make_directory(path)
    except OSError as exc:
        raise ConfigError(f"The state directory {path} cannot be used: {exc.strerror}.") from exc
    return path


def prove_state_dir(path: Path) -> Path:
    """Return the state directory, which need not be there. Raises ConfigError when it is not this user's alone."""
    return prepare_state_dir(path) if path.exists() else path


# --- sentences ---------------------------------------------------------------------------------------------


@contextmanager
def explained(directory: Path, what: str = "") -> Iterator[None]:
    """Turn an error of the operating system, or of SQLite about its disk, into a ConfigError that names the directory.

    ``what``: what the file is, for the sentence.
    """
    try:
        yield
    except OSError as exc:
        file = f"{exc.filename or directory}{f', {what}' if what else ''}"
        if exc.errno in DISK_FULL:
            raise _full(directory, exc.strerror or str(exc), f"{file}," if what else file) from exc
        raise ConfigError(f"{file}: {(exc.strerror or str(exc)).rstrip('.')}.") from exc
    except Exception as exc:
        import sqlite3  # not for every command

        cause = getattr(exc, "orig", exc)  # SQLAlchemy wraps the driver's own errors
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF if isinstance(cause, sqlite3.Error) else 0
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and is_full(directory)):
            raise _full(directory, str(cause), "the database") from exc
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise ConfigError(
                f"The database in the state directory {directory} cannot be used: {cause}. Look at its disk."
            ) from exc
        raise


def is_full(directory: Path) -> bool:
    """Return True if the disk of a directory has no space for this user."""
    with suppress(OSError):
        now = os.statvfs(directory)
        return now.f_bavail * now.f_frsize < 64 * 1024
    return False


def _full(directory: Path, said: str, file: str) -> ConfigError:
    return ConfigError(
        f"The disk of the state directory {directory} is full ({said}): {file} could not be written."
        " Free some space on it, and start again."
    )
