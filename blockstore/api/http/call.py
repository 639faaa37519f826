"""The argument of endpoint functions, and the replies that they may return besides plain JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from blockstore.accounting.pool_reports import PoolReports
from blockstore.api.http import links
from blockstore.api.http.authentication import Authenticator
from blockstore.api.http.waiting import ThreadReserve
from blockstore.config import Config
from blockstore.context import RequestContext
from blockstore.db.session import Database
from blockstore.identity.throttle import Throttle
from blockstore.microversions import Version
from blockstore.operations.bus import Bus
from blockstore.operations.catalogue import Kind
from blockstore.policy.rules import Policy

CORE = "blockstore"
"""Key of the ``Core`` in ``app.extensions``."""


@dataclass(frozen=True, kw_only=True)
class Core:
    """The objects that endpoints use besides the request."""

    config: Config
    db: Database
    pool_reports: PoolReports
    bus: Bus
    thread_reserve: ThreadReserve
    authenticate: Authenticator
    policy: Policy
    transfer_key_throttle: Throttle
    """Limits the attempts to guess the keys of transfers."""
    secret_of: Callable[[str], str]
    """Returns the secret of an attachment, for the reply that contains it."""
    check_connector: Callable[[str, Mapping[str, Any]], None]
    """Raises InvalidConnector if the target of a pool cannot use a connector."""
    explain_new: Callable[..., dict[str, Any]]
    """Explains how the scheduler would place a new volume."""
    plan_drain: Callable[[Session, str], list[dict[str, Any]]]
    """Returns the plan of a drain: the destination of each volume of a backend."""
    note_token: Callable[[str, str | None], None]
    """Called with a new token and its project: the project's requests then have their own queue from the first one."""
    manageable: Callable[[str, str, float], list[Any]]
    """Lists the ``volumes`` or ``snapshots`` on a pool. Raises BackendError, and TimeoutError if it takes too long."""


@dataclass(slots=True, kw_only=True)
class Call:
    """One request, for an endpoint function."""

    ctx: RequestContext
    session: Session
    query: Mapping[str, str]
    """The query parameters; for a repeated key, its last value."""
    links: links.Links
    core: Core
    if_match: str | None = None

    @property
    def version(self) -> Version:
        """Return the microversion in force."""
        return self.ctx.microversion

    def operation(self, kind: type[Kind], row: Any, **fields: Any) -> Kind:
        """Return a new operation of this request on a row. The change of the row's status enqueues it."""
        return kind.of(row, self.ctx.request_id, **fields)

    def may(self, rule: str) -> bool:
        """Return True if the caller satisfies a policy rule."""
        return self.core.policy.allowed(self.ctx, rule)

    def enforce(self, rule: str) -> None:
        """Raise Forbidden unless the caller satisfies a policy rule."""
        self.core.policy.enforce(self.ctx, rule)


@dataclass(frozen=True, kw_only=True)
class PlainText:
    """A reply that is not plain JSON: exact bytes with headers."""

    body: bytes
    mimetype: str
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True, kw_only=True)
class Deferred:
    """A reply that is made after the operations of the request have ended, or after a timeout; the client waits."""

    operations: Sequence[str]
    reply: Callable[[Call], Any]
    """Called with a new session; reads from the database how the operations ended."""


@dataclass(frozen=True, kw_only=True)
class WithoutSession:
    """A reply that depends on storage: made after the session has ended, while another thread answers requests."""

    reply: Callable[[float], Any]
    """Called with the seconds that it may take."""
