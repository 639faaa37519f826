"""Metadata in the database, the same for volumes, their images and snapshots: key and value rows beside their owner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, delete, insert, select
from sqlalchemy.orm import Session

from blockstore.db.models import Base, SnapshotMetadata, VolumeImageMetadata, VolumeMetadata
from blockstore.errors import NotFound

AT_ONCE = 500
"""Owners that one statement asks for; databases bound the number of parameters."""


class Metadata:
    """The pairs of one kind of resource."""

    def __init__(self, model: type[Base], owner: str, noun: str) -> None:
        table: Any = model.__table__
        self._table, self._owner, self._owner_name, self._noun = table, table.c[owner], owner, noun
        # Built once: building a statement takes longer than running it.
        pairs = select(self._owner, table.c.key, table.c.value)
        self._select = pairs.where(self._owner.in_(bindparam("ids", expanding=True)))
        self._select_one = pairs.where(self._owner == bindparam("id"))

    def of_many(self, session: Session, ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return the pairs of resources, by id; one without pairs is left out."""
        found: dict[str, dict[str, str]] = {}
        # On the connection: everything here is written by statements, so there is nothing to flush before.
        connection = session.connection()
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            rows = (
                connection.execute(self._select_one, {"id": some[0]})
                if len(some) == 1
                else connection.execute(self._select, {"ids": some})
            )
            for owner, key, value in rows:
                found.setdefault(owner, {})[key] = value
        return found

    def of(self, session: Session, owner: str) -> dict[str, str]:
        """Return the pairs of one resource."""
        return self.of_many(session, [owner]).get(owner, {})

    def value(self, session: Session, owner: str, key: str) -> str:
        """Return one value. Raises NotFound."""
        pairs = self.of(session, owner)
        if key not in pairs:
            raise NotFound(f"{self._noun} {owner} has no metadata with key {key}.")
        return pairs[key]

    def replace(self, session: Session, owner: str, pairs: Mapping[str, str]) -> None:
        """Write all pairs of a resource."""
        session.execute(delete(self._table).where(self._owner == owner))
        self.add(session, owner, pairs)

    def merge(self, session: Session, owner: str, pairs: Mapping[str, str]) -> None:
        """Write pairs on top of those that are there."""
        session.execute(delete(self._table).where(self._owner == owner, self._table.c.key.in_(list(pairs))))
        self.add(session, owner, pairs)

    def add(self, session: Session, owner: str, pairs: Mapping[str, str]) -> None:
        """Write pairs whose keys are not there yet."""
        if pairs:
            rows = [{self._owner_name: owner, "key": key, "value": value} for key, value in pairs.items()]
            session.execute(insert(self._table), rows)

    def remove(self, session: Session, owner: str, key: str) -> None:
        """Remove one pair. Raises NotFound."""
        self.value(session, owner, key)
        session.execute(delete(self._table).where(self._owner == owner, self._table.c.key == key))


OF_VOLUMES = Metadata(VolumeMetadata, "volume_id", "Volume")
OF_IMAGES = Metadata(VolumeImageMetadata, "volume_id", "Volume")
OF_SNAPSHOTS = Metadata(SnapshotMetadata, "snapshot_id", "Snapshot")
