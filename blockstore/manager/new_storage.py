"""Accepts new storage in place of the recorded storage of a pool, and tells the projects whose volumes are lost.

Behind ``blockstore backend accept``. It may run beside the service, which notices at its next health check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from blockstore.backends.contract import Backend
from blockstore.db.session import Database
from blockstore.errors import Unreachable
from blockstore.manager.context import snapshot_name, volume_name
from blockstore.manager.installations import claim
from blockstore.manager.recognition import identified, record_identity, recorded_identity
from blockstore.operations import messages, states, transitions
from blockstore.operations.states import V


@dataclass(frozen=True)
class AcceptedStorage:
    """The report to an administrator about storage that replaced the recorded storage."""

    former: str
    identity: str
    there: Sequence[str]
    """Ids of the volumes and snapshots that are also on the new storage."""
    lost: Sequence[str]
    """Ids of the volumes and snapshots that are not on the new storage. Their rows stay until they are deleted."""


def accept(db: Database, pool: str, backend: Backend, installation: str, keep_days: int) -> AcceptedStorage:
    """Record the present storage of a pool as its storage. Tell the projects whose volumes are not on it.

    Deletes nothing, on the storage or in the database. Lost volumes and snapshots that were available are in error
    afterwards. Raises BackendError.
    """
    former = recorded_identity(db, pool)
    backend.recognise(backend.identity())
    backend.check()
    claim(backend, installation)
    identity = identified(backend, installation)
    if not identity:
        raise Unreachable(f"The storage of {backend.pool} has no identity, and none could be written to it.")
    names = backend.list_volumes().keys() | backend.list_snapshots().keys()
    with db.write() as session:
        record_identity(session, pool, identity)
        present, lost = [], []
        for machine in (states.VOLUME, states.SNAPSHOT):
            model: Any = machine.model
            for row in session.scalars(select(model).where(model.host == pool).order_by(model.id)).all():
                name = snapshot_name(row.id) if machine is states.SNAPSHOT else volume_name(row)
                if name in names:
                    present.append(row.id)
                    continue
                lost.append(row.id)
                if row.status == V.AVAILABLE:
                    transitions.reset_status(session, machine, row.id, V.ERROR, by="blockstore backend accept")
                messages.tell_lost(session, machine.name, row.project_id, row.id, keep_days)
    return AcceptedStorage(former, identity, present, lost)
