"""Volumes written straight into the database, because a hundred thousand creates would take too long."""

from __future__ import annotations

import datetime
import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select

from blockstore.app.wiring import database_url
from blockstore.config import Config, ServiceConfig
from blockstore.db import migrations
from blockstore.db.models import PoolUsage, QuotaUsage, Volume, VolumeMetadata, VolumeType
from blockstore.db.session import Database

POOL = "blockstore@directory#directory"
BATCH = 5000


def fill(state_dir: Path, count: int) -> list[str]:
    """Insert so many volumes, oldest first; return their ids. One in a hundred is in error; each has metadata."""
    db = Database(database_url(Config(service=ServiceConfig(state_dir=state_dir))))
    migrations.upgrade(db)
    start = datetime.datetime(2026, 1, 1)
    ids = [str(uuid.uuid4()) for _ in range(count)]
    with db.write() as session:
        type_id = session.execute(select(VolumeType.id).limit(1)).scalar()
        if type_id is None:
            type_id = str(uuid.uuid4())
            session.execute(insert(VolumeType).values(id=type_id, name="__DEFAULT__", is_public=True))
        for first in range(0, count, BATCH):
            batch = list(enumerate(ids))[first : first + BATCH]
            session.execute(insert(Volume), [_row(n, row_id, type_id, start) for n, row_id in batch])
            session.execute(insert(VolumeMetadata), [row for n, row_id in batch for row in _metadata(n, row_id)])
        session.execute(insert(PoolUsage).values(pool=POOL, volumes=count, volume_gib=count, snapshot_gib=0))
        session.execute(
            insert(QuotaUsage),
            [{"project_id": "admin", "resource": name, "in_use": count} for name in ("volumes", "gigabytes")],
        )
    db.dispose()
    return ids


def _row(n: int, row_id: str, type_id: str, start: datetime.datetime) -> dict[str, Any]:
    return {
        "id": row_id,
        "project_id": "admin",
        "user_id": "admin",
        "name": f"volume-{n}",
        "size": 1,
        "status": "error" if n % 100 == 0 else "available",
        "availability_zone": "nova",
        "host": POOL,
        "volume_type_id": type_id,
        "created_at": start + datetime.timedelta(seconds=n),
    }


def _metadata(n: int, row_id: str) -> list[dict[str, str]]:
    return [
        {"volume_id": row_id, "key": "purpose", "value": "test"},
        {"volume_id": row_id, "key": "rack", "value": f"r{n % 500}"},
    ]
