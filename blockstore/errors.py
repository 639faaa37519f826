"""All errors of the service, each with its HTTP status and the fault name of the API.

Raised by every component; turned into a reply in one place, ``api/http/faults.py``. A message is a full sentence that a
person can act on: it names the field or the resource, the actual value, and the expected one.
Plugins raise backend errors, which never reach a reply unexplained.

An error has two texts. ``message`` is for operators: it may name pools, nodes, paths and tools. ``public`` is for
users: what happened, with sizes, and what to do. They differ where a class or a caller gives a public text.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection
from typing import ClassVar, NamedTuple, Self

MOST_NAMES = 5
"""Maximum number of names in one message."""
MOST_SHOWN = 80
"""Maximum number of characters of a name or a value in a message."""


class Reason(NamedTuple):
    """Why something failed, for the operator and for the user."""

    operator: str
    public: str


class BlockstoreError(Exception):
    """Anything this project raises on purpose."""

    status: ClassVar[int] = 500
    fault: ClassVar[str] = "computeFault"
    public_text: ClassVar[str | None] = None
    """The user's text for all errors of the class; None: the same as the operator's."""

    def __init__(self, message: str = "", *, public: str | None = None):
        self._public = public
        super().__init__(message)

    @property
    def message(self) -> str:
        """The operator's sentence."""
        return str(self)

    @property
    def public(self) -> str:
        """The user's sentence: it names no pool, node, path or tool."""
        if self._public is not None:
            return self._public
        return self.message if self.public_text is None else self.public_text

    @property
    def reason(self) -> Reason:
        """Both sentences."""
        return Reason(self.message, self.public)

    @classmethod
    def for_everybody(cls, message: str) -> Self:
        """Return an error with one sentence for operators and users; it must name nothing that users may not know."""
        return cls(message, public=message)


def shortened(text: str, most: int = MOST_SHOWN) -> str:
    """Return a text for an error message, cut to ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def listed(names: Collection[str]) -> str:
    """Return names for an error message: at most five, and the number of the others."""
    shortened_names = [shortened(name) for name in sorted(names)[:MOST_NAMES]]
    left = len(names) - len(shortened_names)
    return ", ".join(shortened_names) + (f" and {left} other{'s' if left > 1 else ''}" if left else "")


class ConfigError(BlockstoreError):
    """A mistake in the configuration: names file, section and option."""


# --- refusals of requests ----------------------------------------------------------------------------------


class BadRequest(BlockstoreError):
    status, fault = 400, "badRequest"


SECRET_NAME = re.compile(r"pass|secret|token|chap|credential|auth(?!or)|(api|private)_?key|cookie", re.IGNORECASE)
"""Names of fields whose values, and the values of fields inside them, are never shown."""


class InvalidInput(BadRequest):
    """A value in a body or query that the schema refuses.

    The value is shown only if it is a scalar of a field without a secret. ``shows``: False for an unknown field, whose
    value may be a secret.
    """

    def __init__(self, field: str, value: object, reason: str, *, shows: bool = True):
        self.field = field
        where = f"Invalid input for field/attribute {shortened(field, 255)}."
        super().__init__(f"{where} {_shown(field, value, shows)} {reason}")


def _shown(field: str, value: object, shows: bool) -> str:
    """Return the part of the message that shows the value, or only its type."""
    if value is None or isinstance(value, bool):
        return f"Value: {value}."
    if isinstance(value, dict | list):
        return f"Value: {'an object' if isinstance(value, dict) else 'an array'}."
    if not shows or SECRET_NAME.search(field) or _may_hold_credentials(value):
        return f"Value: {'a string' if isinstance(value, str) else 'a number'} (not shown)."
    return f"Value: {shortened(repr(value[:MOST_SHOWN] if isinstance(value, str) else value))}."


def _may_hold_credentials(value: object) -> bool:
    """Return True if the value may be a URL with a user and a password before the host."""
    return isinstance(value, str) and "//" in value and "@" in value


class QueryTooLong(BadRequest):
    """The query string is longer than any client needs."""

    status = 414


class InvalidStatus(BadRequest):
    """The status of the resource does not allow the request."""


class Unauthorized(BlockstoreError):
    """The caller is not authenticated."""

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
        """Return the error for a resource that does not exist or that the caller may not see."""
        return cls(f"{kind} {shortened(ref, 255)} could not be found.")


class NotAcceptable(BlockstoreError):
    status, fault = 406, "computeFault"


class Conflict(BlockstoreError):
    status, fault = 409, "conflictingRequest"


class PreconditionFailed(BlockstoreError):
    status, fault = 412, "computeFault"


class OverQuota(BlockstoreError):
    status, fault = 413, "overLimit"


class BodyTooLarge(BlockstoreError):
    status, fault = 413, "overLimit"


class NotOffered(BlockstoreError):
    """The API defines it, but this service does not implement it yet."""

    status, fault = 501, "notImplemented"


class ServiceUnavailable(BlockstoreError):
    """The service could not do something while the caller waited, by no fault of the caller."""

    status, fault = 503, "serviceUnavailable"


class Busy(ServiceUnavailable):
    """Too many requests ask for the same at this moment; the reply tells the caller when to retry."""

    def __init__(self, message: str, wait_s: int):
        self.wait_s = wait_s
        super().__init__(message)


class UnsupportedMediaType(BlockstoreError):
    status, fault = 415, "badMediaType"


# --- inside ------------------------------------------------------------------------------------------------


class StateConflict(BlockstoreError):
    """The row's present status does not allow the transition."""

    status, fault = 400, "badRequest"

    def __init__(self, machine: str, row_id: str, present: str | None, wanted: str):
        self.present = present
        super().__init__(
            f"{machine} {row_id} is {present}, which does not allow it to become {wanted}."
            if present is not None
            else f"{machine} {row_id} could not be found."
        )


class NoBackend(BlockstoreError):
    """No pool can take the volume; the message gives the reason for each pool."""

    public_text = "No storage can take the volume. Ask your administrator."


class TryAgain(BlockstoreError):
    """An operation cannot be done now, but must be done: the bus retries it."""


class DatabaseAway(TryAgain):
    """The database is locked, full, damaged or unreachable. The operation or the request is not the cause.

    Created by ``db/outages.py`` only. The message is for users; ``detail`` is for the log and for the command line.
    """

    status, fault = 503, "serviceUnavailable"

    def __init__(self, message: str, detail: str, wait_s: int = 5):
        self.detail, self.wait_s = detail, wait_s
        super().__init__(message)


class OperationCancelled(BlockstoreError):
    """An operator cancelled the operation while it ran."""


class BackendError(BlockstoreError):
    """A backend failed. ``retry_elsewhere``: another pool may succeed where this one failed."""

    public_text = "The operation failed on the storage. Ask your administrator."

    retry_elsewhere: ClassVar[bool] = True

    untouched: ClassVar[bool] = False
    """The operation was refused before its first change: the volume and its bytes are unchanged."""


class NotSupported(BackendError):
    """This configured backend does not offer the operation, as its capabilities declare."""

    public_text = "The storage of this volume does not support the operation."
    untouched = True


class NoSpace(BackendError):
    """The pool has no space left."""

    public_text = "The storage does not have enough free space. Ask for less, or ask your administrator."


class RefusedForSpace(NoSpace):
    """The pool has no space left, which was found before the first change."""

    untouched = True


class VolumeMissing(BackendError):
    """The named volume or snapshot is not on the backend."""

    public_text = "The volume or snapshot is no longer on the storage. Ask your administrator."
    retry_elsewhere = False


class NameTaken(BackendError):
    """The name exists on the backend with another size or kind."""

    public_text = "The storage already uses the name of the volume or snapshot. Ask your administrator."


class InUse(BackendError):
    """The volume is still in use by an open device or a dependent volume. Raised before the first change."""

    public_text = (
        "The volume or snapshot is still in use: it is open, or another volume depends on it. Try again later."
    )
    retry_elsewhere = False
    untouched = True


class InvalidConnector(BackendError):
    """The initiator's connector does not hold what the target needs."""

    public_text = "The connector lacks data that the storage of this volume needs. Ask your administrator."
    retry_elsewhere = False


class SessionAlive(BackendError):
    """The target could not prove that an initiator's session has ended."""

    public_text = "A server still has the volume open. Close it there, and try again."
    retry_elsewhere = False


class Unreachable(BackendError):
    """The storage does not answer, or is not set up: no such volume group, mount gone, tool missing, not root."""

    public_text = "The storage does not answer at the moment. Try again later, or ask your administrator."


class NotRecognised(Unreachable):
    """The storage is not the recorded one, which was found before the first change."""

    untouched = True


class PoolDown(Unreachable):
    """The pool is known to be down, or is no longer configured. No request was made to its storage."""

    untouched = True


class DiskFull(BackendError):
    """The disk of the service's own files is full. The storage is not the cause."""

    public_text = (
        "The service's own disk is full. Until there is space again, only deletions are accepted. Delete volumes or"
        " snapshots, or ask your administrator."
    )
    retry_elsewhere = False


class OutOfFiles(BackendError, TryAgain):
    """This process, or the node, has no file descriptor or process left. The storage is not the cause."""

    public_text = "The service has too many files open at the moment. It will retry the operation."

    retry_elsewhere = False


class ToolFailed(BackendError):
    """A tool failed with an error that has no class of its own; keeps the tool's output."""

    public_text = "The storage reported an error. Ask your administrator."

    def __init__(self, argv: tuple[str, ...], code: int, stderr: str):
        self.argv, self.code, self.stderr = argv, code, stderr
        text = " ".join(stderr.split())[:500] or "no output"
        super().__init__(f"{argv[0]} failed with exit status {code}: {text}")


class ToolTimeout(Unreachable):
    """A tool did not end within its time."""


OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE})


def is_out_of_files(exc: BaseException | None) -> bool:
    """Return True if an error, or one of its causes, is "too many open files"."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        if isinstance(exc, OutOfFiles) or (isinstance(exc, OSError) and exc.errno in OUT_OF_FILES):
            return True
        seen.add(id(exc))
        exc = exc.__cause__ or exc.__context__
    return False
