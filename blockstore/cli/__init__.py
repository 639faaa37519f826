"""The command: serve, openrc, attach, user, project, order, backend and so on; each function below is one of them.

Imports what a command needs when it runs, so that ``blockstore openrc`` is quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from blockstore import __version__, address
from blockstore.config import SECTIONS, Config, PoolConfig, as_text, load, parse_listen
from blockstore.errors import BlockstoreError, DatabaseAway
from blockstore.logs import printable

_config_option = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="Configuration file; the defaults without it."
)
_state_option = click.option(
    "--state-dir", type=click.Path(path_type=Path), help="State directory instead of the configured one."
)


def configured(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --config and --state-dir, and turn mistakes into one sentence."""

    @_config_option
    @_state_option
    @click.pass_context
    def command(ctx: click.Context, /, config_path: Path | None, state_dir: Path | None, **kw: Any) -> Any:
        try:
            config = load(config_path)
            if state_dir is not None:
                config = dataclasses.replace(
                    config, service=dataclasses.replace(config.service, state_dir=state_dir.absolute())
                )
            return ctx.invoke(function, config=config, **kw)
        except BlockstoreError as exc:
            said = f"the database cannot be used: {exc.detail}" if isinstance(exc, DatabaseAway) else exc.message
            click.echo(f"blockstore: {printable(said)}", err=True)
            sys.exit(1)
        except _database_errors() as exc:
            said = next(iter(str(getattr(exc, "orig", None) or exc).splitlines()), type(exc).__name__)
            click.echo(f"blockstore: the database cannot be used: {said}", err=True)
            sys.exit(1)

    command.__doc__ = function.__doc__
    command.__click_params__ = [  # type: ignore[attr-defined]
        *getattr(function, "__click_params__", []),
        *getattr(command, "__click_params__", []),
    ]
    command.__name__ = function.__name__
    return command


def _database_errors() -> type[Exception]:
    # Evaluated when something was raised, so that a command without a database does not import this for nothing.
    from sqlalchemy.exc import DBAPIError

    return DBAPIError


@click.group()
@click.version_option(__version__, prog_name="blockstore")
def main() -> None:
    """Block storage for a small lab: the OpenStack Block Storage API v3 in one process."""


@main.command()
@configured
@click.option("--listen", help="HOST:PORT instead of the configured one.")
@click.option("--insecure", is_flag=True, help="Serve without authentication where others can reach it.")
@click.option(
    "--new-database", is_flag=True, help="Begin with an empty database in a state directory that has served before."
)
def serve(config: Config, listen: str | None, insecure: bool, new_database: bool) -> None:
    """Serve the API until SIGTERM."""
    gc.disable()  # what is imported stays: looking through it again and again is a tenth of a start
    from blockstore import service

    gc.freeze()
    gc.enable()
    changes: dict[str, Any] = {}
    if listen:
        changes["listen"] = listen
    if insecure:
        changes["insecure"] = True
    config = dataclasses.replace(config, service=dataclasses.replace(config.service, **changes))
    sys.exit(service.serve(config, new_database=new_database))


# What a shell may have from another cloud, and what one of the clients would prefer to the exports below.
_FOREIGN = (
    "OS_CLOUD OS_AUTH_TYPE OS_AUTH_PLUGIN OS_AUTH_STRATEGY OS_AUTH_URL OS_URL OS_TOKEN OS_USERNAME OS_USER_ID"
    " OS_PASSWORD OS_PASSCODE OS_USER_DOMAIN_ID OS_USER_DOMAIN_NAME OS_PROJECT_ID OS_PROJECT_NAME OS_PROJECT_DOMAIN_ID"
    " OS_PROJECT_DOMAIN_NAME OS_TENANT_ID OS_TENANT_NAME OS_DOMAIN_ID OS_DOMAIN_NAME OS_DEFAULT_DOMAIN"
    " OS_DEFAULT_DOMAIN_ID OS_DEFAULT_DOMAIN_NAME OS_TRUST_ID OS_SYSTEM_SCOPE OS_APPLICATION_CREDENTIAL_ID"
    " OS_APPLICATION_CREDENTIAL_NAME OS_APPLICATION_CREDENTIAL_SECRET OS_ACCESS_TOKEN OS_IDENTITY_PROVIDER OS_PROTOCOL"
    " OS_SERVICE_TYPE OS_ENDPOINT_OVERRIDE OS_BLOCK_STORAGE_ENDPOINT OS_BLOCK_STORAGE_ENDPOINT_OVERRIDE"
    " OS_BLOCK_STORAGE_API_VERSION OS_BLOCK_STORAGE_DEFAULT_MICROVERSION OS_BLOCK_STORAGE_SERVICE_TYPE"
    " OS_VOLUME_ENDPOINT OS_VOLUME_ENDPOINT_OVERRIDE OS_VOLUME_DEFAULT_MICROVERSION OS_VOLUME_SERVICE_TYPE"
    " OS_VOLUMEV3_ENDPOINT_OVERRIDE OS_IDENTITY_API_VERSION OS_IDENTITY_ENDPOINT_OVERRIDE"
    " CINDER_USERNAME CINDER_PASSWORD CINDER_URL"
)


@main.command()
@configured
def openrc(config: Config) -> None:
    """Print what makes openstack, cinder and openstacksdk use this service: eval "$(blockstore openrc)"

    \b
    With the built-in identity, it is what they always read, for the user admin.
    With auth = none, openstack and openstacksdk read OS_auth_type, OS_ENDPOINT and OS_VOLUME_API_VERSION;
    cinder reads OS_AUTH_SYSTEM, CINDER_ENDPOINT, CINDER_PROJECT_ID and OS_VOLUME_API_VERSION.
    What would send them elsewhere is unset.
    """
    from blockstore.microversions import CLIENTS

    values = _without_identity(config) if config.service.auth == "none" else _with_password(config)
    click.echo(f"unset {_FOREIGN};")  # each line ends in a semicolon for those who eval without quotes
    for name, value in {**values, "OS_VOLUME_API_VERSION": str(CLIENTS)}.items():
        click.echo(f"export {name}={shlex.quote(value)};")


def _without_identity(config: Config) -> dict[str, str]:
    url = _endpoint(config)
    return {
        # compat: cinder cannot start with OS_AUTH_TYPE=none, for that plugin's option --os-endpoint collides with
        # its own, and openstack cannot do without it. openstacksdk lowers the names it reads and cinder does not.
        "OS_auth_type": "none",
        "OS_ENDPOINT": url,
        "OS_AUTH_SYSTEM": "noauth",
        "CINDER_ENDPOINT": url,
        # compat: not OS_PROJECT_ID, which openstacksdk would hand to a plugin that does not take it
        "CINDER_PROJECT_ID": "admin",
    }


def _with_password(config: Config) -> dict[str, str]:
    from blockstore.identity.bootstrap import read_password

    if config.service.auth == "keystone":
        raise BlockstoreError(
            f"{config.keystone.auth_url} knows the users; use the openrc or clouds.yaml of its administrator."
        )
    values = {
        "OS_AUTH_URL": f"{_endpoint(config).removesuffix('/v3')}/identity/v3",
        "OS_USERNAME": "admin",
        "OS_PASSWORD": read_password(config.state_dir),
        "OS_PROJECT_NAME": "admin",
        "OS_USER_DOMAIN_ID": "default",
        "OS_PROJECT_DOMAIN_ID": "default",
        "OS_REGION_NAME": config.identity.region,
        "OS_IDENTITY_API_VERSION": "3",
    }
    if config.service.tls_ca is not None:
        values["OS_CACERT"] = str(config.service.tls_ca.absolute())
    return values


@main.command("clouds-yaml")
@configured
@click.option("--name", default="blockstore", show_default=True, help="Name of the cloud, for OS_CLOUD or --os-cloud.")
@click.option(
    "--merge",
    is_flag=False,
    flag_value="",
    type=click.Path(),
    metavar="[FILE]",
    help="Put the cloud into a file, beside others; without FILE into the one that openstack reads.",
)
def clouds_yaml(config: Config, name: str, merge: str | None) -> None:
    """Print a clouds.yaml for the user admin, or put it into one: blockstore clouds-yaml --merge"""
    from blockstore import clouds
    from blockstore.microversions import CLIENTS

    if not name or not name.isprintable():
        raise BlockstoreError("--name must be a text of printable characters.")
    # openstacksdk reads the first, the commands `openstack volume` the second
    versions = {"block_storage_default_microversion": str(CLIENTS), "volume_api_version": str(CLIENTS)}
    cloud: dict[str, Any] = {}
    if config.service.auth == "none":
        cloud |= {"auth_type": "none", "auth": {"endpoint": _endpoint(config)}}
    else:
        values = _with_password(config)
        names = ("auth_url", "username", "password", "project_name", "user_domain_id", "project_domain_id")
        cloud |= {"auth": {key: values[f"OS_{key.upper()}"] for key in names}, "region_name": config.identity.region}
        if "OS_CACERT" in values:
            cloud["cacert"] = values["OS_CACERT"]
    cloud |= versions
    if merge is None:
        click.echo(clouds.document(name, cloud), nl=False)
        return
    path = Path(merge) if merge else clouds.default_file()
    clouds.merge_into(path, name, cloud)
    click.echo(f"{path} has the cloud {name} now; use it by: export OS_CLOUD={shlex.quote(name)}")


def _endpoint(config: Config) -> str:
    """Return the URL by which clients reach the service; say so if it does not serve now."""
    from blockstore.local_client import is_answering

    service = config.service
    url = address.noted(config.state_dir)
    host, port = parse_listen(service.listen, "[service] listen")
    where = f"blockstore: nothing has served from {config.state_dir} yet"
    if url is None:
        if port == 0 and not service.public_endpoint:
            raise BlockstoreError(f"Nothing has served from {config.state_dir} yet; its port is not known.")
        click.echo(f"{where}; this is for when it does.", err=True)
        url = address.own_url(host, port, service.tls_certificate, service.tls_key)
    elif not is_answering(url, host):
        click.echo(
            f"blockstore: nothing answers at {url}, where it last served from {config.state_dir}; this is for when it"
            " does.",
            err=True,
        )
    return f"{service.public_endpoint.rstrip('/') or url}/v3"


# --- orders ------------------------------------------------------------------------------------------------


@main.group()
def order() -> None:
    """Look at running and finished operations, and stop them."""


@order.command("list")
@configured
@click.option("--all", "everything", is_flag=True, help="Finished ones too, newest first.")
@click.option("--resource", help="Only those of one volume or snapshot.")
@click.option("--limit", default=50, show_default=True, help="At most so many.")
def order_list(config: Config, everything: bool, resource: str | None, limit: int) -> None:
    """List operations that wait or run."""
    from blockstore.db.models import OrderRow

    statement, db = _orders(config)
    if not everything and not resource:
        statement = statement.where(OrderRow.state == "open")
    if resource:
        statement = statement.where(OrderRow.resource_id == resource)
    with db.read() as session:
        rows = session.scalars(statement.order_by(OrderRow.id.desc()).limit(limit)).all()
    _table(
        ("ORDER", "WHAT", "RESOURCE", "STATE", "PROGRESS", "STARTED", "REASON"),
        [
            (
                row.id,
                row.kind,
                f"{row.resource_type} {row.resource_id}",
                _state(row),
                "-" if row.progress is None else f"{row.progress} %",
                _time(row.created_at),
                row.reason or "-",
            )
            for row in rows
        ],
        empty="Nothing waits or runs." if not everything else "There are no orders.",
    )


@order.command("show")
@configured
@click.argument("order_id")
def order_show(config: Config, order_id: str) -> None:
    """Show one operation."""
    from blockstore.db.models import OrderRow

    _, db = _orders(config)
    with db.read() as session:
        row = session.get(OrderRow, order_id)
    if row is None:
        raise BlockstoreError(f"There is no order {order_id}.")
    for name, value in (
        ("order", row.id),
        ("what", row.kind),
        (row.resource_type, row.resource_id),
        ("project", row.project_id),
        ("request", row.request_id),
        ("state", _state(row)),
        ("progress", "-" if row.progress is None else f"{row.progress} %"),
        ("attempt", row.attempt),
        ("created", _time(row.created_at)),
        ("finished", _time(row.finished_at)),
        ("reason", row.reason or "-"),
        ("details", json.dumps(row.body)),
    ):
        click.echo(f"{name:10} {printable(str(value))}")


@order.command("cancel")
@configured
@click.argument("order_id")
def order_cancel(config: Config, order_id: str) -> None:
    """Ask an operation to stop; its resource then settles with that reason."""
    from blockstore.db.models import OrderRow
    from blockstore.orders import KINDS

    _, db = _orders(config)
    with db.write() as session:
        row = session.get(OrderRow, order_id)
        if row is None:
            raise BlockstoreError(f"There is no order {order_id}.")
        if row.state != "open":
            raise BlockstoreError(f"Order {order_id} is {row.state} already.")
        if not KINDS[row.kind].cancellable:
            raise BlockstoreError(f"{row.kind} cannot be stopped half-way without harm; it runs to its end.")
        row.cancel_asked = True
    click.echo(f"Asked {row.kind} of {row.resource_type} {row.resource_id} to stop.")


def _orders(config: Config) -> tuple[Any, Any]:
    from sqlalchemy import select

    from blockstore.db.models import OrderRow
    from blockstore.private_files import prove_state_dir

    if not config.database.url and not (prove_state_dir(config.state_dir) / "blockstore.db").exists():
        raise BlockstoreError(f"There is no database in {config.state_dir} yet; has blockstore served from there?")
    return select(OrderRow), _database(config)


def _database(config: Config) -> Any:
    """Return the configured database; closed when the command ends."""
    from blockstore.db.session import Database
    from blockstore.service import database_url

    db = Database(database_url(config))
    click.get_current_context().call_on_close(db.dispose)
    return db


def _state(row: Any) -> str:
    if row.state != "open":
        return str(row.state)
    if row.cancel_asked:
        return "stopping"
    return "running" if row.started_at is not None else "queued"


def _time(at: datetime.datetime | None) -> str:
    return "-" if at is None else at.isoformat(sep=" ", timespec="seconds") + "Z"


# --- attachments -------------------------------------------------------------------------------------------


@main.command()
@configured
@click.argument("volume")
@click.option("--read-only", is_flag=True, help="For reading only.")
def attach(config: Config, volume: str, read_only: bool) -> None:
    """Attach a volume (name or id) to this node, and print the path of its device or file."""
    from blockstore.service import local_connector

    ask = _asker(config)
    found = _find_volume(ask, volume)
    wanted = {
        "volume_uuid": found,
        "connector": local_connector(),
        "mode": "ro" if read_only else "rw",
    }
    made = ask("POST", "/attachments", {"attachment": wanted})["attachment"]
    ask("POST", f"/attachments/{made['id']}/action", {"os-complete": {}})
    click.echo(made["connection_info"]["device_path"])


@main.command()
@configured
@click.argument("volume")
def detach(config: Config, volume: str) -> None:
    """Detach a volume (name or id) from this node; refused while something has it open."""
    from blockstore.service import local_connector

    ask = _asker(config)
    found = _find_volume(ask, volume)
    listed = ask("GET", f"/attachments/detail?all_tenants=1&volume_id={found}")["attachments"]
    ours = [one for one in listed if one["connection_info"].get("attached_here") == local_connector()["host"]]
    if not ours:
        raise BlockstoreError(f"The volume {volume} is not attached to this node by `blockstore attach`.")
    for one in ours:
        ask("DELETE", f"/attachments/{one['id']}")


def _find_volume(ask: Callable[..., Any], volume: str) -> str:
    from urllib.parse import quote

    from blockstore.schemas.base import is_uuid

    if is_uuid(volume):
        return str(ask("GET", f"/volumes/{volume}")["volume"]["id"])
    found = ask("GET", f"/volumes?all_tenants=1&name={quote(volume, safe='')}")["volumes"]
    if len(found) != 1:
        raise BlockstoreError(f"{len(found) or 'No'} volumes are named {volume}; give the id.")
    return str(found[0]["id"])


def _asker(config: Config) -> Callable[..., Any]:
    """Return what asks the running service, as an administrator; a refusal is its own sentence."""
    from blockstore.local_client import LocalClient

    service = config.service
    url = address.noted(config.state_dir)
    if url is None:
        raise BlockstoreError(
            f"Nothing has served from {config.state_dir} yet. Start `blockstore serve`, or give this command the same"
            " --config and --state-dir as the service."
        )
    return LocalClient(
        url,
        parse_listen(service.listen, "[service] listen")[0],
        ca=service.tls_ca,
        token=_admin_token(config),
        timeout_s=service.attach_timeout_s + 30,
    )


def _admin_token(config: Config) -> str | None:
    """Return a token for one command of somebody who can write the database anyway; None where none is asked for."""
    import os

    if config.service.auth == "none":
        return None
    if config.service.auth == "keystone":
        if not os.environ.get("OS_TOKEN"):
            raise BlockstoreError("Keystone knows the users: export OS_TOKEN=$(openstack token issue -f value -c id)")
        return os.environ["OS_TOKEN"]
    from blockstore.db.models import now
    from blockstore.identity import accounts, tokens

    with _accounts(config) as session:
        return tokens.issue(
            session,
            user_id=accounts.ADMIN,
            scope=accounts.PROJECT,
            scope_id=accounts.ADMIN,
            methods=["password"],
            most=config.identity.tokens_per_user,
            expires_at=now() + datetime.timedelta(seconds=config.service.attach_timeout_s * 2 + 60),
        )


@main.group()
def attachment() -> None:
    """Look at who uses the volumes."""


@attachment.command("list")
@configured
@click.option("--volume", "volume_id", help="Only those of one volume.")
@click.option("--stale", is_flag=True, help="Only those that no initiator is connected to.")
def attachment_list(config: Config, volume_id: str | None, stale: bool) -> None:
    """List the attachments, and whether their initiators are connected now.

    Also what os-initialize_connection has exported, which no list of the API shows; its status says so.
    """
    from sqlalchemy import select

    from blockstore.db.models import Attachment
    from blockstore.service import probe_sessions
    from blockstore.states import EXPORTED

    _, db = _orders(config)
    with db.read() as session:
        statement = select(Attachment).order_by(Attachment.created_at, Attachment.id)
        rows = session.scalars(statement.where(Attachment.volume_id == volume_id) if volume_id else statement).all()
    connected, untold = probe_sessions(config)
    table = []
    for row in rows:
        exported = row.connection is not None and row.status in EXPORTED
        who = ", ".join(connected.get(row.id, ())) or ("unknown" if row.target in untold else "nobody")
        if stale and (not exported or who != "nobody"):
            continue
        table.append(
            (
                row.id,
                row.volume_id,
                row.project_id,
                f"{row.status} (os-initialize_connection)" if row.legacy else row.status,
                row.instance_uuid or "-",
                row.host_name or "-",
                row.target or "-",
                who if exported else "-",
                row.reason or "-",
            )
        )
    _table(
        ("ATTACHMENT", "VOLUME", "PROJECT", "STATUS", "SERVER", "HOST", "TARGET", "CONNECTED", "REASON"),
        table,
        empty="There are no such attachments." if stale or volume_id else "There are no attachments.",
    )
    for name, reason in untold.items():
        click.echo(f"blockstore: the target {name} cannot tell who is connected: {reason}", err=True)


@attachment.command("delete")
@configured
@click.argument("attachment_id")
def attachment_delete(config: Config, attachment_id: str) -> None:
    """End an attachment and its export, whoever made it: also one that os-initialize_connection made."""
    from urllib.parse import quote

    _asker(config)("DELETE", f"/attachments/{quote(attachment_id, safe='')}")


@attachment.command("forget-saved")
@configured
def attachment_forget_saved(config: Config) -> None:
    """Take exports out of what target.service restores at boot: for a unit that is ordered before it.

    What targetcli saved would come back with former volumes and passwords; the service makes its exports itself.
    """
    from blockstore.service import configured_targets

    for name, target in configured_targets(config).items():
        taken = target.forget_saved()
        if taken:
            click.echo(f"Of the target {name}, {taken} saved entries were taken out.")


# --- users and projects ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _accounts(config: Config) -> Iterator[Any]:
    """Open a session on the users and projects of the built-in identity."""
    if config.service.auth != "builtin":
        raise BlockstoreError(f"auth is {config.service.auth}; users and projects are here with auth = builtin only.")
    _, db = _orders(config)
    with db.write() as session:
        yield session


@main.group()
def user() -> None:
    """Look after the users of the built-in identity."""


@user.command("list")
@configured
def user_list(config: Config) -> None:
    """List the users, and what they may do where."""
    from sqlalchemy import select

    from blockstore.db.models import Domain, Grant, Project, Role, User

    with _accounts(config) as session:
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
    _table(("ID", "NAME", "DOMAIN", "ENABLED", "ROLES"), rows, empty="There are no users.")


@user.command("create")
@configured
@click.argument("name")
@click.option("--project", help="Give the user a role on this project.")
@click.option("--role", default="member", show_default=True, help="Which role.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input, instead of making one.")
def user_create(config: Config, name: str, project: str | None, role: str, password_stdin: bool) -> None:
    """Make a user; a password that was made is printed once."""
    from blockstore.db.models import Project, Role, User
    from blockstore.identity import accounts, passwords
    from blockstore.schemas import identity as schemas

    password = _password(password_stdin)
    name = _checked(schemas.CreateUser, "user", name=name, password=password)["name"]
    kept = passwords.hashed(password)
    with _accounts(config) as session:
        home = accounts.named(session, Project, project) if project else None
        row = User(
            id=accounts.new_account_id(),
            name=name,
            domain_id=accounts.DEFAULT_DOMAIN,
            default_project_id=home.id if home else None,
            password_hash=kept,
        )
        accounts.add(session, row)
        if home is not None:
            accounts.grant(session, row.id, accounts.PROJECT, home.id, accounts.named(session, Role, role).id)
    click.echo(row.id if password_stdin else f"{row.id} password: {password}")


@user.command("password")
@configured
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input, instead of making one.")
def user_password(config: Config, name: str, password_stdin: bool) -> None:
    """Set a new password; it ends the user's sessions. The file with the first one of admin is removed."""
    from blockstore.db.models import User
    from blockstore.identity import accounts, bootstrap, passwords
    from blockstore.schemas import identity as schemas

    password = _password(password_stdin)
    _checked(schemas.ChangeUser, "user", password=password)
    kept = passwords.hashed(password)
    with _accounts(config) as session:
        row = accounts.named(session, User, name)
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

    with _accounts(config) as session:
        accounts.remove_user(session, accounts.named(session, User, name))


@user.command("grant")
@configured
@click.argument("name")
@click.argument("role")
@click.argument("project")
def user_grant(config: Config, name: str, role: str, project: str) -> None:
    """Give a user a role on a project."""
    from blockstore.identity import accounts

    with _accounts(config) as session:
        accounts.grant(session, *_granted(session, name, role, project))


@user.command("revoke")
@configured
@click.argument("name")
@click.argument("role")
@click.argument("project")
def user_revoke(config: Config, name: str, role: str, project: str) -> None:
    """Take a role on a project from a user."""
    from blockstore.identity import accounts

    with _accounts(config) as session:
        accounts.revoke(session, *_granted(session, name, role, project))


def _granted(session: Any, name: str, role: str, project: str) -> tuple[str, str, str, str]:
    from blockstore.db.models import Project, Role, User
    from blockstore.identity import accounts

    found = accounts.named(session, User, name).id, accounts.named(session, Project, project).id
    return found[0], accounts.PROJECT, found[1], accounts.named(session, Role, role).id


def _checked(schema: Any, noun: str, **values: Any) -> dict[str, Any]:
    """Return values as the Identity API would take them. Raises InvalidInput in the API's words."""
    from blockstore.microversions import MINIMUM
    from blockstore.schemas.base import load

    return dict(load(schema, {noun: values}, MINIMUM)[noun])


def _password(from_stdin: bool) -> str:
    import secrets

    if not from_stdin:
        return secrets.token_urlsafe(18)
    said = sys.stdin.readline().rstrip("\r\n")
    if not said:
        raise BlockstoreError("There is no password on standard input.")
    return said


@main.group()
def project() -> None:
    """Look after the projects of the built-in identity."""


@project.command("list")
@configured
def project_list(config: Config) -> None:
    """List the projects."""
    from sqlalchemy import select

    from blockstore.db.models import Domain, Project

    with _accounts(config) as session:
        domains = {row.id: row.name for row in session.scalars(select(Domain))}
        rows = [
            (row.id, row.name, domains[row.domain_id], "yes" if row.enabled else "no", row.description or "-")
            for row in session.scalars(select(Project).order_by(Project.name))
        ]
    _table(("ID", "NAME", "DOMAIN", "ENABLED", "DESCRIPTION"), rows, empty="There are no projects.")


@project.command("create")
@configured
@click.argument("name")
@click.option("--description", default="", help="What it is for.")
def project_create(config: Config, name: str, description: str) -> None:
    """Make a project; print its id."""
    from blockstore.db.models import Project
    from blockstore.identity import accounts
    from blockstore.schemas import identity as schemas

    values = _checked(schemas.CreateProject, "project", name=name, description=description)
    row = Project(
        id=accounts.new_account_id(),
        name=values["name"],
        domain_id=accounts.DEFAULT_DOMAIN,
        description=values["description"],
        enabled=True,
    )
    with _accounts(config) as session:
        accounts.add(session, row)
    click.echo(row.id)


@project.command("delete")
@configured
@click.argument("name")
def project_delete(config: Config, name: str) -> None:
    """Remove a project that has no volumes."""
    from blockstore.db.models import Project
    from blockstore.identity import accounts

    with _accounts(config) as session:
        accounts.remove_project(session, accounts.named(session, Project, name))


# --- policies ----------------------------------------------------------------------------------------------


@main.group()
def policy() -> None:
    """Look at who may do what."""


@policy.command("list")
@configured
def policy_list(config: Config) -> None:
    """List the rules in force, and which of them policy.yaml has changed."""
    rules, changed = _policy_rules(config)
    _table(
        ("RULE", "CHECK", "FROM"),
        [(rule, check, "policy file" if rule in changed else "default") for rule, check in rules.items()],
        empty="There are no rules.",
    )


@policy.command("check")
@configured
@click.argument("rule")
@click.option("--role", "roles", multiple=True, help="A role of the caller; may be given several times.")
@click.option("--user", "user_id", default="somebody", help="Id of the caller.")
@click.option("--project", "project_id", default="theirs", help="Id of the caller's project.")
def policy_check(config: Config, rule: str, roles: Sequence[str], user_id: str, project_id: str) -> None:
    """Explain whether a caller with these roles may do what a rule is about; exit status 1 means no."""
    from blockstore.context import RequestContext
    from blockstore.policies import IMPLIED, RULES
    from blockstore.service import load_policy, policy_file

    if rule not in RULES:
        from difflib import get_close_matches

        near = get_close_matches(rule, RULES, 3, 0.5)
        raise BlockstoreError(f"There is no rule {rule}.{f' Did you mean {chr(32).join(near)}?' if near else ''}")
    decides = load_policy(config)
    given = frozenset(roles).union(*(IMPLIED.get(role, ()) for role in roles))
    ctx = RequestContext(
        request_id="",
        user_id=user_id,
        project_id=project_id,
        roles=given,
        is_admin=decides.is_admin(given, user_id, project_id),
    )
    rules, changed = _policy_rules(config)
    allowed = decides.allowed(ctx, rule)
    origin = f"from {policy_file(config)}" if rule in changed else "the default"
    click.echo(f"rule     {rule}")
    click.echo(f"check    {rules[rule]} ({origin})")
    click.echo(f"caller   roles {', '.join(sorted(given)) or 'none'}; administrator: {'yes' if ctx.is_admin else 'no'}")
    click.echo(f"decision {'allowed' if allowed else 'refused: 403'}, on what belongs to the caller's own project;")
    click.echo(f"         what belongs to others {'is in reach, too' if ctx.is_admin else 'answers 404'}")
    sys.exit(0 if allowed else 1)


def _policy_rules(config: Config) -> tuple[dict[str, str], frozenset[str]]:
    from blockstore.policies import RULES
    from blockstore.service import policy_file

    file = policy_file(config)
    if not file.exists():
        return {rule: level.value for rule, level in RULES.items()}, frozenset()
    from blockstore.policy_file import PolicyFile

    own = PolicyFile(file)
    return {rule: own.check_of(rule) for rule in RULES}, own.overridden


# --- backends ----------------------------------------------------------------------------------------------


@main.group()
def backend() -> None:
    """Look at the configured backends."""


@backend.command("list")
@configured
def backend_list(config: Config) -> None:
    """List the backends, whether they are well, and what they can do."""
    from blockstore.manager.installations import refuse_foreign

    rows = []
    installation = _installation(config)
    for name, instance in _backends(config).items():
        try:
            instance.prove_identity()
            instance.check()
            if instance.capabilities().owner_mark:
                refuse_foreign(instance, installation, instance.owner())
            capacity, caps = instance.capacity(), instance.capabilities()
            flags = [f.name for f in dataclasses.fields(caps) if getattr(caps, f.name) is True]
            state = "up"
            if capacity.closed_because:
                state = "closed"
                flags = [capacity.closed_because]
            rows.append((name, state, f"{capacity.total_gib:.1f}", f"{capacity.free_gib:.1f}", " ".join(flags)))
        except BlockstoreError as exc:
            rows.append((name, "DOWN", "-", "-", exc.message))
    _table(("POOL", "STATE", "GIB", "FREE", "CAN"), rows, empty="No backend is configured.")


@backend.command("check")
@configured
@click.argument("name")
def backend_check(config: Config, name: str) -> None:
    """Prove that a backend and its target keep every promise, by running the conformance suites on them.

    Makes and removes small volumes and exports with names of their own; touches nothing else.
    """
    from blockstore.backends import conformance as backends_suite
    from blockstore.targets import conformance as targets_suite

    failed = 0
    for pool, instance in _chosen(config, name).items():
        instance.prove_identity()
        instance.check()
        click.echo(f"The backend {instance.name}:")
        results = [*backends_suite.run(instance, report=click.echo)]
        with _target_on_trial(config, pool, instance) as target:
            if target is None:
                click.echo(f"Consumers reach the storage of {instance.name} without a target.")
                failed += sum(result.outcome == "failed" for result in results)
                continue
            target.check()
            click.echo(f"The backend {instance.name} with the target {target.name}:")
            results += targets_suite.run(targets_suite.Pair(instance, target), report=click.echo)
        failed += sum(result.outcome == "failed" for result in results)
    click.echo(f"{failed} promises broken." if failed else "Every promise kept.")
    sys.exit(1 if failed else 0)


@backend.command("takeover")
@configured
@click.argument("name")
@click.option("--from", "former", required=True, help="Id of the installation that has it now.")
def backend_takeover(config: Config, name: str, former: str) -> None:
    """Make the storage of a backend this installation's, when the one that used it is gone for good.

    A running service notices at its next look. The other installation, if it runs all the same, stops using it.
    """
    installation = _installation(config)
    marked = {pool: b for pool, b in _chosen(config, name).items() if b.capabilities().owner_mark}
    taken = 0
    for pool, instance in marked.items():
        instance.prove_identity()
        instance.check()
        if instance.owner() == former:
            instance.change_owner(former, installation)
            taken += 1
        click.echo(f"{pool} is used by installation {instance.owner() or 'none'}; this one is {installation}.")
    if not taken:
        raise BlockstoreError(f"No pool of {name} is used by installation {former}; nothing was changed.")


@backend.command("accept")
@configured
@click.argument("name")
@click.option("--found", required=True, help="What is there now, as the reason of the pool that is down has it.")
def backend_accept(config: Config, name: str, found: str) -> None:
    """Say that the storage of a backend is new for good, when it is not the one that was known.

    Volumes that are not on it are in error afterwards, and their projects are told; nothing is deleted. A running
    service notices at its next look.
    """
    from blockstore.db import migrations
    from blockstore.manager.new_storage import accept

    chosen = {pool: b for pool, b in _chosen(config, name).items() if (b.identity() or "none") == found}
    if not chosen:
        raise BlockstoreError(f"No storage of {name} is {found} now; nothing was changed.")
    if len(chosen) > 1:
        raise BlockstoreError(f"{len(chosen)} pools of {name} are {found}. Name one of them: {', '.join(chosen)}")
    ((pool, instance),) = chosen.items()
    if migrations.current(database := _database(config)) != migrations.HEAD:
        raise BlockstoreError("The database is of another version: start the service first, or: blockstore db upgrade")
    done = accept(database, pool, instance, _installation(config), config.service.order_keep_days)
    click.echo(f"{pool} is the storage {done.identity} from now on; before it was {done.former or 'none'}.")
    if done.there:
        click.echo(f"On it are {len(done.there)} volumes and snapshots that are known. Those in error can be reset:")
        click.echo("  openstack volume set --state available VOLUME")
    if done.lost:
        click.echo(f"Not on it are {len(done.lost)}; their projects were told. Who deletes them gets the quota back:")
        for row_id in done.lost:
            click.echo(f"  {row_id}")


def _installation(config: Config) -> str:
    from blockstore.keyring import Keyring
    from blockstore.private_files import prepare_state_dir

    return Keyring(prepare_state_dir(config.state_dir) / "attachments.key").owner


def _chosen(config: Config, name: str) -> dict[str, Any]:
    """Return the pools of a backend, or the one of that name. Raises BlockstoreError when there is none."""
    chosen = {pool: b for pool, b in _backends(config).items() if name in (b.name, f"{b.name}#{b.pool}", pool)}
    if not chosen:
        known = ", ".join(b.name for b in config.backends)
        raise BlockstoreError(f"There is no backend {name}; configured are {known}.")
    return chosen


@backend.command("drain")
@configured
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Only show where each volume would go.")
def backend_drain(config: Config, name: str, dry_run: bool) -> None:
    """Move every volume of a backend to others, and keep new ones away from it.

    What cannot be moved now is shown with the reason. `blockstore order list` shows how far it is;
    `openstack volume service set --enable HOST cinder-volume` takes the backend into use again.
    """
    ask = _asker(config)
    host = name if "@" in name else f"{config.service.node}@{name}"
    plan = ask("POST", "/os-services/drain", {"drain": {"host": host, "dry_run": dry_run}})["drain"]["volumes"]
    rows = [(v["volume_id"], v["size"], v["source"], v["destination"] or f"stays: {v['reason']}") for v in plan]
    _table(("VOLUME", "GIB", "FROM", "TO"), rows, empty=f"There is no volume on {host}.")
    moved = sum(v["destination"] is not None for v in plan)
    click.echo(f"{moved} of {len(plan)} volumes {'would be' if dry_run else 'are being'} moved.")
    sys.exit(0 if moved == len(plan) else 1)


@main.group()
def schedule() -> None:
    """Ask the scheduler."""


@schedule.command("explain")
@configured
@click.option("--size", type=int, required=True, help="GiB.")
@click.option("--type", "volume_type", help="Volume type; the default one without it.")
@click.option("--zone", help="Availability zone.")
def schedule_explain(config: Config, size: int, volume_type: str | None, zone: str | None) -> None:
    """Tell where a volume would be placed, and why: per pool, filter and weigher, with the numbers."""
    from urllib.parse import urlencode

    wanted = {"size": size, "volume_type": volume_type, "availability_zone": zone}
    query = urlencode({key: value for key, value in wanted.items() if value is not None})
    told = _asker(config)("GET", f"/scheduler-stats/explain?{query}")["explanation"]
    rows = []
    for pool in told["pools"]:
        if pool["rank"] is None:
            why = f"{pool['filter']}: {pool['reason']}"
        else:
            parts = [f"{w['weigher']} {w['raw']} is {w['normalised']} x {w['multiplier']}" for w in pool["weights"]]
            why = f"{pool['total']} = {' + '.join(parts) or 'not weighed'}"
        rows.append(
            (pool["rank"] or "-", pool["name"], pool.get("free_gib", "-"), pool.get("virtual_free_gib", "-"), why)
        )
    _table(("RANK", "POOL", "FREE", "MAY PROMISE", "WHY"), rows, empty="No pool is configured.")
    click.echo(f"It would go to {told['winner']}." if told["winner"] else "No pool can take it.")
    sys.exit(0 if told["winner"] else 1)


@contextlib.contextmanager
def _target_on_trial(config: Config, pool: str, instance: Any) -> Iterator[Any]:
    """Give the target of a pool as an installation of its own has it, beside the one that may be serving."""
    import secrets
    import tempfile

    from blockstore.keyring import Keyring
    from blockstore.service import load_targets
    from blockstore.targets import loader

    keyring = Keyring(config.state_dir / "attachments.key")
    _, serving = load_targets(config, {pool: instance}, config.state_dir, keyring)
    name = serving[pool]
    if name is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="check-", dir=config.state_dir) as directory:
        yield loader.load(config.target(name), Path(directory), f"check{secrets.token_hex(2)}")


def _backends(config: Config) -> dict[str, Any]:
    from blockstore.private_files import prepare_state_dir
    from blockstore.service import load_backends

    backends = load_backends(config, prepare_state_dir(config.state_dir))
    for pool, identity in _recorded(config).items():
        if pool in backends:
            backends[pool].recognise(identity)
    return backends


def _recorded(config: Config) -> dict[str, str]:
    """Return the recorded identities by pool; none where no service has made the database yet, or brought it here."""
    from blockstore.db import migrations
    from blockstore.manager.recognition import recorded_identities
    from blockstore.service import database_url

    url = database_url(config)
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return {}
    database = _database(config)
    return recorded_identities(database) if migrations.current(database) == migrations.HEAD else {}


# --- database, configuration -------------------------------------------------------------------------------


@main.group()
def db() -> None:
    """Look after the database."""


@db.command("upgrade")
@configured
def db_upgrade(config: Config) -> None:
    """Bring the database up to date, as every start does."""
    from blockstore import private_files
    from blockstore.db.migrations import HEAD, upgrade
    from blockstore.service import StateLock

    with StateLock(config.state_dir), private_files.explained(config.state_dir):
        database = _database(config)
        database.take_sole_use()
        aside = upgrade(database)
    click.echo(f"The database is at revision {HEAD}." + (f" A copy of the old one: {aside}" if aside else ""))


@main.group("config")
def config_group() -> None:
    """Look at the configuration."""


@config_group.command("show")
@configured
def config_show(config: Config) -> None:
    """Print the configuration in force, secrets hidden."""
    from blockstore.backends import loader

    click.echo(f"# from {config.source}")
    for section in SECTIONS:
        _section(section, getattr(config, section))
    for configured_backend in config.backends:
        options = loader.options(configured_backend)
        _section(f"backend:{configured_backend.name}", configured_backend.pool, options)


def _section(name: str, *parts: Any) -> None:
    click.echo(f"\n[{name}]")
    for part in parts:
        for f in dataclasses.fields(part):
            value = getattr(part, f.name)
            click.echo(f"{f.name} = {'(hidden)' if f.metadata.get('secret') and value else as_text(value)}".rstrip())


@config_group.command("example")
def config_example() -> None:
    """Print every option with its default and its meaning: config.example.ini."""
    from blockstore.backends import loader
    from blockstore.plugins import installed
    from blockstore.targets import loader as target_loader

    click.echo(_EXAMPLE_HEAD)
    for section, cls in SECTIONS.items():
        _example(f"\n[{section}]", cls)
    click.echo(_EXAMPLE_BACKENDS)
    _example("#[backend:NAME]", PoolConfig)
    for name in loader.plugins():
        _example(f"\n# The plugin {name} has these options too.\n#plugin = {name}", loader.plugin(name, "").Options)
    click.echo(_EXAMPLE_TARGETS)
    for name in installed(target_loader.GROUP):
        _example(f"\n#[target:{name}]\n#plugin = {name}", target_loader.plugin(name, "").Options)


_EXAMPLE_HEAD = """\
# Every option of blockstore with its default. Nothing here needs to be set: `blockstore serve` runs without a file.
# Copy what you want to change, remove the # before it, and name the file: blockstore serve --config FILE
#
# Printed by `blockstore config example`; a test compares the two."""

_EXAMPLE_BACKENDS = """
# One section [backend:NAME] for each backend, as many as you like; without any there is one, of the plugin directory.
# These options are common to all."""


_EXAMPLE_TARGETS = """
# One section [target:NAME] for each way in which volumes leave this node, for the option `target` of backends. Without
# a section a plugin's name stands for the plugin with its defaults. These are the plugins and their options."""


def _example(header: str, cls: Any) -> None:
    click.echo(header)
    _, _, about = (cls.__doc__ or "").partition("]: ")
    if about:
        click.echo(f"# {about[0].upper()}{about[1:]}")
    for f in dataclasses.fields(cls):
        choices = f.metadata.get("choices")
        one_of = f" One of: {', '.join(choices)}." if choices else ""
        click.echo(f"# {f.metadata['help']}{one_of}")
        click.echo(f"#{f.name} = {'' if f.default is dataclasses.MISSING else as_text(f.default)}".rstrip())


def _table(header: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    if not rows:
        click.echo(empty)
        return
    # Tenants choose names that an administrator's terminal must not obey.
    shown = [[printable(str(cell)) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in shown) for i in range(len(header))]
    for row in shown:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
