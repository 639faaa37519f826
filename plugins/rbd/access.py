"""Checks the requirements for access to a pool: configuration, keyring, pools and caps; explains each one missing.

Used by ``librbd.py`` and ``commands.py``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from blockstore_plugins.rbd.cluster import PoolAccess, explain

from blockstore.errors import BackendError, Unreachable

UNPARSABLE = "[::1.2.3.4]:0/1"
"""An address that Ceph's programs and caps accept but monitors cannot parse. Monitors refuse to blocklist it with
EINVAL, or with EACCES if the user may not blocklist at all. Nothing is blocklisted; a monitor that could parse the
address would blocklist no real client, for one second."""
BLOCKLIST = ("osd blocklist", "osd blacklist")
"""The monitors' command, and its name before Ceph 16."""


def is_unknown(message: str) -> bool:
    """Return True if the monitors refused a command because they do not know it."""
    return "unable to parse" not in message and ("not known" in message or "no valid command" in message)


def need_conf(place: PoolAccess) -> None:
    """Raise Unreachable if the cluster's configuration file is missing."""
    if not place.conf.is_file():
        raise Unreachable(f"{place.conf} does not exist; the option ceph_conf names the cluster's configuration.")


def need_keyring(place: PoolAccess) -> None:
    """Raise Unreachable if the configured keyring cannot be read."""
    if place.keyring is not None and not _is_readable(place.keyring):
        raise _no_key(place, [str(place.keyring)])


def not_connected(place: PoolAccess, code: int, message: str, searched: Sequence[str] = ()) -> BackendError:
    """Return the error for a refused connection. It never says that an image or a pool is missing.

    ``searched``: the keyring files that Ceph tried.
    """
    paths = [str(place.keyring)] if place.keyring is not None else [path.strip() for path in searched]
    paths = [path for path in paths if path]
    if paths and not any(_is_readable(Path(path)) for path in paths):
        return _no_key(place, paths)
    words = f" ({' '.join(message.split())[-200:]})" if message.strip() else ""
    if code in (errno.EACCES, errno.EPERM):
        where = f" with the key in {', '.join(paths)}" if paths else ""
        return Unreachable(
            f"The cluster does not admit client.{place.user}{where}{words}. Compare its key with the cluster's: ceph"
            f" auth get client.{place.user}"
        )
    if code == errno.ENOENT:
        return Unreachable(f"{place.conf} leads to no cluster{words}. Check mon_host and keyring in it.")
    return explain(code, f"the connection of client.{place.user}", message)


def _no_key(place: PoolAccess, paths: Sequence[str]) -> Unreachable:
    present = [path for path in paths if Path(path).exists()]
    if present:
        return Unreachable(
            f"The keyring {present[0]} of client.{place.user} cannot be read by user {os.geteuid()}, who runs"
            f" blockstore. Give it to that user: chown {os.geteuid()} {present[0]}"
        )
    return Unreachable(
        f"The keyring of client.{place.user} does not exist: {', '.join(paths)}. The option keyring names it. To"
        f" export it on a node of the cluster: ceph auth get client.{place.user} -o {paths[0]}"
    )


def _is_readable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.R_OK)


def no_pool(place: PoolAccess) -> Unreachable:
    """Return the error for a missing pool or namespace."""
    make = f"ceph osd pool create {place.pool}; rbd pool init {place.pool}"
    if place.namespace:
        make += f"; rbd namespace create {place.spec}"
    return Unreachable(f"The pool {place.spec} does not exist. Create it: {make}")


def no_data_pool(place: PoolAccess, data_pool: str) -> Unreachable:
    """Return the error for a data pool that is missing or that the user may not use."""
    return Unreachable(
        f"The pool {data_pool}, for the data of new images in {place.pool}, does not exist or may not be used by"
        f" client.{place.user}. Create it: ceph osd pool create {data_pool}; ceph osd pool application enable"
        f" {data_pool} rbd; and give the user the osd cap 'profile rbd pool={data_pool}', in addition to its present"
        " caps."
    )


def may_not_blocklist(place: PoolAccess) -> Unreachable:
    """Return the error for a user without the cap to blocklist dead clients, which breaking their locks needs."""
    pools = ", ".join(f"profile rbd pool={pool}" for pool in (place.pool, place.data_pool) if pool)
    return Unreachable(
        f"The Ceph user client.{place.user} may not `osd blocklist`: the lock of a dead client would stay forever, and"
        f" its image would be read-only. It needs the mon cap 'profile rbd': ceph auth caps client.{place.user} mon"
        f" 'profile rbd' mgr 'profile rbd' osd '{pools}' (this replaces all caps of the user: include every pool that"
        " it uses)"
    )
