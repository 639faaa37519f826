"""Exports on targets: made, withdrawn, resized, and reconciled with the attachments in the database.

Used by the handlers of this component, and by ``reporting.py`` to reconcile at start and at every health check.
It changes a status only to enqueue a ``DisconnectAttachment``; the handlers change the others.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from blockstore.backends.contract import Backend
from blockstore.db.models import Attachment, Volume
from blockstore.db.session import Database
from blockstore.errors import BackendError, NotSupported, StateConflict, Unreachable
from blockstore.keys.keyring import Keyring
from blockstore.operations import states, transitions
from blockstore.operations.catalogue import DisconnectAttachment
from blockstore.operations.states import A
from blockstore.targets.contract import ATTACH_LOCAL, LOCAL, Connection, Export, Target

log = logging.getLogger(__name__)


class Exports:
    """The targets, and the target of each pool."""

    def __init__(
        self, db: Database, keyring: Keyring, targets: Mapping[str, Target], serving: Mapping[str, str | None]
    ):
        """``targets`` by name; ``serving``: each pool's target name, or None if consumers reach the storage itself."""
        self._db = db
        self._keyring = keyring
        self.targets = targets
        self._serving = serving
        self._down: dict[str, str] = {}
        self._verified: set[str] = set()
        """Exports verified by this process; any other may be incomplete after a crash."""
        self._busy: Counter[str] = Counter()
        self._worked_on: set[str] = set()
        """Exports on which work has ended since the reconciliation began to list the target's exports."""
        self._change = threading.Condition()

    def target_of(self, pool: str) -> Target | None:
        """Return the target that serves a pool, or None if consumers reach the storage itself."""
        name = self._serving[pool]
        return None if name is None else self.targets[name]

    def check_connector(self, pool: str, connector: Mapping[str, Any]) -> None:
        """Raise InvalidConnector if the pool's target cannot use this connector. Does not access the storage."""
        name = self._name(pool, connector)
        if name is not None:
            self.targets[name].check_connector(connector)

    def _name(self, pool: str, connector: Mapping[str, Any]) -> str | None:
        return LOCAL if connector.get(ATTACH_LOCAL) is True else self._serving[pool]

    # --- one export -----------------------------------------------------------------------------------------

    def make(self, attachment: Attachment, pool: str, backend: Backend, volume_name: str) -> dict[str, Any]:
        """Export a volume to the initiator of an attachment. Return the connection to store."""
        connector = attachment.connector or {}
        name = self._name(pool, connector)
        if name is None:
            return self._let_through(attachment, backend, volume_name)
        target = self.targets[name]
        located = backend.locate(volume_name)
        if located is None:
            raise NotSupported(f"Backend {backend.name} has no file or device on this node that could be exported.")
        if located.format not in target.capabilities().formats:
            raise NotSupported(
                f"The target {name} exports {', '.join(sorted(target.capabilities().formats))}, and this volume is"
                f" {located.format}; the target nbd can export it."
            )
        if attachment.target != name:
            with self.withdrawn([attachment]):  # the former connector asked for another target
                pass
        with self._exclusive(attachment.id):
            # Stored first, so that the target of an export is known after a crash.
            with self._db.write() as session:
                session.execute(update(Attachment).where(Attachment.id == attachment.id).values(target=name))
            connection = target.export(
                Export(
                    id=attachment.id,
                    volume=volume_name,
                    path=located.path,
                    format=located.format,
                    layers=located.layers,
                    connector=connector,
                    read_only=attachment.attach_mode == "ro",
                    secret=self._keyring.secret(attachment.id),
                )
            )
            self._verified.add(attachment.id)
        return _stored(connection)

    def _let_through(self, attachment: Attachment, backend: Backend, volume_name: str) -> dict[str, Any]:
        """Return how the initiator reaches the storage itself. Nothing is exported, so nothing has to be withdrawn."""
        if attachment.target is not None:
            with self.withdrawn([attachment]), self._db.write() as session:  # the former connector asked for a target
                session.execute(update(Attachment).where(Attachment.id == attachment.id).values(target=None))
        direct = backend.direct(volume_name)
        if direct is None:
            raise NotSupported(f"Backend {backend.name} needs a target; set the option target in its section.")
        data = {**direct.data, "access_mode": "ro" if attachment.attach_mode == "ro" else "rw"}
        return {
            "driver_volume_type": direct.driver_volume_type,
            "data": data,
            "secret_as": "",
            "beside": dict(direct.beside),
        }

    @contextlib.contextmanager
    def withdrawn(self, attachments: Iterable[Attachment]) -> Iterator[None]:
        """Withdraw the exports of attachments. Inside, while the rows are deleted, nothing restores the exports.

        Raise InUse or SessionAlive if an export cannot be withdrawn, Unreachable if its target is not configured.
        """
        with contextlib.ExitStack() as kept:
            for attachment in attachments:
                if attachment.target is None:
                    continue
                target = self.targets.get(attachment.target)
                if target is None:
                    raise Unreachable(
                        f"The target {attachment.target}, which exported the volume, is no longer in the"
                        " configuration. Restore its section."
                    )
                kept.enter_context(self._exclusive(attachment.id))
                self._verified.discard(attachment.id)
                target.withdraw(attachment.id)
            yield

    def resize(self, volume_id: str) -> None:
        """Announce a volume's new size on its exports. A failure is logged; initiators only see the size later."""
        with self._db.read() as session:
            rows = session.execute(
                select(Attachment.id, Attachment.target).where(
                    Attachment.volume_id == volume_id, Attachment.status.in_(states.EXPORTED)
                )
            ).all()
        for attachment_id, name in rows:
            target = self.targets.get(name or "")
            if target is None or not target.capabilities().online_extend:
                continue
            try:
                with self._exclusive(attachment_id):
                    target.resize(attachment_id)
            except BackendError as exc:
                log.warning("target %s: the new size of %s is not seen yet: %s", name, volume_id, exc)

    @contextlib.contextmanager
    def _exclusive(self, attachment_id: str) -> Iterator[None]:
        """Let one thread work on an export: a handler or the reconciliation. The bus keeps handlers apart."""
        with self._change:
            self._change.wait_for(lambda: not self._busy[attachment_id])
            self._busy[attachment_id] = 1
        try:
            yield
        finally:
            with self._change:
                del self._busy[attachment_id]
                self._worked_on.add(attachment_id)
                self._change.notify_all()

    # --- all of them ----------------------------------------------------------------------------------------

    def reconcile(self, backends: Mapping[str, Backend]) -> None:
        """Restore exports that do not work, withdraw exports without attachment, and retry failed withdrawals."""
        self._withdraw_foreign()
        for name, target in self.targets.items():
            try:
                target.check()
                self._reconcile(name, target, backends)
            except BackendError as exc:
                if self._down.get(name) != exc.message:
                    log.error("target %s is down: %s", name, exc)
                self._down[name] = exc.message
            else:
                if self._down.pop(name, None):
                    log.info("target %s is up again", name)

    def _reconcile(self, name: str, target: Target, backends: Mapping[str, Backend]) -> None:
        with self._change:
            self._worked_on.clear()
        wanted = self._rows(name, (A.ATTACHING, A.ATTACHED))
        listed, faults = target.list_exports(), target.faults()
        # First, because an export that another tool restored may serve an initiator that no longer owns the volume.
        # The rows are read after the list: a row exists before its export does, and is deleted after it.
        for attachment_id in sorted(listed - self._rows(name, states.EXPORTED)):
            with self._explained(name, attachment_id), self._exclusive(attachment_id):
                if attachment_id not in self._rows(name, states.EXPORTED):  # it may be being connected again
                    log.warning("target %s: export %s has no attachment; ending it", name, attachment_id)
                    self._verified.discard(attachment_id)
                    target.withdraw(attachment_id)
        # After a start, all are restored: a listed export may be incomplete after a crash or a reboot.
        for attachment_id in sorted(wanted - ((listed - faults.keys()) & self._verified)):
            fault = faults.get(attachment_id, "") if attachment_id in listed else "it is gone"
            self._restore(name, target, attachment_id, backends, fault)
        for attachment_id in sorted(self._rows(name, (A.ERROR_DETACHING,))):
            with self._explained(name, attachment_id):
                self._withdraw_again(target, attachment_id)

    def _withdraw_foreign(self) -> None:
        """End attachments to another project's volume. Versions before schema 0008 kept them in a transfer."""
        foreign = (
            select(Attachment)
            .join(Volume, Volume.id == Attachment.volume_id)
            .where(Attachment.project_id != Volume.project_id, Attachment.status != A.DISCONNECTING)
        )
        with self._db.read() as session:
            found = session.execute(foreign.limit(1)).first()
        if found is None:
            return
        with self._db.write() as session:
            for attachment in session.scalars(foreign):
                log.warning(
                    "attachment %s belongs to project %s, and its volume %s to another project; ending it",
                    attachment.id,
                    attachment.project_id,
                    attachment.volume_id,
                )
                self._enqueue_disconnect(session, attachment)

    def _rows(self, target: str, statuses: tuple[A, ...]) -> set[str]:
        with self._db.read() as session:
            return set(
                session.scalars(
                    select(Attachment.id).where(Attachment.status.in_(statuses), Attachment.target == target)
                )
            )

    def _restore(
        self, name: str, target: Target, attachment_id: str, backends: Mapping[str, Backend], fault: str
    ) -> None:
        """Make an export again. ``fault`` is the reason, or empty if the export is only verified after a start."""
        with self._explained(name, attachment_id), self._exclusive(attachment_id):
            if attachment_id in self._verified & self._worked_on:
                return  # it was made or resized while the target listed its exports
            with self._db.read() as session:
                attachment = session.get(Attachment, attachment_id)
                volume = session.get(Volume, attachment.volume_id) if attachment else None
            if attachment is None or volume is None or attachment.status not in (A.ATTACHING, A.ATTACHED):
                return
            backend = backends.get(volume.host or "")
            name_there = f"volume-{volume.name_id or volume.id}"
            located = backend.locate(name_there) if backend else None
            if located is None:
                raise Unreachable(f"its volume {volume.id} is on {volume.host}, which is not available")
            export = Export(
                id=attachment.id,
                volume=name_there,
                path=located.path,
                format=located.format,
                layers=located.layers,
                connector=attachment.connector or {},
                read_only=attachment.attach_mode == "ro",
                secret=self._keyring.secret(attachment.id),
            )
            if fault:
                log.warning("target %s: export %s is broken: %s; creating it again", name, attachment_id, fault)
            # Until this has succeeded, each health check tries it again.
            self._verified.discard(attachment_id)
            connection = _stored(target.export(export))
            self._verified.add(attachment_id)
            if connection != attachment.connection:
                with self._db.write() as session:
                    session.execute(
                        update(Attachment).where(Attachment.id == attachment.id).values(connection=connection)
                    )

    def _withdraw_again(self, target: Target, attachment_id: str) -> None:
        with self._exclusive(attachment_id):
            self._verified.discard(attachment_id)
            target.withdraw(attachment_id)
        # A detach at this moment has enqueued its own operation.
        with contextlib.suppress(StateConflict), self._db.write() as session:
            attachment = session.get(Attachment, attachment_id)
            if attachment is None:
                return
            self._enqueue_disconnect(session, attachment, only_from=(A.ERROR_DETACHING,))

    @staticmethod
    def _enqueue_disconnect(session: Session, attachment: Attachment, *, only_from: tuple[A, ...] = ()) -> None:
        """Enqueue the operation that ends an attachment. Raises StateConflict."""
        operation = DisconnectAttachment.of(
            attachment,
            "req-recovery",
            volume_id=attachment.volume_id,
            came_from=only_from[0] if only_from else attachment.status,
            follow=not attachment.legacy,
        )
        transitions.move(
            session, states.ATTACHMENT, attachment.id, A.DISCONNECTING, only_from=only_from, operation=operation
        )

    @staticmethod
    @contextlib.contextmanager
    def _explained(name: str, attachment_id: str) -> Iterator[None]:
        try:
            yield
        except BackendError as exc:
            log.error("target %s, export %s: %s", name, attachment_id, exc)


def _stored(connection: Connection) -> dict[str, Any]:
    return {
        "driver_volume_type": connection.driver_volume_type,
        "data": dict(connection.data),
        "secret_as": connection.secret_as,
    }
