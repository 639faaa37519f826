"""The context of the manager's handlers: the database, the configured backends, the pool reports.

Made once by ``app/service.py``. Finds the backend of a row, and the names of rows on their backends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_, select

from blockstore.accounting.pool_reports import PoolReports
from blockstore.backends.contract import Backend
from blockstore.config import Config
from blockstore.db.models import Attachment, Volume
from blockstore.db.session import Database
from blockstore.errors import PoolDown, VolumeMissing
from blockstore.manager.exports import Exports
from blockstore.manager.recognition import prove
from blockstore.operations.catalogue import Operation
from blockstore.operations.states import A


@dataclass(frozen=True)
class ManagerContext:
    """The manager's context."""

    db: Database
    backends: Mapping[str, Backend]
    """By pool name, NODE@BACKEND#POOL."""
    pool_reports: PoolReports
    config: Config
    exports: Exports
    installation: str = ""
    """The unique id with which this installation marks its pools; empty: it marks none."""

    @property
    def message_days(self) -> int:
        """Days that messages are kept."""
        return self.config.service.operation_keep_days

    def backend(self, pool: str | None) -> Backend:
        """Return the backend of a pool. Raise PoolDown if the pool is down or no longer configured.

        Raise Unreachable if it is another installation's.
        """
        backend = self.backends.get(pool or "")
        if backend is None:
            raise PoolDown(f"The pool {pool} is no longer in the configuration.")
        report = self.pool_reports.get(pool or "")
        if report is not None and not report.up:
            raise PoolDown(f"The pool {pool} is down: {report.reason}")
        if report is None and self.installation:
            prove(self.db, str(pool), backend, self.installation)  # it did not answer the first health check in time
        return backend


class UsableBackends(Mapping[str, Backend]):
    """The backends by pool, for work without an operation. Raises Unreachable if a backend is down or not ours."""

    def __init__(self, context: ManagerContext) -> None:
        self._context = context

    def __getitem__(self, pool: str) -> Backend:
        return self._context.backend(pool)

    def __iter__(self) -> Iterator[str]:
        return iter(self._context.backends)

    def __len__(self) -> int:
        return len(self._context.backends)


def volume_name(volume: Any) -> str:
    """Return a volume's name on its backend: by its id, or by the id that a migration gave it there."""
    return f"volume-{volume.name_id or volume.id}"


def name_of(db: Database, volume_id: str) -> str:
    """Return a volume's name on its backend. Raise VolumeMissing if it has no row."""
    with db.read() as session:
        found = session.execute(select(Volume.id, Volume.name_id).where(Volume.id == volume_id)).one_or_none()
    if found is None:
        raise VolumeMissing.for_everybody(f"The volume {volume_id} is gone.")
    return volume_name(found)


def pool_of(db: Database, operation: Operation) -> str:
    """Return the pool that an operation of the manager works on; empty if its volume is gone or not placed."""
    if operation.place:
        return operation.place
    with db.read() as session:
        return (
            session.execute(select(Volume.host).where(Volume.id == getattr(operation, "volume_id", ""))).scalar() or ""
        )


def is_attached(db: Database, name: str) -> bool:
    """Return True if a volume, given by its backend's name for it, has been connected and may still be."""
    row_id = name.removeprefix("volume-")
    connected = (
        select(Attachment.id)
        .join(Volume, Volume.id == Attachment.volume_id)
        .where(or_(Volume.id == row_id, Volume.name_id == row_id), Attachment.status != A.RESERVED)
    )
    with db.read() as session:
        return session.execute(connected.limit(1)).first() is not None


def snapshot_name(snapshot_id: str) -> str:
    """Return a snapshot's name on its backend."""
    return f"snap-{snapshot_id}"
