"""Metadata of volumes, of their images and of snapshots in the database: key and value rows of an owner.

Also the limit on every map that callers can extend, including extra specs and QoS specs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, Text, bindparam, delete, func, insert, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from blockstore.db.models import Base, SnapshotMetadata, VolumeImageMetadata, VolumeMetadata
from blockstore.errors import NotFound, OverQuota

AT_ONCE = 500
"""Owners in one statement; databases limit the number of parameters."""
MOST_PAIRS = 256
"""Pairs of one resource. Cinder limits the size of each request's body, but not the sum of the pairs."""
MOST_CHARACTERS = 131_072
"""Characters of the keys and values of one resource; 256 pairs of the longest metadata have 130,560."""


def check_growth(resource: str, before: Mapping[str, int], pairs: Mapping[str, str | None]) -> None:
    """Raise OverQuota if writing ``pairs`` would make a map too large; ``before``: the lengths of its pairs, by key.

    A map that is already too large may shrink or keep its size. The caller holds the lock of the resource, so that the
    sum of parallel requests counts.
    """
    after = {**before, **lengths(pairs)}
    if len(after) > max(MOST_PAIRS, len(before)):
        raise OverQuota(  # compat: status and first words of Cinder for metadata that is too large
            f"Invalid metadata size: {resource} would have {len(after)} pairs, and has {len(before)}; at most"
            f" {MOST_PAIRS} are allowed."
        )
    length, allowed = sum(after.values()), max(MOST_CHARACTERS, sum(before.values()))
    if length > allowed:
        raise OverQuota(
            f"Invalid metadata size: the pairs of {resource} would have {length} characters; at most"
            f" {MOST_CHARACTERS} are allowed."
        )


def lengths(pairs: Mapping[str, str | None]) -> dict[str, int]:
    """Return the length of each pair of a map, by its key."""
    return {key: len(key) + len(value or "") for key, value in pairs.items()}


class _Pairs(GenericFunction[str]):
    """A JSON object of keys and values, as text."""

    type = Text()
    inherit_cache = True


@compiles(_Pairs)
def _in_postgresql(pairs: _Pairs, compiler: SQLCompiler, **words: Any) -> str:
    return f"CAST(json_object_agg({compiler.process(pairs.clauses, **words)}) AS TEXT)"


@compiles(_Pairs, "sqlite")
def _in_sqlite(pairs: _Pairs, compiler: SQLCompiler, **words: Any) -> str:
    return f"json_group_object({compiler.process(pairs.clauses, **words)})"


class Metadata:
    """The pairs of one kind of resource."""

    def __init__(self, model: type[Base], owner: str, noun: str) -> None:
        table: Any = model.__table__
        self._table, self._owner, self._owner_name, self._noun = table, table.c[owner], owner, noun
        # Built once: building a statement takes longer than running it.
        pairs = select(self._owner, table.c.key, table.c.value)
        self._select = pairs.where(self._owner.in_(bindparam("ids", expanding=True)))
        self._select_one = pairs.where(self._owner == bindparam("id"))
        length = func.length(table.c.key) + func.length(table.c.value)
        self._lengths = select(table.c.key, length).where(self._owner == bindparam("id"))
        of_page = self._owner.in_(bindparam("ids", expanding=True))
        self._sizes = select(self._owner, func.sum(length)).where(of_page).group_by(self._owner)

    def text_of(self, owner: ColumnElement[str]) -> ScalarSelect[str]:
        """Return an SQL expression for statements of one row: its pairs as the text of a JSON object, or NULL."""
        return select(_Pairs(self._table.c.key, self._table.c.value)).where(self._owner == owner).scalar_subquery()

    def of_many(self, session: Session, ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return the pairs of resources, by id; resources without pairs are left out."""
        found: dict[str, dict[str, str]] = {}
        # On the connection: metadata is written by statements only, so there is nothing to flush first.
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

    def sizes(self, session: Session, ids: Sequence[str]) -> Counter[str]:
        """Return the number of characters of the pairs of resources, by id; resources without pairs are left out."""
        found: Counter[str] = Counter()
        for start in range(0, len(ids), AT_ONCE):
            rows = session.connection().execute(self._sizes, {"ids": ids[start : start + AT_ONCE]})
            found.update({owner: int(size) for owner, size in rows})
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
        """Replace all pairs of a resource. Raises OverQuota."""
        self._check(owner, {}, pairs)
        session.execute(delete(self._table).where(self._owner == owner))
        self.copy(session, owner, pairs)

    def merge(self, session: Session, owner: str, pairs: Mapping[str, str]) -> None:
        """Add or change pairs; the caller holds the resource's lock. Raises OverQuota."""
        self._check(owner, dict(session.execute(self._lengths, {"id": owner}).all()), pairs)
        session.execute(delete(self._table).where(self._owner == owner, self._table.c.key.in_(list(pairs))))
        self.copy(session, owner, pairs)

    def add(self, session: Session, owner: str, pairs: Mapping[str, str]) -> None:
        """Write the pairs of a new resource. Raises OverQuota."""
        self._check(owner, {}, pairs)
        self.copy(session, owner, pairs)

    def copy(self, session: Session, owner: str, pairs: Mapping[str, str]) -> None:
        """Write pairs with new keys, without a check: they are checked already, or another resource has them."""
        if pairs:
            rows = [{self._owner_name: owner, "key": key, "value": value} for key, value in pairs.items()]
            session.execute(insert(self._table), rows)

    def _check(self, owner: str, before: Mapping[str, int], pairs: Mapping[str, str]) -> None:
        check_growth(f"{self._noun.lower()} {owner}", before, pairs)

    def remove(self, session: Session, owner: str, key: str) -> None:
        """Remove one pair. Raises NotFound."""
        self.value(session, owner, key)
        session.execute(delete(self._table).where(self._owner == owner, self._table.c.key == key))


OF_VOLUMES = Metadata(VolumeMetadata, "volume_id", "Volume")
OF_IMAGES = Metadata(VolumeImageMetadata, "volume_id", "Volume")
OF_SNAPSHOTS = Metadata(SnapshotMetadata, "snapshot_id", "Snapshot")
