"""Storage in the place of the recorded one, which an administrator says is new: recorded, and its users told.

Behind ``blockstore backend accept``, also while the service runs, which notices at its next look.
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
from blockstore.operations import messages, states
from blockstore.operations.states import V


@dataclass(frozen=True)
class Accepted:
    """What an administrator is told of storage that took the place of the recorded one."""

    former: str
    identity: str
    there: Sequence[str]
    """Ids of the volumes and snapshots that are on the new storage, too."""
    lost: Sequence[str]
    """Ids of those that are not. Their rows stay, until somebody deletes them."""


def accept(db: Database, pool: str, backend: Backend, installation: str, keep_days: int) -> Accepted:
    """Record that the storage of a pool is what is there now; tell the projects whose volumes are not on it.

    Deletes nothing, on the storage or in the database. What is lost and was available is in error afterwards.
    Raises BackendError.
    """
    former = recorded_identity(db, pool)
    backend.recognise(backend.identity())
    backend.check()
    claim(backend, installation)
    identity = identified(backend, installation)
    if not identity:
        raise Unreachable(f"The storage of {backend.pool} carries no identity, and could not be given one.")
    names = backend.list_volumes().keys() | backend.list_snapshots().keys()
    with db.write() as session:
        record_identity(session, pool, identity)
        there, lost = [], []
        for machine in (states.VOLUME, states.SNAPSHOT):
            model: Any = machine.model
            for row in session.scalars(select(model).where(model.host == pool).order_by(model.id)).all():
                name = snapshot_name(row.id) if machine is states.SNAPSHOT else volume_name(row)
                if name in names:
                    there.append(row.id)
                    continue
                lost.append(row.id)
                if row.status == V.AVAILABLE:
                    states.reset_status(session, machine, row.id, V.ERROR, by="blockstore backend accept")
                messages.tell_lost(session, machine.name, row.project_id, row.id, keep_days)
    return Accepted(former, identity, there, lost)
