"""A tgtd, a tgt target on it, and volumes: what the tests of the tgt plugin have in common."""

from __future__ import annotations

import itertools
import random
import string
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from blockstore_plugins.tgt import TgtOptions, TgtTarget

from blockstore.targets.contract import Export

from ..tgtd import Tgtd
from .initiators import Login

MIB = 2**20
INITIATOR = "iqn.1993-08.org.debian:01:honest"
OTHER = "iqn.1993-08.org.debian:01:other"


class Rig:
    """One node: ``with Rig(tmp_path) as rig: ...``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tgtd = Tgtd()
        self.session_timeout_s = 60.0  # an initiator that a busy machine keeps from answering is not cut off
        self.target = self.new_target()
        self._counter = itertools.count()

    def new_target(self, *, owner: str = "0a1b2c3d", **options: Any) -> TgtTarget:
        """Return a target as the service makes it at its start: it remembers nothing."""
        options = {
            "portals": self.tgtd.portal,
            "control_socket": str(self.tgtd.socket),
            "session_timeout_s": self.session_timeout_s,
            **options,
        }
        return TgtTarget("t", TgtOptions(**options), self.directory / "state", owner)

    def be_impatient(self, session_timeout_s: float = 5.0) -> None:
        """From now on, wait less long for an initiator; five seconds are the least that is allowed."""
        self.session_timeout_s = session_timeout_s
        self.target = self.new_target()

    def volume(self, fill: bytes = b"", size: int = 16 * MIB) -> Path:
        """Return a new file, full of a pattern."""
        path = self.directory / f"volume{next(self._counter)}"
        with path.open("wb") as file:
            file.truncate(size)
            if fill:
                file.write(fill * (size // len(fill)))
        return path

    @staticmethod
    def export_of(path: Path, **fields: Any) -> Export:
        """Describe an export with an id and a secret of its own."""
        fields = {
            "id": str(uuid.uuid4()),
            "volume": f"volume-{uuid.uuid4()}",
            "connector": {"initiator": INITIATOR},
            "secret": "".join(random.choices(string.ascii_letters + string.digits, k=16)),
            **fields,
        }
        return Export(path=path, **fields)

    def login_of(self, export: Export, **changes: str) -> Login:
        """Export it, and return what its initiator is told."""
        data = self.target.export(export).data
        facts = {
            "portal": data["target_portal"],
            "iqn": data["target_iqn"],
            "initiator": export.connector["initiator"],
            "user": data["auth_username"],
            "password": export.secret,
        }
        return Login(**{**facts, **changes})

    def holds(self, path: Path) -> bool:
        """Say whether tgtd has this file open."""
        return str(path) in self.tgtd.open_files()

    def is_empty(self) -> bool:
        """Say whether tgtd has neither target nor account."""
        from blockstore_plugins.tgt.management import Mode, Op
        from blockstore_plugins.tgt.management import Tgtd as Management

        tgtd = Management.find(self.tgtd.socket)
        return not tgtd.targets() and not tgtd._call("list accounts", Mode.ACCOUNT, Op.SHOW)

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.tgtd.__exit__(kind, exc, tb)
