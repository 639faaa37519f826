"""An empty database for the modules of the engine that need no service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockstore.db import migrations
from blockstore.db.models import VolumeType
from blockstore.db.session import Database


@pytest.fixture
def db(tmp_path: Path, database_url: str) -> Iterator[Database]:
    """An empty database of each kind, with a volume type."""
    db = Database(database_url or f"sqlite:///{tmp_path / 'blockstore.db'}")
    migrations.upgrade(db)
    with db.write() as session:
        session.add(VolumeType(id="type", name="type"))
    yield db
    db.dispose()
