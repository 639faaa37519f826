"""Checks whether other users could change a file: the owners and modes of all directories and links on its path.

Used for the state directory and for plugins. A user who may write to a directory may replace everything below it.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Collection
from pathlib import Path

MAX_LINKS = 40
"""Symbolic links that are followed on one path, as many as in the kernel."""


def weak_place(path: Path, owners: Collection[int]) -> str | None:
    """Return why users other than ``owners`` could change the file at a path, as a clause; None if they could not.

    A missing part ends the walk. Others may write to a directory with the sticky bit: there they cannot replace files
    of other users. A group may write if all its members are among ``owners``, as in a user's private group.
    """
    place = Path("/")
    parts = list(reversed(path.absolute().parts[1:]))
    links = 0
    if reason := _why_weak(place, os.lstat(place), owners):
        return reason
    while parts:
        part = parts.pop()
        if part == "..":
            place = place.parent
            continue
        try:
            found = os.lstat(place / part)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if reason := _why_weak(place / part, found, owners):
            return reason
        if not stat.S_ISLNK(found.st_mode):
            place /= part
            continue
        links += 1
        if links > MAX_LINKS:
            return f"{path} goes through more than {MAX_LINKS} symbolic links"
        to = (place / part).readlink()
        if to.is_absolute():
            place = Path("/")
        parts.extend(reversed([word for word in to.parts if word != "/"]))
    return None


def user_name(uid: int) -> str:
    """Return a user's name and id, for a sentence."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _why_weak(place: Path, found: os.stat_result, owners: Collection[int]) -> str | None:
    if found.st_uid not in owners:
        return f"{place} belongs to {user_name(found.st_uid)}, who can change it"
    mode = found.st_mode
    if stat.S_ISLNK(mode) or (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
        return None
    if mode & stat.S_IWOTH:
        return f"everybody can write to {place}; run `chmod o-w {place}`"
    if mode & stat.S_IWGRP and _has_strangers(found.st_gid, owners):
        return f"the group {_group_name(found.st_gid)} can write to {place}; run `chmod g-w {place}`"
    return None


def _has_strangers(gid: int, owners: Collection[int]) -> bool:
    """Return True if a group has members that are not among the owners, or if its members are unknown."""
    try:
        names = set(grp.getgrgid(gid).gr_mem)
    except KeyError:
        return True
    users = pwd.getpwall()
    ours = {user.pw_name for user in users if user.pw_uid in owners}
    return bool(names - ours) or any(user.pw_gid == gid and user.pw_uid not in owners for user in users)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
