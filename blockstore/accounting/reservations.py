"""Capacity reservations: how much of each pool our rows use, changed in the transaction that changes the rows.

The scheduler reserves in the transaction of its decision. Deleting or failing a row releases its capacity. Like quota,
reservations cannot drift.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from blockstore.db.models import PoolUsage
from blockstore.db.session import insert_if_absent


def reserve(session: Session, pool: str, *, volumes: int = 0, volume_gib: int = 0, snapshot_gib: int = 0) -> None:
    """Reserve capacity on a pool."""
    if not _add(session, pool, volumes, volume_gib, snapshot_gib):
        insert_if_absent(session, PoolUsage, pool=pool, volumes=0, volume_gib=0, snapshot_gib=0)
        _add(session, pool, volumes, volume_gib, snapshot_gib)


def release_capacity(
    session: Session, pool: str | None, *, volumes: int = 0, volume_gib: int = 0, snapshot_gib: int = 0
) -> None:
    """Release capacity on a pool. Do nothing for a row that was never placed."""
    if pool is not None:
        _add(session, pool, -volumes, -volume_gib, -snapshot_gib)


def usage_by_pool(session: Session) -> dict[str, PoolUsage]:
    """Return the usage of every pool, as plain rows."""
    rows: Iterable[Any] = session.execute(_ALL)
    return {row.pool: row for row in rows}


def _add(session: Session, pool: str, volumes: int, volume_gib: int, snapshot_gib: int) -> bool:
    amounts = {"pool_": pool, "volumes_": volumes, "volume_gib_": volume_gib, "snapshot_gib_": snapshot_gib}
    return bool(session.execute(_ADD, amounts).rowcount)  # type: ignore[attr-defined]


_USAGES: Any = PoolUsage.__table__
_ALL: Any = select(_USAGES)
# Built once: building a statement takes longer than running it.
_ADD = (
    update(_USAGES)
    .where(_USAGES.c.pool == bindparam("pool_"))
    .values(
        volumes=_USAGES.c.volumes + bindparam("volumes_"),
        volume_gib=_USAGES.c.volume_gib + bindparam("volume_gib_"),
        snapshot_gib=_USAGES.c.snapshot_gib + bindparam("snapshot_gib_"),
    )
)
