"""Services that many tests of the API share: starting one takes longer than most of these tests.

Their volumes leave the node by a ``ScriptedTarget``.

A test that shares works in a project of its own, with ``shared_service.member()`` or ``shared_service.admin()``.
"""

from __future__ import annotations

import itertools
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select

from blockstore.app.service import Service
from blockstore.db.models import (
    Attachment,
    Base,
    OperationRow,
    Snapshot,
    SnapshotMetadata,
    Volume,
    VolumeMetadata,
    VolumeType,
    new_id,
    now,
)
from tests.conftest import Answer, Client, make_config
from tests.scripted_target import ScriptedTarget, attaching_service, target_of

POOL = "blockstore@memory#memory"
_count = itertools.count()


class SharedService:
    """A service that is shared, and short ways to put rows into its database."""

    def __init__(self, service: Service) -> None:
        self.service, self.db = service, service.db
        self.target = target_of(service)
        with self.db.read() as session:
            self.type_id = session.scalars(select(VolumeType.id).where(VolumeType.name == "__DEFAULT__")).one()

    def admin(self, project: str | None = None) -> Client:
        """An administrator in a project of his own, unless told which."""
        return self._client("admin,member,reader", project)

    def member(self, project: str | None = None) -> Client:
        """A member of a project of his own, unless told which."""
        return self._client("member,reader", project)

    def reader(self, project: str | None = None) -> Client:
        """A reader of a project of his own, unless told which."""
        return self._client("reader", project)

    def nobody(self, project: str | None = None) -> Client:
        """Somebody without any role."""
        return self._client("", project)

    def _client(self, roles: str, project: str | None) -> Client:
        return Client(
            self.service, **{"X-Roles": roles, "X-Project-Id": project or f"p{next(_count)}", "X-User-Id": "u1"}
        )

    def add(self, model: type[Base], **values: Any) -> str:
        """Insert a row and return its id."""
        row = {"id": new_id(), "created_at": now(), **values}
        with self.db.write() as session:
            session.execute(insert(model).values(row))
        return str(row["id"])

    def volume(self, client: Client, **values: Any) -> str:
        """Insert a volume of the client's project; it is available and placed unless told otherwise."""
        defaults = {
            "project_id": client.headers["X-Project-Id"],
            "size": 1,
            "status": "available",
            "host": POOL,
            "volume_type_id": self.type_id,
            "availability_zone": "nova",
            "consumes_quota": False,
        }
        return self.add(Volume, **{**defaults, **values})

    def snapshot(self, client: Client, volume_id: str, **values: Any) -> str:
        """Insert a snapshot; it is available unless told otherwise."""
        defaults = {
            "project_id": client.headers["X-Project-Id"],
            "volume_id": volume_id,
            "volume_size": 1,
            "number": next(_count),
            "status": "available",
            "host": POOL,
            "consumes_quota": False,
        }
        return self.add(Snapshot, **{**defaults, **values})

    def attachment(self, client: Client, volume_id: str, **values: Any) -> str:
        """Insert an attachment; it is reserved, and nothing is exported for it, unless told otherwise."""
        defaults = {
            "project_id": client.headers["X-Project-Id"],
            "volume_id": volume_id,
            "status": "reserved",
            "legacy": False,
        }
        return self.add(Attachment, **{**defaults, **values})

    def contents(self) -> dict[str, list[Any]]:
        """Return every row of every table: what must be the same after a refusal."""
        with self.db.read() as session:
            return {
                name: sorted(map(repr, session.execute(select(table)).all()))
                for name, table in Base.metadata.tables.items()
            }

    def clear(self) -> None:
        """Remove every volume and snapshot."""
        with self.db.write() as session:
            for model in (SnapshotMetadata, Snapshot, VolumeMetadata, Volume):
                session.execute(delete(model))

    def facts(self, volume_id: str) -> tuple[Any, ...]:
        """Return what an attachment changes: the volume, its attachments, and how many operations there are."""
        with self.db.read() as session:
            return (
                session.execute(select(Volume.__table__).where(Volume.id == volume_id)).one_or_none(),
                session.execute(select(Attachment.__table__).where(Attachment.volume_id == volume_id)).all(),
                session.execute(select(func.count()).select_from(OperationRow)).scalar(),
            )

    def statuses(self, volume_id: str) -> tuple[Any, ...]:
        """Return status and attach_status of a volume, and the statuses of its attachments that lists show."""
        with self.db.read() as session:
            volume = session.get_one(Volume, volume_id)
            rows = session.scalars(
                select(Attachment.status)
                .where(Attachment.volume_id == volume_id, Attachment.legacy.is_(False))
                .order_by(Attachment.created_at)
            )
            return (volume.status, volume.attach_status, *rows)


def at_once(count: int, ask: Callable[[int], Answer]) -> list[Answer]:
    """Ask from many threads at the same moment; return the answers."""
    start = threading.Barrier(count)

    def one(number: int) -> Answer:
        start.wait(60)
        return ask(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, range(count)))


_IDS = random.Random(7)


def unknown_id() -> str:
    """Return an id that nothing has; in each process the same ones, since they name cases."""
    return str(uuid.UUID(int=_IDS.getrandbits(128), version=4))


def _shared_service(directory: Path, url: str) -> Iterator[SharedService]:
    service = attaching_service(make_config(directory / "state", url), ScriptedTarget())
    service.start()
    service.clock.pause()  # nothing is looked at behind the back of a slow test
    yield SharedService(service)
    service.stop()


@pytest.fixture(scope="package")
def sqlite_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedService]:
    """A shared service on SQLite, for tests that the database makes no difference to."""
    yield from _shared_service(tmp_path_factory.mktemp("lite"), "")


@pytest.fixture(scope="package", params=["sqlite", "postgresql"])
def shared_service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedService]:
    """A shared service, on each database."""
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres").database_with_tables()
    yield from _shared_service(tmp_path_factory.mktemp(request.param), url)


@pytest.fixture
def attach_service(shared_service: SharedService) -> Iterator[SharedService]:
    """The shared service on each database, whose target the test may tell what to do."""
    shared_service.target.asked.clear()  # by the start of the service
    yield shared_service
    shared_service.target.calm()
    shared_service.admin().wait_idle()
    with shared_service.db.write() as session:
        session.execute(delete(Attachment))
