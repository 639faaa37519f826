"""A target that does what a test tells it, in place of ``local``, and a service whose volumes leave the node by it.

Volumes are in memory and have no path, so that hundreds of attachments cost nothing; what a real target does is tested
in ``tests/plugins``.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockstore.app.service import Service
from blockstore.backends.contract import VolumeLocation
from blockstore.config import Config
from blockstore.manager.exports import LOCAL
from blockstore.targets.contract import Connection, Export, Target, TargetCapabilities, TargetOptions

NEEDED = "initiator"
"""The key that a connector must have."""
SECRET_AS = "auth_password"


class ScriptedTarget(Target):
    """Exports that exist in a dictionary.

    ``fail["export"] = Unreachable("...")`` makes a method raise until it is taken out again; ``gates["withdraw"]``
    holds it up until it is set; ``asked`` lists every call with the export's id.
    """

    def __init__(self, capabilities: TargetCapabilities | None = None, *, secret_as: str = SECRET_AS) -> None:
        super().__init__(LOCAL, TargetOptions(), Path("/nonexistent"), "test")
        self.exports: dict[str, Export] = {}
        self.broken: dict[str, str] = {}
        self.fail: dict[str, Exception] = {}
        self.gates: dict[str, threading.Event] = {}
        self.begun: dict[str, threading.Event] = {}
        self.asked: list[tuple[str, str]] = []
        self.secret_as = secret_as
        self.can = capabilities or TargetCapabilities(
            protocol="iSCSI", multiattach=True, online_extend=True, connector_needs=(NEEDED,)
        )

    def gate(self, method: str) -> threading.Event:
        """Hold a method up until the returned event is set; ``begun[method]`` is set when somebody waits there."""
        self.begun[method] = threading.Event()
        self.gates[method] = threading.Event()
        return self.gates[method]

    def calm(self) -> None:
        """Fail no more, hold nothing up, forget everything."""
        for gate in self.gates.values():
            gate.set()
        for kept in (self.exports, self.broken, self.fail, self.gates, self.begun, self.asked):
            kept.clear()

    def check(self) -> None:
        """Fail as told."""
        self._enter("check")

    def capabilities(self) -> TargetCapabilities:
        """Return what the test said."""
        return self.can

    def export(self, export: Export) -> Connection:
        """Keep it in the dictionary."""
        self._enter("export", export.id)
        self.exports[export.id] = export
        self.broken.pop(export.id, None)
        return Connection(
            driver_volume_type="iscsi",
            data={"target_iqn": f"iqn.2026-01.test:{export.id}", "target_lun": 1, "auth_username": "u"},
            secret_as=self.secret_as,
        )

    def withdraw(self, export_id: str) -> None:
        """Take it out of the dictionary."""
        self._enter("withdraw", export_id)
        self.exports.pop(export_id, None)

    def list_exports(self) -> frozenset[str]:
        """Return what is in the dictionary."""
        self._enter("list_exports")
        return frozenset(self.exports)

    def faults(self) -> Mapping[str, str]:
        """Return what the test broke."""
        self._enter("faults")
        return dict(self.broken)

    def sessions(self) -> Mapping[str, tuple[str, ...]]:
        """Say that everybody is connected."""
        self._enter("sessions")
        return {i: (str(export.connector.get(NEEDED)),) for i, export in self.exports.items()}

    def resize(self, export_id: str) -> None:
        """Take notice."""
        self._enter("resize", export_id)

    def _enter(self, method: str, export_id: str = "") -> None:
        self.asked.append((method, export_id))
        if gate := self.gates.get(method):
            self.begun[method].set()
            assert gate.wait(120)
        if failure := self.fail.get(method):
            raise failure


def attaching_service(config: Config, target: Target) -> Service:
    """Return a service, not started, whose pools are exported by a target and need no path for it."""
    service = Service(config)
    targets: Any = service.exports.targets
    targets[LOCAL] = target
    for backend in service.backends.values():
        backend.locate = lambda name: VolumeLocation(Path("/dev/null"))  # type: ignore[method-assign]
    return service


def target_of(service: Service) -> ScriptedTarget:
    """Return the target of ``attaching_service``."""
    found = service.exports.targets[LOCAL]
    assert isinstance(found, ScriptedTarget)
    return found
