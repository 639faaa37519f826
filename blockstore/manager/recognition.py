"""Storage is known by what it is, not by what it is called: the identity of each pool is recorded, and proved.

Proved at every look, and before the first action on a pool that was not looked at. A pool whose storage is another one
than is recorded is down: nothing on it is created, deleted, or given back to quota. ``installations.py`` asks whose
storage it is; this file asks which.

The mark is made before the record, so what a kill between the two leaves is marked and recorded by the next look.
"""

from __future__ import annotations

import logging

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from blockstore.backends.contract import Backend
from blockstore.db.models import PoolIdentity, Volume
from blockstore.db.session import Database, insert_if_absent
from blockstore.errors import BackendError
from blockstore.manager.installations import claim

log = logging.getLogger(__name__)


def prove(db: Database, pool: str, backend: Backend, installation: str) -> None:
    """Prove that a pool is usable, the storage that is recorded, and ours; record what is new. Raises BackendError."""
    recorded = recorded_identity(db, pool)
    backend.recognise(recorded)
    if recorded:
        backend.prove_identity()
    else:
        _refuse_unknown(db, pool, backend, installation)
    backend.check()
    claim(backend, installation)
    if not recorded and (identity := identified(backend, installation)):
        with db.write() as session:
            record_identity(session, pool, identity)
        backend.recognise(identity)
        log.info("backend %s is the storage %s", backend.pool, identity)


def recorded_identity(db: Database, pool: str) -> str:
    """Return the identity that is recorded for a pool; an empty text where none is."""
    with db.read() as session:
        return session.scalar(select(PoolIdentity.identity).where(PoolIdentity.pool == pool)) or ""


def recorded_identities(db: Database) -> dict[str, str]:
    """Return what is recorded, by pool."""
    with db.read() as session:
        return {row.pool: row.identity for row in session.scalars(select(PoolIdentity))}


def record_identity(session: Session, pool: str, identity: str) -> None:
    """Record what the storage of a pool is, in the place of what was recorded before."""
    insert_if_absent(session, PoolIdentity, pool=pool, identity=identity)
    session.execute(update(PoolIdentity).where(PoolIdentity.pool == pool).values(identity=identity))


def known_volumes(db: Database, pool: str) -> dict[str, str]:
    """Return the ids of the volumes that are on a pool, as the database has it, by their names there."""
    with db.read() as session:
        rows = session.execute(select(Volume.id, Volume.name_id).where(Volume.host == pool))
        return {f"volume-{name_id or volume_id}": volume_id for volume_id, name_id in rows}


def identified(backend: Backend, installation: str) -> str:
    """Return the identity of a pool that is ours; storage marked by a version before identities gets one."""
    identity = backend.identity()
    if identity or not backend.capabilities().owner_mark:
        return identity
    try:
        backend.change_owner(installation, installation)
    except BackendError as exc:
        log.warning("backend %s could not be given an identity: %s", backend.pool, exc)
    return backend.identity()


def _refuse_unknown(db: Database, pool: str, backend: Backend, installation: str) -> None:
    """Raise Unreachable when volumes are known, and the storage has neither our mark nor one of them.

    Of a version before identities nothing is recorded: its mark tells, or its volumes do.
    """
    known = known_volumes(db, pool)
    if not known or not backend.capabilities().owner_mark or backend.owner() == installation:
        return
    if not known.keys() & backend.list_volumes().keys():
        raise backend.not_recognised(backend.identity())
