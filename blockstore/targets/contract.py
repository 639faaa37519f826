"""The contract between blockstore and a target plugin, which exports volumes; the plugin author's manual.

A plugin is a subclass of ``Target`` registered under the entry-point group ``blockstore.targets``. One instance serves
every backend that names it. It sees paths, names and ids, never rows, requests or tenants.

A plugin imports this module, ``blockstore.errors``, ``blockstore.private_files``, and of ``blockstore.backends``
``process`` (commands), ``options`` (its own options), ``background`` (background tasks), ``openers`` (open volumes),
``file_locks`` and ``holders`` (users of a file); nothing else of blockstore.

Rules for every method:

* **Idempotent.** The service may be killed at any instant, and repeats the call after the restart.
* **One export, one initiator, one id.** The id of an export is that of its attachment, and is never reused. All that
  an initiator remembers of an export (target name, LUN, port and path) must be made from that id, so that an old
  session can never reach another volume.
* **Gone means gone.** When ``withdraw`` returns, no initiator can read or write through that export, not even in a
  session or by a command that had begun, and the volume's file or device is closed.
* **Blocking and thread-safe.** Called from several threads at once; never twice at once for the same volume.
* **Its cost does not grow** with the number of exports (``list_exports``, ``faults`` and ``sessions`` excepted).
* **Raises only** subclasses of ``errors.BackendError``. Secrets are in no error, no log and no command line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from blockstore.config import option as option
from blockstore.errors import InvalidConnector, NotSupported

LOCAL = "local"
"""The target for a consumer on this node that asks for the path itself, regardless of the backend's target."""
ATTACH_LOCAL = "attach_local"
"""The connector's key that asks for the target ``local``; the API lets only administrators set it."""


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
    """The initiator of an export sees the new size after ``resize``."""
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
    """The initiator's description of itself; untrusted until checked."""
    read_only: bool = False
    secret: str = field(default="", repr=False)
    """16 letters and digits, given to this export's initiator only; the same whenever it is exported again."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How an initiator reaches an export."""

    driver_volume_type: str
    """The os-brick connector to use: iscsi, local; or nbd."""
    data: Mapping[str, Any]
    """The data for that connector, without the secret. Must be JSON, because it is stored."""
    secret_as: str = ""
    """The key of ``data`` under which the initiator expects the export's secret; empty: there is no secret."""


class Target(ABC):
    """One configured target."""

    Options: ClassVar[type[TargetOptions]] = TargetOptions

    def __init__(self, name: str, options: TargetOptions, state_dir: Path, owner: str):
        """Keep the configuration; change nothing.

        ``state_dir``: the plugin's own directory, which it makes with mode 0700 if it needs it. ``owner``: a short word
        that is unique to this installation. The plugin marks with it all that it makes, and changes nothing else.
        """
        self.name = name
        self.options = options
        self.state_dir = state_dir
        self.owner = owner

    @abstractmethod
    def check(self) -> None:
        """Check that exports can be made: tool or kernel module, running daemon, open portals, sufficient rights.

        Called at start and every report interval. Raise Unreachable if not, with a sentence that says what to do.
        """

    @abstractmethod
    def capabilities(self) -> TargetCapabilities:
        """Return what this instance can do. Cheap, and valid before ``check``."""

    def check_connector(self, connector: Mapping[str, Any]) -> None:
        """Raise InvalidConnector, naming the key, if a connector lacks what an export needs.

        Called before a request is accepted; changes nothing. Extend it to check more than ``connector_needs``.
        """
        for key in self.capabilities().connector_needs:
            value = connector.get(key)
            if not isinstance(value, str) or not value:
                raise InvalidConnector(
                    f"The connector must have {key!r}: the target {self.name} identifies initiators by it.",
                    public=f"The connector must have {key!r}: initiators are identified by it.",
                )

    @abstractmethod
    def export(self, export: Export) -> Connection:
        """Offer the volume to the initiator that ``export.connector`` describes, and to no other.

        Called again with the same id, it completes an unfinished export, repairs what ``faults`` names, keeps live
        sessions, and returns the same connection. If an initiator may have logged in without the secret, it ends the
        sessions first. Raises: InvalidConnector when the connector lacks something; VolumeMissing when the path is
        gone; Unreachable. Leaves nothing behind when it raises.
        """

    @abstractmethod
    def withdraw(self, export_id: str) -> None:
        """End an export: refuse new sessions first, then end the live ones, then close the volume.

        A missing export is a success. Raises: InUse, naming the holder, when something on this node holds the volume
        and cannot be cut off (the export then stays complete); SessionAlive when the end of the last session cannot be
        proved (new sessions stay refused, and a later call continues).
        """

    @abstractmethod
    def list_exports(self) -> frozenset[str]:
        """Return the ids of all exports that carry ``owner``, unfinished ones included. Raises: Unreachable."""

    @abstractmethod
    def faults(self) -> Mapping[str, str]:
        """Return by export id why listed exports do not work, in a few words for the log; leave out those that work.

        An export works if its initiator can log in with its secret, no other initiator can, and the volume is
        reachable. Called at every health check: it asks the daemon or the kernel once for all exports, changes
        nothing, and waits for no storage. Raises: Unreachable.
        """

    @abstractmethod
    def sessions(self) -> Mapping[str, tuple[str, ...]]:
        """Return the connected initiators by export id; exports without any may be left out. Raises: Unreachable."""

    def resize(self, export_id: str) -> None:  # noqa: ARG002 - for those who override it
        """Show the new size of a volume that has grown; called only if ``online_extend`` is declared."""
        raise NotSupported(f"The target {self.name} does not show a new size to connected initiators.")

    def forget_saved(self) -> int:
        """Remove the exports of ``owner`` from the configuration that is restored at boot; return their number.

        Only for targets whose configuration another tool may save. Changes no present export, needs neither daemon nor
        kernel module, and is called before these are started. Raises: Unreachable.
        """
        return 0
