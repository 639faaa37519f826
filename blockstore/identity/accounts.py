"""The accounts: domains, projects, users and roles, and the grants of roles to users.

Used by ``api/identity/`` and by the command line, each inside its own transaction.
"""

from __future__ import annotations

import uuid
from typing import Any, TypeVar

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.orm import Session

from blockstore.db.models import ApplicationCredential, Domain, Grant, Project, Role, Snapshot, Token, User, Volume
from blockstore.db.session import insert_if_absent
from blockstore.errors import Conflict, Forbidden, NotFound

DEFAULT_DOMAIN = "default"
ADMIN = "admin"
"""Id of the first project and the first user. ``auth = none`` uses it for all callers, so that later the owner of their
volumes stays the same."""
PROJECT, DOMAIN, SYSTEM, NO_SCOPE = "project", "domain", "system", "none"
ALL = "all"
"""The id of the scope ``system``."""

Row = TypeVar("Row", Domain, Project, User, Role)


def new_account_id() -> str:
    """Return a new id in Keystone's form."""
    return uuid.uuid4().hex


def find(session: Session, model: type[Row], ref: str) -> Row:
    """Return a row by id. Raises NotFound."""
    row = session.get(model, ref)
    if row is None:
        raise NotFound(f"Could not find {model.__name__.lower()}: {ref}.")
    return row


def find_by_id_or_name(session: Session, model: type[Row], ref: str, domain_id: str = DEFAULT_DOMAIN) -> Row:
    """Return a row by id, or by its name in a domain. Raises NotFound."""
    row = session.get(model, ref) or by_name(session, model, ref, domain_id)
    if row is None:
        raise NotFound(f"Could not find {model.__name__.lower()}: {ref}.")
    return row


def by_name(session: Session, model: type[Row], name: str, domain_id: str = DEFAULT_DOMAIN) -> Row | None:
    """Return a row by its name in a domain; domains and roles have no domain."""
    statement = select(model).where(model.name == name)
    if model is Project or model is User:
        statement = statement.where(model.domain_id == domain_id)
    return session.scalars(statement).one_or_none()


def add(session: Session, row: Row) -> Row:
    """Add a row. Raise Conflict if its name is taken, NotFound if its domain does not exist."""
    if isinstance(row, Project | User):
        find(session, Domain, row.domain_id)
    _refuse_taken(session, row)
    session.add(row)
    session.flush()
    return row


def change(session: Session, row: Row, **values: Any) -> Row:
    """Change the given values. Raise Conflict if a new name is taken, Forbidden if the row must stay enabled."""
    if values.get("enabled") is False and row.id in (ADMIN, DEFAULT_DOMAIN):
        raise Forbidden(
            f"The {type(row).__name__.lower()} {row.id} is needed to manage this service and cannot be disabled."
        )
    renamed = values.get("name") not in (None, row.name)
    with session.no_autoflush:
        for name, value in values.items():
            setattr(row, name, value)
        if renamed:
            _refuse_taken(session, row)
    session.flush()  # first: this waits for a login that holds the row, whose token is deleted below
    if values.get("enabled") is False:
        _end_access(session, row)
    elif "password_hash" in values:
        session.execute(delete(Token).where(Token.user_id == row.id))
    return row


def remove_user(session: Session, row: User) -> None:
    """Remove a user with grants, tokens and application credentials. Raise Forbidden for the first user."""
    if row.id == ADMIN:
        raise Forbidden("The user admin is built in and cannot be deleted; disable other users instead.")
    session.delete(row)
    session.flush()


def remove_project(session: Session, row: Project) -> None:
    """Remove a project. Raise Conflict if it has volumes or snapshots, Forbidden for the first project."""
    if row.id == ADMIN:
        raise Forbidden("The project admin is built in and cannot be deleted.")
    _hold(session, row)
    for model, noun in ((Volume, "volumes"), (Snapshot, "snapshots")):
        count = session.scalar(select(func.count()).select_from(model).where(model.project_id == row.id))
        if count:
            raise Conflict(f"The project {row.name} still has {count} {noun}; delete or transfer them first.")
    _forget_scope(session, PROJECT, row.id)
    session.delete(row)
    session.flush()


def remove_domain(session: Session, row: Domain) -> None:
    """Remove a disabled domain with its users and its projects. Raises Forbidden, Conflict."""
    if row.id == DEFAULT_DOMAIN:
        raise Forbidden("The domain default is built in and cannot be deleted.")
    if row.enabled:
        raise Forbidden(f"Cannot delete a domain that is enabled; disable {row.name} first.")
    _hold(session, row)
    for project in session.scalars(select(Project).where(Project.domain_id == row.id)).all():
        remove_project(session, project)
    _forget_scope(session, DOMAIN, row.id)
    session.delete(row)
    session.flush()


def remove_role(session: Session, row: Role) -> None:
    """Remove a role and all its grants. Raise Forbidden for the roles that the policies use."""
    if row.name in ("admin", "member", "reader", "service"):
        raise Forbidden(f"The role {row.name} is used by the policy rules and cannot be deleted.")
    granted = select(Grant.user_id, Grant.scope, Grant.scope_id).where(Grant.role_id == row.id).with_for_update()
    holders = session.execute(granted).all()
    session.delete(row)
    session.flush()
    for user_id, scope, scope_id in holders:
        _end_access_there(session, user_id, scope, scope_id)
    session.flush()


def grant(session: Session, user_id: str, scope: str, scope_id: str, role_id: str) -> None:
    """Give a role to a user; without effect if the user has it already."""
    insert_if_absent(session, Grant, user_id=user_id, scope=scope, scope_id=scope_id, role_id=role_id)


def revoke(session: Session, user_id: str, scope: str, scope_id: str, role_id: str) -> None:
    """Take a role from a user. Raise NotFound if it was not granted, Forbidden for the first administrator's."""
    if user_id == ADMIN and scope_id == ADMIN and session.get_one(Role, role_id).name == "admin":
        raise Forbidden("The role admin of the user admin on the project admin cannot be revoked.")
    row = session.get(Grant, (user_id, scope, scope_id, role_id))
    if row is None:
        raise NotFound(f"Could not find role assignment with role: {role_id}, user: {user_id}, {scope}: {scope_id}.")
    session.delete(row)
    session.flush()
    _end_access_there(session, user_id, scope, scope_id)


def roles_on(session: Session, user_id: str, scope: str, scope_id: str, *, hold: bool = False) -> list[Role]:
    """Return the roles of a user on a scope, by name; ``hold`` locks the grants until the transaction ends."""
    statement = (
        select(Role)
        .join(Grant, Grant.role_id == Role.id)
        .where(Grant.user_id == user_id, Grant.scope == scope, Grant.scope_id == scope_id)
        .order_by(Role.name)
    )
    return list(session.scalars(statement.with_for_update(read=True, of=Grant) if hold else statement))


def hold(session: Session, model: type[Row], ref: str) -> Row | None:
    """Return the present row, locked against changes until this transaction ends; None if it does not exist.

    The rows behind a token or a credential are held while it is made. Otherwise one could be made for a project that is
    being disabled, and be valid when the project is enabled again. The order is domain, user, project, to avoid
    deadlocks.
    """
    return session.get(model, ref, with_for_update={"read": True}, populate_existing=True)


def hold_project(session: Session, project_id: str) -> bool:
    """Hold a project as ``hold`` does, without reading it; return False if it does not exist."""
    return session.execute(_HELD_PROJECT, {"project": project_id}).first() is not None


# Built once, and of a plain column, because every create runs it.
_HELD_PROJECT = select(Project.id).where(Project.id == bindparam("project")).with_for_update(read=True)


def projects_of(session: Session, user_id: str) -> list[Project]:
    """Return the enabled projects on which a user has a role, by name."""
    reached = select(Grant.scope_id).where(Grant.user_id == user_id, Grant.scope == PROJECT)
    statement = select(Project).where(Project.id.in_(reached), Project.enabled).order_by(Project.name)
    return list(session.scalars(statement))


def domains_of(session: Session, user_id: str) -> list[Domain]:
    """Return the enabled domains on which a user has a role, by name."""
    reached = select(Grant.scope_id).where(Grant.user_id == user_id, Grant.scope == DOMAIN)
    return list(session.scalars(select(Domain).where(Domain.id.in_(reached), Domain.enabled).order_by(Domain.name)))


def _end_access(session: Session, row: Domain | Project | User | Role) -> None:
    """Delete the tokens and application credentials of a disabled row: enabling it again restores none."""
    if isinstance(row, User):
        users, projects = [row.id], []
    elif isinstance(row, Project):
        users, projects = [], [row.id]
    else:
        users = list(session.scalars(select(User.id).where(User.domain_id == row.id)))
        projects = list(session.scalars(select(Project.id).where(Project.domain_id == row.id)))
        session.execute(delete(Token).where(Token.scope == DOMAIN, Token.scope_id == row.id))
    for user_id in users:
        session.execute(delete(Token).where(Token.user_id == user_id))
        session.execute(delete(ApplicationCredential).where(ApplicationCredential.user_id == user_id))
    for project_id in projects:
        session.execute(delete(Token).where(Token.scope == PROJECT, Token.scope_id == project_id))
        session.execute(delete(ApplicationCredential).where(ApplicationCredential.project_id == project_id))


def _end_access_there(session: Session, user_id: str, scope: str, scope_id: str) -> None:
    """Delete a user's tokens and application credentials for one scope, because a role there was taken away."""
    session.execute(delete(Token).where(Token.user_id == user_id, Token.scope == scope, Token.scope_id == scope_id))
    if scope == PROJECT:
        session.execute(
            delete(ApplicationCredential).where(
                ApplicationCredential.user_id == user_id, ApplicationCredential.project_id == scope_id
            )
        )


def _hold(session: Session, row: Domain | Project) -> None:
    session.refresh(row, with_for_update=True)


def _forget_scope(session: Session, scope: str, scope_id: str) -> None:
    for model in (Grant, Token):
        session.execute(delete(model).where(model.scope == scope, model.scope_id == scope_id))


def _refuse_taken(session: Session, row: Domain | Project | User | Role) -> None:
    model = type(row)
    statement = select(model.id).where(model.name == row.name, model.id != row.id)
    if isinstance(row, Project | User):
        statement = statement.where(model.domain_id == row.domain_id)  # type: ignore[union-attr]
    if session.execute(statement).first() is not None:
        raise Conflict(
            f"Duplicate entry found with name {row.name}: a {model.__name__.lower()} of this name exists already."
        )
