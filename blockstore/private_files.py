"""Directories and files for this user alone: the state directory, and the files of the service and plugins in it.

No file is opened through a symbolic link, no file of another user is used, and modes do not depend on the umask.
Functions raise OSError, whose ``strerror`` says what to do; ``explained`` turns it into a ConfigError.
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
"""Error numbers that mean a full disk, a full quota or a file size limit."""


# --- directories -------------------------------------------------------------------------------------------


def make_directory(path: Path) -> None:
    """Make a directory and its missing parents, for this user alone; check a directory that exists."""
    if not path.exists():
        if path.parent != path and not path.parent.exists():
            make_directory(path.parent)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            path.chmod(0o700)  # regardless of the umask
    prove_directory(path)


def prove_directory(path: Path) -> None:
    """Raise PermissionError unless a directory is this user's, closed to others, and others cannot replace it."""
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
        raise _refused(path, f"it has mode {mode:04o}, and other users must have no access; run `chmod 700 {path}`")
    if reason := weak_place(path, {0, os.geteuid()}):
        raise _refused(path, f"others could replace it: {reason}")


# --- files -------------------------------------------------------------------------------------------------


def open_file(path: Path, flags: int = os.O_RDONLY, *, names: int = 1) -> int:
    """Return a descriptor of a regular file of this user; a file that O_CREAT makes has mode 0600.

    ``names``: how many hard links the file may have. Raise PermissionError for any other kind of file.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # opening a pipe would block for ever
    if flags & os.O_CREAT:
        try:
            fd = os.open(path, flags | os.O_EXCL, 0o600)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            flags &= ~os.O_CREAT
        else:
            os.fchmod(fd, 0o600)  # regardless of the umask
            return fd
    check_file(path, names=names)  # before the open, which has side effects on some devices
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
    """Return True for a regular file of this user, False if the path is missing. Raise PermissionError otherwise.

    For files that other code opens by their path.
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
    """Make an empty file if it is missing; return True if it was made."""
    if check_file(path):
        return False  # not opened: closing a database would release the locks that SQLite holds for this process
    os.close(open_file(path, os.O_RDWR | os.O_CREAT))
    return True


def read(path: Path, *, names: int = 1) -> bytes:
    """Return the content of a file."""
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
    """Write a file atomically and durably. Return False, and leave it alone, if ``is_due`` finally returns False.

    ``replace``: False keeps an existing file. ``temporary``: name of the temporary file in the same directory; a file
    that a killed process left there is replaced. The default name holds the process id.
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
        raise OSError(exc.errno, exc.strerror, str(path)) from exc  # the error of a write does not name the file
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
        path, f"it is {what}, which blockstore never creates and does not use; find out who created it, then remove it"
    )


def _refused(path: Path, sentence: str) -> PermissionError:
    return PermissionError(errno.EACCES, sentence, str(path))


# --- the state directory ------------------------------------------------------------------------------------


def prepare_state_dir(path: Path) -> Path:
    """Make the state directory, for this user alone. Raise ConfigError if that fails or if others may enter it."""
    try:
        make_directory(path)
    except OSError as exc:
        raise ConfigError(f"The state directory {path} cannot be used: {exc.strerror}.") from exc
    return path


def prove_state_dir(path: Path) -> Path:
    """Return the state directory, which may be missing. Raise ConfigError if others own it or may enter it."""
    return prepare_state_dir(path) if path.exists() else path


# --- sentences ---------------------------------------------------------------------------------------------


@contextmanager
def explained(directory: Path, what: str = "") -> Iterator[None]:
    """Turn an error of the operating system, or of SQLite about its disk, into a ConfigError that names the directory.

    ``what``: a description of the file for the message.
    """
    try:
        yield
    except OSError as exc:
        file = f"{exc.filename or directory}{f', {what}' if what else ''}"
        if exc.errno in DISK_FULL:
            raise _full(directory, exc.strerror or str(exc), f"{file}," if what else file) from exc
        raise ConfigError(f"{file}: {(exc.strerror or str(exc)).rstrip('.')}.") from exc
    except Exception as exc:
        import sqlite3  # only here, because most commands do not need it

        cause = getattr(exc, "orig", exc)  # SQLAlchemy wraps the driver's own errors
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF if isinstance(cause, sqlite3.Error) else 0
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and is_full(directory)):
            raise _full(directory, str(cause), "the database") from exc
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise ConfigError(
                f"The database in the state directory {directory} cannot be used: {cause}. Check its disk."
            ) from exc
        raise


def is_full(directory: Path) -> bool:
    """Return True if the disk of a directory has no space for this user."""
    with suppress(OSError):
        now = os.statvfs(directory)
        return now.f_bavail * now.f_frsize < 64 * 1024
    return False


def _full(directory: Path, cause: str, file: str) -> ConfigError:
    return ConfigError(
        f"The disk of the state directory {directory} is full ({cause}): {file} could not be written."
        " Free some space on it, and start again."
    )
