"""The capacity ledger: how much of each pool our rows take, changed in the transaction that changes the rows.

The scheduler claims in the same breath as it decides; who removes or fails a row releases. Like quota, it cannot drift.
"""

from __future__ import annotations

from sqlalchemy import Update, select, update
from sqlalchemy.orm import Session

from blockstore.db.models import PoolUsage
from blockstore.db.session import insert_if_absent


def claim(
    session: Session, pool: str, *, volumes: int = 0, volume_gib: int = 0, snapshot_gib: int = 0, room_gib: float | None
) -> bool:
    """Take room on a pool unless less than ``room_gib`` would be left by others; say whether it was granted.

    ``room_gib``: the most that volumes and snapshots of ours may take together; None for no bound.
    """
    insert_if_absent(session, PoolUsage, pool=pool, volumes=0, volume_gib=0, snapshot_gib=0)
    statement = update(PoolUsage).where(PoolUsage.pool == pool)
    if room_gib is not None:
        statement = statement.where(
            PoolUsage.volume_gib + PoolUsage.snapshot_gib + volume_gib + snapshot_gib <= room_gib
        )
    return _apply(session, statement, volumes, volume_gib, snapshot_gib)


def release(
    session: Session, pool: str | None, *, volumes: int = 0, volume_gib: int = 0, snapshot_gib: int = 0
) -> None:
    """Give room back; nothing to do for a row that was never placed."""
    if pool is not None:
        _apply(session, update(PoolUsage).where(PoolUsage.pool == pool), -volumes, -volume_gib, -snapshot_gib)


def ledger(session: Session) -> dict[str, PoolUsage]:
    """Return the usage of every pool."""
    return {usage.pool: usage for usage in session.scalars(select(PoolUsage))}


def _apply(session: Session, statement: Update, volumes: int, volume_gib: int, snapshot_gib: int) -> bool:
    done = session.execute(
        statement.values(
            volumes=PoolUsage.volumes + volumes,
            volume_gib=PoolUsage.volume_gib + volume_gib,
            snapshot_gib=PoolUsage.snapshot_gib + snapshot_gib,
        ).execution_options(synchronize_session=False)
    )
    return bool(done.rowcount)  # type: ignore[attr-defined]
