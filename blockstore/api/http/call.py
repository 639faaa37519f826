"""What an endpoint function is given, and the kinds of replies that it may return beside plain JSON."""

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
"""Where the application keeps its ``Core``."""


@dataclass(frozen=True, kw_only=True)
class Core:
    """What endpoints work with, beside the request."""

    config: Config
    db: Database
    pool_reports: PoolReports
    bus: Bus
    thread_reserve: ThreadReserve
    authenticate: Authenticator
    policy: Policy
    transfer_key_throttle: Throttle
    """Of the keys of transfers."""
    secret_of: Callable[[str], str]
    """The secret of an attachment, for the reply that tells it."""
    check_connector: Callable[[str, Mapping[str, Any]], None]
    """Raises InvalidConnector when the target of a pool cannot use a connector."""
    explain_new: Callable[..., dict[str, Any]]
    """What the scheduler would do with a new volume."""
    plan_drain: Callable[[Session, str], list[dict[str, Any]]]
    """Where the volumes of a backend would go."""
    note_token: Callable[[str, str | None], None]
    """Called with a new token and its project, whose requests have a line of their own from the first one on."""
    manageable: Callable[[str, str, float], list[Any]]
    """What is on a pool, ``volumes`` or ``snapshots``, if it says so in time. Raises BackendError, TimeoutError."""


@dataclass(slots=True, kw_only=True)
class Call:
    """One request, for an endpoint function."""

    ctx: RequestContext
    session: Session
    query: Mapping[str, str]
    """The query string; of a key that stands there twice, the last."""
    links: links.Links
    core: Core
    if_match: str | None = None

    @property
    def version(self) -> Version:
        """Return the microversion in force."""
        return self.ctx.microversion

    def operation(self, kind: type[Kind], row: Any, **fields: Any) -> Kind:
        """Return a new operation of this request on a row; whoever changes the row's status files it."""
        return kind.of(row, self.ctx.request_id, **fields)

    def may(self, rule: str) -> bool:
        """Say whether the caller satisfies a policy rule."""
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
    """A reply that is made when the operations filed for it have ended; the caller waits for it."""

    operations: Sequence[str]
    reply: Callable[[Call], Any]
    """Called with a new session; finds out by itself how the operations ended."""


@dataclass(frozen=True, kw_only=True)
class WithoutSession:
    """A reply for which storage is asked: made when the session has ended, while another thread answers."""

    reply: Callable[[float], Any]
    """Called with the seconds that it may take."""
