"""Every error the service can answer with, each with its HTTP status and the fault name of the wire format.

Raised by every room; turned into a reply in one place, ``api/faults.py``. A message is a full sentence that a
person can act on: it names the field or the resource, what it is, and what was expected.
Backend errors are what plugins raise; they never reach a reply unexplained.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class BlockstoreError(Exception):
    """Anything this project raises on purpose."""

    status: ClassVar[int] = 500
    fault: ClassVar[str] = "computeFault"

    @property
    def message(self) -> str:
        """The sentence to show."""
        return str(self)


class ConfigError(BlockstoreError):
    """A mistake in the configuration: names file, section and option."""


# --- what a request can be refused with --------------------------------------------------------------------


class BadRequest(BlockstoreError):
    status, fault = 400, "badRequest"


class InvalidInput(BadRequest):
    """A value in a body or query that the schema refuses."""

    def __init__(self, field: str, value: object, reason: str):
        self.field = field
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"Invalid input for field/attribute {field}. Value: {shown}. {reason}")


class InvalidStatus(BadRequest):
    """The resource is in a status that does not allow what was asked."""


class Unauthorized(BlockstoreError):
    """Nobody knows who asks."""

    status, fault = 401, "unauthorized"


class TooManyRequests(BlockstoreError):
    """The caller has to wait."""

    status, fault = 429, "overLimit"

    def __init__(self, message: str, wait_s: int):
        self.wait_s = wait_s
        super().__init__(message)


class Forbidden(BlockstoreError):
    status, fault = 403, "forbidden"


class NotFound(BlockstoreError):
    status, fault = 404, "itemNotFound"

    @classmethod
    def resource(cls, kind: str, ref: str) -> NotFound:
        """Return the sentence for a resource that is not there, or not the caller's to see."""
        return cls(f"{kind} {ref} could not be found.")


class NotAcceptable(BlockstoreError):
    status, fault = 406, "computeFault"


class Conflict(BlockstoreError):
    status, fault = 409, "conflictingRequest"


class PreconditionFailed(BlockstoreError):
    status, fault = 412, "computeFault"


class OverQuota(BlockstoreError):
    status, fault = 413, "overLimit"


class NotOffered(BlockstoreError):
    """The API has it, and this service does not, yet."""

    status, fault = 501, "notImplemented"


class ServiceUnavailable(BlockstoreError):
    """What was asked for while the caller waits could not be done, by no fault of the caller."""

    status, fault = 503, "serviceUnavailable"


class UnsupportedMediaType(BlockstoreError):
    status, fault = 415, "badMediaType"


# --- inside ------------------------------------------------------------------------------------------------


class StateConflict(BlockstoreError):
    """A status door was shut: the row is not in a status from which the move is legal."""

    status, fault = 400, "badRequest"

    def __init__(self, machine: str, row_id: str, present: str | None, wanted: str):
        self.present = present
        super().__init__(
            f"{machine} {row_id} is {present}, which does not allow it to become {wanted}."
            if present is not None
            else f"{machine} {row_id} could not be found."
        )


class NoBackend(BlockstoreError):
    """No pool can take what was asked; carries the reason for each pool."""


class TryAgain(BlockstoreError):
    """What an order asks for cannot be done now, and must be done: the bus tries again."""


class DatabaseAway(TryAgain):
    """The database is locked, full, damaged or not reached. The order or the request is not the matter.

    Made by ``db/outages.py`` only. The message is for users; ``detail`` is for the log and for the command line.
    """

    status, fault = 503, "serviceUnavailable"

    def __init__(self, message: str, detail: str, wait_s: int = 5):
        self.detail, self.wait_s = detail, wait_s
        super().__init__(message)


class OrderCancelled(BlockstoreError):
    """An operator cancelled the order while it ran."""


class BackendError(BlockstoreError):
    """A backend could not do it. ``retry_elsewhere``: another pool may succeed where this one failed."""

    retry_elsewhere: ClassVar[bool] = True


class NotSupported(BackendError):
    """This configured backend does not offer the operation; its capabilities say so too."""


class NoSpace(BackendError):
    """The pool has no room left."""


class VolumeMissing(BackendError):
    """The named volume or snapshot is not on the backend."""

    retry_elsewhere = False


class NameTaken(BackendError):
    """The name exists on the backend with another size or kind."""


class InUse(BackendError):
    """Something still holds the volume: an open device, a dependant."""

    retry_elsewhere = False


class InvalidConnector(BackendError):
    """What an initiator says of itself is not what the target needs."""

    retry_elsewhere = False


class SessionAlive(BackendError):
    """An initiator's session could not be proved to be gone."""

    retry_elsewhere = False


class Unreachable(BackendError):
    """The storage does not answer, or is not set up: no such volume group, mount gone, tool missing, not root."""


class OutOfFiles(BackendError, TryAgain):
    """This process, or the node, has no file descriptor or process left. The storage is not the matter."""

    retry_elsewhere = False


class ToolFailed(BackendError):
    """A tool ended with an error that has no name of its own; keeps its words."""

    def __init__(self, argv: tuple[str, ...], code: int, stderr: str):
        self.argv, self.code, self.stderr = argv, code, stderr
        said = " ".join(stderr.split())[:500] or "it printed nothing"
        super().__init__(f"{argv[0]} failed with exit status {code}: {said}")


class ToolTimeout(Unreachable):
    """A tool did not end within its time."""


OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE})


def is_out_of_files(exc: BaseException | None) -> bool:
    """Return True if an error, or one that it was made of, says "too many open files"."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        if isinstance(exc, OutOfFiles) or (isinstance(exc, OSError) and exc.errno in OUT_OF_FILES):
            return True
        seen.add(id(exc))
        exc = exc.__cause__ or exc.__context__
    return False
