"""The promise between blockstore and a target plugin, which lets a volume leave the node; the plugin author's manual.

A plugin is a subclass of ``Target`` registered under the entry-point group ``blockstore.targets``. One instance serves
every backend that names it. It sees paths, names and ids, never rows, requests or tenants.

A plugin imports this module, ``blockstore.errors``, ``blockstore.private_files``, and of ``blockstore.backends``
``process`` (commands), ``options`` (its own options), ``background_tasks`` (work in the background), ``openers`` (what
is open),
``file_locks`` and ``holders`` (who uses a file); nothing else of blockstore.

Rules for every method:

* **Idempotent.** The service may be killed at any instant and asks again after the restart.
* **One export, one initiator, one id.** An export's id is an attachment's; it is never given twice. Whatever an
  initiator remembers of an export (target name, LUN, port and path) must be made from that id, so that nothing an old
  session knows can ever lead to another volume.
* **Gone means gone.** When ``withdraw`` returns, no initiator can read or write through that export, not even by a
  session or a command that had begun, and the volume's file or device is closed.
* **Blocking and thread-safe.** Called from several threads at once; never twice at once for the same volume.
* **Its cost does not grow** with the number of exports (``list_exports``, ``faults`` and ``sessions`` excepted).
* **Raises only** subclasses of ``errors.BackendError``; secrets stand in none of them, in no log, on no command
  line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from blockstore.config import option as option
from blockstore.errors import InvalidConnector, NotSupported


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """Options of a plugin; subclass it and add fields made by ``option``."""


@dataclass(frozen=True, kw_only=True)
class TargetCapabilities:
    """What this configured target can do."""

    protocol: str
    """The API's word for it, shown as storage_protocol: iSCSI, nbd, local."""
    formats: frozenset[str] = frozenset({"raw"})
    """Formats of a volume's file that it can export."""
    multiattach: bool = False
    """One volume may have several exports at once."""
    online_extend: bool = False
    """Initiators of an export see the new size after ``resize``."""
    connector_needs: tuple[str, ...] = ()
    """Keys that a connector must have, as non-empty strings."""
    block_size: int | None = None
    """The logical block size that every initiator sees, in bytes; None: that of the volume's device."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """One volume for one initiator."""

    id: str
    """The attachment's id: a uuid."""
    volume: str
    """The volume's name; its identity towards initiators, such as a serial number, is made from it."""
    path: Path
    """File or block device that holds the volume."""
    format: str = "raw"
    layers: Sequence[Path] = ()
    """Files of the same format that lie below it, the nearest first."""
    connector: Mapping[str, Any] = field(default_factory=dict)
    """What the initiator said of itself; hostile until checked."""
    read_only: bool = False
    secret: str = field(default="", repr=False)
    """16 letters and digits that only this export's initiator is told; the same whenever it is exported again."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How an initiator reaches an export."""

    driver_volume_type: str
    """Which of os-brick's connectors it takes: iscsi, local; or nbd."""
    data: Mapping[str, Any]
    """What that connector needs, without the secret; stored, so JSON."""
    secret_as: str = ""
    """The key of ``data`` under which the initiator expects the export's secret; none when empty."""


class Target(ABC):
    """One configured way in which volumes leave the node."""

    Options: ClassVar[type[TargetOptions]] = TargetOptions

    def __init__(self, name: str, options: TargetOptions, state_dir: Path, owner: str):
        """Keep the configuration; touch nothing.

        ``state_dir``: a directory of its own, which it makes, mode 0700, if it needs it. ``owner``: a short word that
        is this installation's alone; what the plugin makes carries it, and what does not carry it is left alone.
        """
        self.name = name
        self.options = options
        self.state_dir = state_dir
        self.owner = owner

    @abstractmethod
    def check(self) -> None:
        """Prove that exports can be made: tool or kernel module present, daemon there, portals open, rights sufficient.

        Called at start and every report interval. Raises Unreachable with a sentence that says what to do.
        """

    @abstractmethod
    def capabilities(self) -> TargetCapabilities:
        """Return what this instance can do. Cheap, and valid before ``check``."""

    def check_connector(self, connector: Mapping[str, Any]) -> None:
        """Refuse a connector that does not say what an export needs; called before anything is accepted.

        Touches nothing. Extend it where more than ``connector_needs`` can be wrong. Raises: InvalidConnector naming the
        key.
        """
        for key in self.capabilities().connector_needs:
            value = connector.get(key)
            if not isinstance(value, str) or not value:
                raise InvalidConnector(
                    f"The connector must have {key!r}: the target {self.name} lets in nobody else.",
                    public=f"The connector must have {key!r}: nobody else is let in.",
                )

    @abstractmethod
    def export(self, export: Export) -> Connection:
        """Offer the volume to the initiator that ``export.connector`` describes, and to no other.

        Called again with the same id, it completes what was half made, mends what ``faults`` names, keeps sessions that
        live, and returns the same. Where somebody may have come in without the secret, it ends the sessions first.
        Raises: InvalidConnector when the connector does not say what is needed; VolumeMissing when the path is gone;
        Unreachable. Leaves nothing behind when it raises.
        """

    @abstractmethod
    def withdraw(self, export_id: str) -> None:
        """End an export: refuse new sessions first, then cut those that live, then close the volume.

        An export that is not there is a success. Raises: InUse, naming who, when something on this node holds the
        volume and cannot be cut off (the export stays whole then); SessionAlive when it could not be proved that the
        last session is gone (new sessions stay refused, and a later call goes on).
        """

    @abstractmethod
    def list_exports(self) -> frozenset[str]:
        """Return the ids of all exports that carry ``owner``, half-made ones included. Raises: Unreachable."""

    @abstractmethod
    def faults(self) -> Mapping[str, str]:
        """Return why listed exports do not serve, in a few words for the log, by export id; whole ones are left out.

        An export serves when its initiator can log in with its secret, nobody else can, and the volume is reached.
        Called at every look: it asks the daemon or the kernel once for all exports, changes nothing, and waits for
        no storage. Raises: Unreachable.
        """

    @abstractmethod
    def sessions(self) -> Mapping[str, tuple[str, ...]]:
        """Return who is connected now, by export id; an export without anybody may be left out. Raises: Unreachable."""

    def resize(self, export_id: str) -> None:  # noqa: ARG002 - for those who override it
        """Take notice that the volume has grown; only called when ``online_extend`` is declared."""
        raise NotSupported(f"The target {self.name} does not show a new size to those who are connected.")

    def forget_saved(self) -> int:
        """Take what carries ``owner`` out of whatever restores the node's exports at boot; return how many there were.

        Only for targets whose configuration another tool may save. Changes no export that is there, needs neither
        daemon nor kernel module, and is called before they are started. Raises: Unreachable.
        """
        return 0
