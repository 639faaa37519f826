"""Tokens: 256 random bits, stored only as their SHA-256, and checked against the present state of the database.

One indexed query finds the token with its user, its scope and the user's roles there. There is no cache that could be
outdated, so every change takes effect at once.
"""

from __future__ import annotations

import datetime
import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, bindparam, delete, func, insert, select
from sqlalchemy.orm import Session, aliased

from blockstore.db.models import ApplicationCredential, Domain, Grant, Project, Role, Token, User, now
from blockstore.identity.accounts import DOMAIN, NO_SCOPE, PROJECT
from blockstore.policy.rules import IMPLIED

MOST_LENGTH = 255
"""Longer than any token of ours."""
MOST_DROPPED = 100
"""Maximum number of a user's tokens that one login removes; the next login or the purge removes the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRow:
    """The id and the name of a row."""

    id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The contents of a valid token."""

    token_id: str
    user: NamedRow
    user_domain: NamedRow
    scope: str
    project: NamedRow | None
    """Set if the scope is a project; ``domain`` is then the project's domain."""
    domain: NamedRow | None
    roles: tuple[NamedRow, ...]
    """Including implied roles."""
    methods: tuple[str, ...]
    audit_id: str
    issued_at: datetime.datetime
    expires_at: datetime.datetime
    credential: NamedRow | None
    restricted: bool
    """The token came from an application credential that may not make others."""

    def role_names(self) -> frozenset[str]:
        """Return the names of the roles."""
        return frozenset(role.name for role in self.roles)

    @property
    def is_admin(self) -> bool:
        """Return True if the caller is an administrator."""
        return any(role.name == "admin" for role in self.roles)


def issue(
    session: Session,
    *,
    user_id: str,
    scope: str,
    scope_id: str,
    methods: list[str],
    expires_at: datetime.datetime,
    most: int,
    credential_id: str | None = None,
) -> str:
    """Store a new token and return its text, which is known only now.

    A user has at most ``most`` tokens. Above that, the tokens that expire first are removed, so that no login is
    refused.
    """
    words = secrets.token_urlsafe(32)
    _make_room(session, user_id, most)
    session.execute(
        insert(Token).values(
            id=_kept(words),
            user_id=user_id,
            scope=scope,
            scope_id=scope_id,
            methods=methods,
            audit_id=secrets.token_urlsafe(16),
            credential_id=credential_id,
            issued_at=now(),
            expires_at=expires_at,
        )
    )
    return words


def check(session: Session, words: str) -> Caller | None:
    """Return the caller of a token, or None if the token is not, or no longer, valid."""
    if not words or len(words) > MOST_LENGTH:
        return None
    # On the connection: the ORM would double the cost, and every request runs this.
    return _caller(session.connection().execute(_CHECK, {"token": _kept(words), "now": now()}).all())


def revoke(session: Session, token_id: str) -> None:
    """Delete a token."""
    session.execute(delete(Token).where(Token.id == token_id))


def is_there(session: Session, token_id: str) -> bool:
    """Return True if a token has not been revoked; lock it against that until this transaction ends."""
    return session.get(Token, token_id, with_for_update={"read": True}, populate_existing=True) is not None


def _make_room(session: Session, user_id: str, most: int) -> None:
    own = select(Token.id).where(Token.user_id == user_id).order_by(Token.expires_at, Token.issued_at)
    counted = select(func.count()).select_from(own.order_by(None).limit(most + MOST_DROPPED).subquery())
    excess = session.execute(counted).scalar_one() - most + 1
    if excess > 0:
        # SKIP LOCKED: simultaneous logins of one user remove different tokens instead of deadlocking.
        ended = session.scalars(own.limit(min(excess, MOST_DROPPED)).with_for_update(skip_locked=True)).all()
        session.execute(delete(Token).where(Token.id.in_(ended)))


def _kept(words: str) -> str:
    return hashlib.sha256(words.encode("utf-8", "surrogateescape")).hexdigest()


def _caller(rows: Any) -> Caller | None:
    if not rows:
        return None
    first = rows[0]
    project = domain = None
    if first.scope == PROJECT:
        if not (first.project_enabled and first.project_domain_enabled):
            return None
        project = NamedRow(id=first.scope_id, name=first.project_name)
        domain = NamedRow(id=first.project_domain_id, name=first.project_domain_name)
    elif first.scope == DOMAIN:
        if not first.domain_enabled:
            return None
        domain = NamedRow(id=first.scope_id, name=first.domain_name)
    roles = with_implied({row.role_name: row.role_id for row in rows if row.role_id is not None})
    credential = None
    if first.credential_id is not None:
        if first.credential_expires_at is not None and first.credential_expires_at <= now():
            return None
        allowed = set(first.credential_roles)
        roles = with_implied({name: role_id for name, role_id in roles.items() if role_id in allowed})
        credential = NamedRow(id=first.credential_id, name=first.credential_name)
    if not roles and first.scope != NO_SCOPE:
        return None
    return Caller(
        token_id=first.id,
        user=NamedRow(id=first.user_id, name=first.user_name),
        user_domain=NamedRow(id=first.user_domain_id, name=first.user_domain_name),
        scope=first.scope,
        project=project,
        domain=domain,
        roles=tuple(NamedRow(id=role_id, name=name) for name, role_id in sorted(roles.items())),
        methods=tuple(first.methods),
        audit_id=first.audit_id,
        issued_at=first.issued_at,
        expires_at=first.expires_at,
        credential=credential,
        restricted=credential is not None and not first.unrestricted,
    )


def with_implied(roles: dict[str, str]) -> dict[str, str]:
    """Return roles, id by name, with the roles that they imply."""
    names = dict(roles)
    for name in roles:
        for implied in IMPLIED.get(name, ()):
            names.setdefault(implied, implied)  # the ids of the roles in the policies are their names
    return names


_USER_DOMAIN, _PROJECT_DOMAIN, _DOMAIN = aliased(Domain), aliased(Domain), aliased(Domain)
# Built once, because every request runs it.
_CHECK = (
    select(
        Token.id,
        Token.user_id,
        Token.scope,
        Token.scope_id,
        Token.methods,
        Token.audit_id,
        Token.issued_at,
        Token.expires_at,
        Token.credential_id,
        User.name.label("user_name"),
        User.domain_id.label("user_domain_id"),
        _USER_DOMAIN.name.label("user_domain_name"),
        Project.name.label("project_name"),
        Project.enabled.label("project_enabled"),
        Project.domain_id.label("project_domain_id"),
        _PROJECT_DOMAIN.name.label("project_domain_name"),
        _PROJECT_DOMAIN.enabled.label("project_domain_enabled"),
        _DOMAIN.name.label("domain_name"),
        _DOMAIN.enabled.label("domain_enabled"),
        ApplicationCredential.name.label("credential_name"),
        ApplicationCredential.role_ids.label("credential_roles"),
        ApplicationCredential.expires_at.label("credential_expires_at"),
        ApplicationCredential.unrestricted,
        Role.id.label("role_id"),
        Role.name.label("role_name"),
    )
    .select_from(Token)
    .join(User, User.id == Token.user_id)
    .join(_USER_DOMAIN, _USER_DOMAIN.id == User.domain_id)
    .outerjoin(Project, and_(Token.scope == PROJECT, Project.id == Token.scope_id))
    .outerjoin(_PROJECT_DOMAIN, _PROJECT_DOMAIN.id == Project.domain_id)
    .outerjoin(_DOMAIN, and_(Token.scope == DOMAIN, _DOMAIN.id == Token.scope_id))
    .outerjoin(ApplicationCredential, ApplicationCredential.id == Token.credential_id)
    .outerjoin(
        Grant, and_(Grant.user_id == Token.user_id, Grant.scope == Token.scope, Grant.scope_id == Token.scope_id)
    )
    .outerjoin(Role, Role.id == Grant.role_id)
    .where(Token.id == bindparam("token"), Token.expires_at > bindparam("now"), User.enabled, _USER_DOMAIN.enabled)
)
