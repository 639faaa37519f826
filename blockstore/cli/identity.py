"""The command groups user and project, of the built-in identity."""

from __future__ import annotations

import sys
from typing import Any

import click

from blockstore.cli.command import configured
from blockstore.cli.database import open_accounts
from blockstore.cli.output import print_table
from blockstore.config import Config
from blockstore.errors import BlockstoreError


@click.group()
def user() -> None:
    """Manage the users of the built-in identity."""


@user.command("list")
@configured
def user_list(config: Config) -> None:
    """List the users with their roles."""
    from sqlalchemy import select

    from blockstore.db.models import Domain, Grant, Project, Role, User

    with open_accounts(config) as session:
        projects = {row.id: row.name for row in session.scalars(select(Project))}
        domains = {row.id: row.name for row in session.scalars(select(Domain))}
        roles = {row.id: row.name for row in session.scalars(select(Role))}
        given: dict[str, list[str]] = {}
        for row in session.scalars(select(Grant).order_by(Grant.scope, Grant.scope_id, Grant.role_id)):
            names = {"project": projects, "domain": domains}.get(row.scope, {})
            where = names.get(row.scope_id, row.scope_id)
            given.setdefault(row.user_id, []).append(f"{roles[row.role_id]} on {row.scope} {where}")
        rows = [
            (
                row.id,
                row.name,
                domains[row.domain_id],
                "yes" if row.enabled else "no",
                "; ".join(given.get(row.id, ["-"])),
            )
            for row in session.scalars(select(User).order_by(User.name))
        ]
    print_table(("ID", "NAME", "DOMAIN", "ENABLED", "ROLES"), rows, empty="There are no users.")


@user.command("create")
@configured
@click.argument("name")
@click.option("--project", help="Give the user a role on this project.")
@click.option("--role", default="member", show_default=True, help="Which role.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input instead of generating one.")
def user_create(config: Config, name: str, project: str | None, role: str, password_stdin: bool) -> None:
    """Make a user; a password that was made is printed once."""
    from blockstore.db.models import Project, Role, User
    from blockstore.identity import accounts, passwords
    from blockstore.schemas import identity as schemas

    password = _password(password_stdin)
    name = _checked(schemas.CreateUserBody, "user", name=name, password=password)["name"]
    kept = passwords.hashed(password)
    with open_accounts(config) as session:
        home = accounts.find_by_id_or_name(session, Project, project) if project else None
        row = User(
            id=accounts.new_account_id(),
            name=name,
            domain_id=accounts.DEFAULT_DOMAIN,
            default_project_id=home.id if home else None,
            password_hash=kept,
        )
        accounts.add(session, row)
        if home is not None:
            accounts.grant(
                session, row.id, accounts.PROJECT, home.id, accounts.find_by_id_or_name(session, Role, role).id
            )
    click.echo(row.id if password_stdin else f"{row.id} password: {password}")


@user.command("password")
@configured
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input instead of generating one.")
def user_password(config: Config, name: str, password_stdin: bool) -> None:
    """Set a new password; it ends the user's sessions. The file with the first one of admin is removed."""
    from blockstore.db.models import User
    from blockstore.identity import accounts, bootstrap, passwords
    from blockstore.schemas import identity as schemas

    password = _password(password_stdin)
    _checked(schemas.ChangeUserBody, "user", password=password)
    kept = passwords.hashed(password)
    with open_accounts(config) as session:
        row = accounts.find_by_id_or_name(session, User, name)
        accounts.change(session, row, password_hash=kept)
    if row.id == accounts.ADMIN:
        bootstrap.forget_password(config.state_dir, password)
    if not password_stdin:
        click.echo(f"password: {password}")


@user.command("delete")
@configured
@click.argument("name")
def user_delete(config: Config, name: str) -> None:
    """Remove a user."""
    from blockstore.db.models import User
    from blockstore.identity import accounts

    with open_accounts(config) as session:
        accounts.remove_user(session, accounts.find_by_id_or_name(session, User, name))


@user.command("grant")
@configured
@click.argument("name")
@click.argument("role")
@click.argument("project")
def user_grant(config: Config, name: str, role: str, project: str) -> None:
    """Give a user a role on a project."""
    from blockstore.identity import accounts

    with open_accounts(config) as session:
        accounts.grant(session, *_granted(session, name, role, project))


@user.command("revoke")
@configured
@click.argument("name")
@click.argument("role")
@click.argument("project")
def user_revoke(config: Config, name: str, role: str, project: str) -> None:
    """Take a role on a project from a user."""
    from blockstore.identity import accounts

    with open_accounts(config) as session:
        accounts.revoke(session, *_granted(session, name, role, project))


def _granted(session: Any, name: str, role: str, project: str) -> tuple[str, str, str, str]:
    from blockstore.db.models import Project, Role, User
    from blockstore.identity import accounts

    found = (
        accounts.find_by_id_or_name(session, User, name).id,
        accounts.find_by_id_or_name(session, Project, project).id,
    )
    return found[0], accounts.PROJECT, found[1], accounts.find_by_id_or_name(session, Role, role).id


def _checked(schema: Any, noun: str, **values: Any) -> dict[str, Any]:
    """Return values as the Identity API would accept them. Raise InvalidInput with the API's text."""
    from blockstore.microversions import MINIMUM
    from blockstore.schemas.base import load

    return dict(load(schema, {noun: values}, MINIMUM)[noun])


def _password(from_stdin: bool) -> str:
    import secrets

    if not from_stdin:
        return secrets.token_urlsafe(18)
    line = sys.stdin.readline().rstrip("\r\n")
    if not line:
        raise BlockstoreError("There is no password on standard input.")
    return line


@click.group()
def project() -> None:
    """Look after the projects of the built-in identity."""


@project.command("list")
@configured
def project_list(config: Config) -> None:
    """List the projects."""
    from sqlalchemy import select

    from blockstore.db.models import Domain, Project

    with open_accounts(config) as session:
        domains = {row.id: row.name for row in session.scalars(select(Domain))}
        rows = [
            (row.id, row.name, domains[row.domain_id], "yes" if row.enabled else "no", row.description or "-")
            for row in session.scalars(select(Project).order_by(Project.name))
        ]
    print_table(("ID", "NAME", "DOMAIN", "ENABLED", "DESCRIPTION"), rows, empty="There are no projects.")


@project.command("create")
@configured
@click.argument("name")
@click.option("--description", default="", help="What it is for.")
def project_create(config: Config, name: str, description: str) -> None:
    """Make a project; print its id."""
    from blockstore.db.models import Project
    from blockstore.identity import accounts
    from blockstore.schemas import identity as schemas

    values = _checked(schemas.CreateProjectBody, "project", name=name, description=description)
    row = Project(
        id=accounts.new_account_id(),
        name=values["name"],
        domain_id=accounts.DEFAULT_DOMAIN,
        description=values["description"],
        enabled=True,
    )
    with open_accounts(config) as session:
        accounts.add(session, row)
    click.echo(row.id)


@project.command("delete")
@configured
@click.argument("name")
def project_delete(config: Config, name: str) -> None:
    """Remove a project that has no volumes."""
    from blockstore.db.models import Project
    from blockstore.identity import accounts

    with open_accounts(config) as session:
        accounts.remove_project(session, accounts.find_by_id_or_name(session, Project, name))
