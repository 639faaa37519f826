"""The statuses of volumes, snapshots and attachments, and what may follow what: tables, and no code.

``operations/transitions.py`` changes a row by these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from blockstore.db.models import Attachment, Base, Snapshot, Volume


class V(StrEnum):
    """Statuses of a volume."""

    CREATING = "creating"
    DOWNLOADING = "downloading"
    AVAILABLE = "available"
    RESERVED = "reserved"
    ATTACHING = "attaching"
    IN_USE = "in-use"
    DETACHING = "detaching"
    MAINTENANCE = "maintenance"
    EXTENDING = "extending"
    RETYPING = "retyping"
    UPLOADING = "uploading"
    BACKING_UP = "backing-up"
    RESTORING_BACKUP = "restoring-backup"
    AWAITING_TRANSFER = "awaiting-transfer"
    MANAGING = "managing"
    UNMANAGING = "unmanaging"
    REVERTING = "reverting"
    DELETING = "deleting"
    ERROR = "error"
    ERROR_DELETING = "error_deleting"
    ERROR_EXTENDING = "error_extending"
    ERROR_RESTORING = "error_restoring"
    ERROR_BACKING_UP = "error_backing-up"
    ERROR_MANAGING = "error_managing"


class S(StrEnum):
    """Statuses of a snapshot."""

    CREATING = "creating"
    AVAILABLE = "available"
    DELETING = "deleting"
    DELETED = "deleted"
    UPDATING = "updating"
    ERROR = "error"
    ERROR_DELETING = "error_deleting"
    UNMANAGING = "unmanaging"
    BACKING_UP = "backing-up"
    RESTORING = "restoring"


class A(StrEnum):
    """Statuses of an attachment."""

    RESERVED = "reserved"
    CONNECTING = "connecting"
    """Shown as attaching: its export is being made."""
    ATTACHING = "attaching"
    ATTACHED = "attached"
    DISCONNECTING = "disconnecting"
    """Shown as detaching: its export is being ended."""
    ERROR_ATTACHING = "error_attaching"
    ERROR_DETACHING = "error_detaching"


ANY = frozenset[str]()
"""In a table of moves: the status is reachable from every status, as by a forced delete."""


@dataclass(frozen=True)
class StateMachine:
    """The statuses of one kind of row. Do not merge the tables of two machines: their members have equal hashes."""

    name: str
    model: type[Base]
    moves: Mapping[str, frozenset[str]]
    """For each status, the statuses from which it may be reached; ``ANY`` means all."""
    failure: Mapping[str, str]
    """For each transitional status, the status after its operation failed."""


FOLLOWS_ATTACHMENTS = frozenset(
    {
        V.AVAILABLE, V.RESERVED, V.ATTACHING, V.IN_USE, V.DETACHING, V.ERROR, V.ERROR_EXTENDING, V.ERROR_DELETING,
        V.ERROR_RESTORING,
    }
)  # fmt: skip
"""Statuses of a volume that its attachments may replace. In the other statuses, other work uses the volume."""

VOLUME = StateMachine(
    name="Volume",
    model=Volume,
    moves={
        V.CREATING: frozenset({V.ERROR}),
        V.AVAILABLE: frozenset(
            {
                V.CREATING,
                V.EXTENDING,
                V.REVERTING,
                V.RETYPING,
                V.DELETING,
                V.AWAITING_TRANSFER,
                V.MAINTENANCE,
                V.MANAGING,
            }
        )
        | FOLLOWS_ATTACHMENTS,
        V.AWAITING_TRANSFER: frozenset({V.AVAILABLE}),
        V.RESERVED: FOLLOWS_ATTACHMENTS | {V.DOWNLOADING},
        V.ATTACHING: FOLLOWS_ATTACHMENTS,
        V.IN_USE: FOLLOWS_ATTACHMENTS | {V.EXTENDING, V.RETYPING},
        V.DETACHING: FOLLOWS_ATTACHMENTS,
        V.EXTENDING: frozenset({V.AVAILABLE, V.IN_USE}),
        V.REVERTING: frozenset({V.AVAILABLE}),
        V.MAINTENANCE: frozenset({V.AVAILABLE}),
        V.RETYPING: frozenset({V.AVAILABLE, V.IN_USE}),
        V.DELETING: ANY,
        V.ERROR: frozenset({V.CREATING, V.REVERTING, V.DELETING}),
        V.ERROR_EXTENDING: frozenset({V.EXTENDING, V.DELETING}),
        V.ERROR_RESTORING: frozenset({V.DELETING}),
        V.ERROR_DELETING: frozenset({V.DELETING}),
        V.ERROR_MANAGING: frozenset({V.MANAGING, V.DELETING}),
    },
    failure={
        V.CREATING: V.ERROR,
        V.MANAGING: V.ERROR_MANAGING,
        V.EXTENDING: V.ERROR_EXTENDING,
        V.REVERTING: V.ERROR,
        V.RETYPING: V.AVAILABLE,
        V.MAINTENANCE: V.AVAILABLE,
        V.DELETING: V.ERROR_DELETING,
    },
)
SNAPSHOT = StateMachine(
    name="Snapshot",
    model=Snapshot,
    moves={
        S.AVAILABLE: frozenset({S.CREATING, S.RESTORING, S.DELETING}),
        S.RESTORING: frozenset({S.AVAILABLE}),
        S.DELETING: ANY,
        S.ERROR: frozenset({S.CREATING, S.DELETING}),
        S.ERROR_DELETING: frozenset({S.DELETING}),
    },
    failure={
        S.CREATING: S.ERROR,
        S.DELETING: S.ERROR_DELETING,
        S.RESTORING: S.AVAILABLE,
    },
)
ATTACHMENT = StateMachine(
    name="Attachment",
    model=Attachment,
    moves={
        A.RESERVED: frozenset({A.DISCONNECTING}),
        A.CONNECTING: frozenset({A.RESERVED, A.ATTACHING, A.ERROR_ATTACHING}),
        A.ATTACHING: frozenset({A.CONNECTING, A.DISCONNECTING}),
        A.ATTACHED: frozenset({A.RESERVED, A.ATTACHING, A.ATTACHED, A.DISCONNECTING}),
        A.DISCONNECTING: ANY,
        A.ERROR_ATTACHING: frozenset({A.CONNECTING, A.DISCONNECTING}),
        A.ERROR_DETACHING: frozenset({A.DISCONNECTING}),
    },
    failure={
        A.CONNECTING: A.ERROR_ATTACHING,
        A.DISCONNECTING: A.ERROR_DETACHING,
    },
)
MACHINES: Mapping[str, StateMachine] = {"volume": VOLUME, "snapshot": SNAPSHOT, "attachment": ATTACHMENT}

EXPORTED = (A.CONNECTING, A.ATTACHING, A.ATTACHED, A.DISCONNECTING, A.ERROR_DETACHING)
"""Statuses of an attachment that may have an export, through which a server may read and write."""
