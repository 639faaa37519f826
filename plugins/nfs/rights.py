"""Explains why this machine may not write to a share; the error names the export and the server's option to change.

The server may map root to another user (root_squash, its default), or map every user to one (all_squash). Or only the
directory belongs to another user.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import closing, suppress
from pathlib import Path

from blockstore.backends.process import run
from blockstore.errors import BackendError, Unreachable

_PROBE = ".blockstore-whose"
_STRANGER = 4_294_900_001
"""A user id that owns no directory."""


def refused(export: str, at: Path, reason: str) -> Unreachable:
    """Return the error for a share on which this user lacks permissions that it needs."""
    try:
        with closing(_Directory(at)) as directory:
            why = _why(export, directory)
    except OSError as exc:
        if exc.errno == errno.EROFS:
            return read_only(export, at)
        # The directory cannot even be opened.
        found = None
        with suppress(OSError):
            found = at.stat()
        why = _squashed(export, None if found is None else found.st_uid)
    return Unreachable(f"{export} cannot be used: {reason}. {why}")


def read_only(export: str, at: Path) -> Unreachable:
    """Return the error for a read-only share."""
    server, path = parts(export)
    return Unreachable(
        f"{export} is read-only. Export it read-write on its server: the option rw, not ro, for {path} in /etc/exports"
        f" of {server}, then exportfs -ra; if the server has that already, remount it here: mount -o remount,rw {at}"
    )


def parts(export: str) -> tuple[str, str]:
    """Return host and path of HOST:/PATH, in which HOST may be [IPv6]."""
    server, _, path = export.partition(":/")
    return server, f"/{path}"


class _Directory:
    """The root of the share, open."""

    def __init__(self, at: Path):
        self.fd = os.open(at, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        found = os.fstat(self.fd)
        self.owner, self.mode = found.st_uid, stat.S_IMODE(found.st_mode)

    def close(self) -> None:
        os.close(self.fd)

    def owner_of_new_file(self) -> int | None:
        """Return the owner of a newly made file; None if this user may not make one. Raise OSError if the share is
        read-only."""
        with suppress(OSError):
            os.unlink(_PROBE, dir_fd=self.fd)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(_PROBE, flags, 0o600, dir_fd=self.fd)
        except PermissionError:
            return None
        try:
            return os.fstat(fd).st_uid
        finally:
            os.close(fd)
            with suppress(OSError):
                os.unlink(_PROBE, dir_fd=self.fd)

    def is_a_stranger_let_in(self) -> bool:
        """Return True if a user who owns nothing may write to the directory; tested without making a file."""
        who = ("setpriv", f"--reuid={_STRANGER}", f"--regid={_STRANGER}", "--clear-groups")
        try:
            run((*who, "test", "-w", f"/proc/self/fd/{self.fd}"), pass_fds=(self.fd,), package="util-linux")
        except BackendError:
            return False
        return True


def _why(export: str, directory: _Directory) -> str:
    ours = os.geteuid()
    owner = directory.owner_of_new_file()
    if owner is None:
        return _squashed(export, directory.owner)
    if owner != ours:
        if not directory.mode & 0o002 and directory.is_a_stranger_let_in():
            return (
                f"Its server maps every user to uid {owner}: the option all_squash. Export it with"
                f" no_all_squash,no_root_squash, and give its directory to root: {_on_server(export, f'chown {ours}')}"
            )
        return _squashed(export, directory.owner, owner)
    if directory.owner != ours:
        return (
            f"Its directory belongs to uid {directory.owner}, who could change volumes:"
            f" {_on_server(export, f'chown {ours}')}"
        )
    return f"Users other than its owner can change its directory: {_on_server(export, 'chmod 755')}"


def _squashed(export: str, owner: int | None, whom: int | None = None) -> str:
    server, path = parts(export)
    user = "another user" if whom is None else f"uid {whom}"
    also = ""
    if owner not in (None, os.geteuid()):
        also = f"; its directory must belong to root: {_on_server(export, f'chown {os.geteuid()}')}"
    return (
        f"Its server maps root of this machine to {user}: the option root_squash, its default, or all_squash. Export"
        f" it with no_root_squash: {path} THIS-MACHINE(rw,no_root_squash,no_subtree_check) in /etc/exports of"
        f" {server}, then exportfs -ra{also}"
    )


def _on_server(export: str, command: str) -> str:
    server, path = parts(export)
    return f"on {server}, {command} {path!r}" if " " in path else f"on {server}, {command} {path}"
