"""Recognises storage by its identity, not by its name: the identity of each pool is recorded and proved.

Proved at every health check, and before the first action on a pool without a health check. A pool is down if its
storage is not the recorded storage: nothing on it is created, deleted, or refunded to quota. ``installations.py``
checks whose storage it is; this module checks which storage it is.

The mark is made before the record. After a crash between the two, the next health check records the identity.
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
    """Prove that a pool is usable, is the recorded storage, and is ours. Record new storage. Raises BackendError."""
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
    """Return the recorded identity of a pool, or an empty text."""
    with db.read() as session:
        return session.scalar(select(PoolIdentity.identity).where(PoolIdentity.pool == pool)) or ""


def recorded_identities(db: Database) -> dict[str, str]:
    """Return the recorded identities by pool."""
    with db.read() as session:
        return {row.pool: row.identity for row in session.scalars(select(PoolIdentity))}


def record_identity(session: Session, pool: str, identity: str) -> None:
    """Record the identity of a pool's storage in place of the former one."""
    insert_if_absent(session, PoolIdentity, pool=pool, identity=identity)
    session.execute(update(PoolIdentity).where(PoolIdentity.pool == pool).values(identity=identity))


def known_volumes(db: Database, pool: str) -> dict[str, str]:
    """Return the ids of the volumes on a pool according to the database, by their names on the pool."""
    with db.read() as session:
        rows = session.execute(select(Volume.id, Volume.name_id).where(Volume.host == pool))
        return {f"volume-{name_id or volume_id}": volume_id for volume_id, name_id in rows}


def identified(backend: Backend, installation: str) -> str:
    """Return the identity of a pool that is ours. Storage marked before identities existed gets one."""
    identity = backend.identity()
    if identity or not backend.capabilities().owner_mark:
        return identity
    try:
        backend.change_owner(installation, installation)
    except BackendError as exc:
        log.warning("backend %s has no identity, and none could be written to it: %s", backend.pool, exc)
    return backend.identity()


def _refuse_unknown(db: Database, pool: str, backend: Backend, installation: str) -> None:
    """Raise Unreachable if the database has volumes on a pool, and its storage has neither our mark nor one of them.

    Versions before identities recorded none: their storage is recognised by its mark or its volumes.
    """
    known = known_volumes(db, pool)
    if not known or not backend.capabilities().owner_mark or backend.owner() == installation:
        return
    if not known.keys() & backend.list_volumes().keys():
        raise backend.not_recognised(backend.identity())
