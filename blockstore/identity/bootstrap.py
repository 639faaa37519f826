"""The first start: a domain, two projects, the roles, and an administrator with a random password in a 0600 file."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.orm import Session

from blockstore import private_files
from blockstore.db.models import Domain, Project, Role, User
from blockstore.db.session import Database, insert_if_absent
from blockstore.errors import ConfigError
from blockstore.identity import accounts, passwords

log = logging.getLogger(__name__)

PASSWORD_FILE = "admin-password"  # noqa: S105 - a file name
ROLES = {
    "admin": "Everything, in every project",
    "member": "Use and change what a project has",
    "reader": "Look at what a project has",
    "service": "Another service of the cloud, speaking for a user",
}


class FirstPassword:
    """The administrator's random password, whose hash is computed by a thread while a start makes its database."""

    def __init__(self) -> None:
        """Begin to compute the hash."""
        self.text = secrets.token_urlsafe(18)
        self._hash = ""
        self._thread = threading.Thread(target=self._compute, name="first-password", daemon=True)
        self._thread.start()

    @property
    def hash(self) -> str:
        """Return the hash to store, when it is computed."""
        self._thread.join()
        return self._hash or passwords.hashed(self.text)

    def _compute(self) -> None:
        self._hash = passwords.hashed(self.text)


def ensure_admin(session: Session, state_dir: Path, password: FirstPassword | None = None) -> bool:
    """Make the accounts of the first start; return True if the administrator is new. Raises ConfigError.

    ``password`` is the one of a new administrator, if a start has prepared it.
    """
    if session.get(User, accounts.ADMIN) is not None:
        return False
    insert_if_absent(session, Domain, id=accounts.DEFAULT_DOMAIN, name="Default", description="", enabled=True)
    for name in (accounts.ADMIN, "service"):
        insert_if_absent(
            session, Project, id=name, name=name, domain_id=accounts.DEFAULT_DOMAIN, description="", enabled=True
        )
    for name, description in ROLES.items():
        insert_if_absent(session, Role, id=name, name=name, description=description)
    password = password or FirstPassword()
    write_password(state_dir, password.text)
    session.add(
        User(
            id=accounts.ADMIN,
            name=accounts.ADMIN,
            domain_id=accounts.DEFAULT_DOMAIN,
            default_project_id=accounts.ADMIN,
            password_hash=password.hash,
        )
    )
    session.flush()
    for scope, scope_id in ((accounts.PROJECT, accounts.ADMIN), (accounts.SYSTEM, accounts.ALL)):
        accounts.grant(session, accounts.ADMIN, scope, scope_id, "admin")
    return True


def write_password(state_dir: Path, password: str) -> None:
    """Store the administrator's password for ``blockstore openrc``, atomically. Raises ConfigError."""
    with private_files.explained(state_dir, "which keeps the administrator's password"):
        private_files.write(state_dir / PASSWORD_FILE, f"{password}\n".encode())


def forget_password(state_dir: Path, password: str) -> None:
    """Remove the file of the administrator's first password, unless ``password``, the new one, is the same."""
    _forget(state_dir, lambda first: first != password)


def forget_former_password(db: Database, state_dir: Path) -> None:
    """Remove that file if its password is no longer the administrator's, by whatever way it was changed."""
    with db.read() as session:
        user = session.get(User, accounts.ADMIN)
    if user is not None:
        _forget(state_dir, lambda first: not passwords.matches(user.password_hash, first))


def _forget(state_dir: Path, is_former: Callable[[str], bool]) -> None:
    path = state_dir / PASSWORD_FILE
    try:
        if is_former(private_files.read(path).decode(errors="replace").strip()):
            path.unlink()
            log.info("%s is removed: the password of admin was changed", path)
    except FileNotFoundError:
        pass
    except OSError as exc:
        log.warning("%s, which holds a former password of admin, cannot be removed: %s", path, exc.strerror)


def read_password(state_dir: Path) -> str:
    """Return the administrator's password. Raises ConfigError."""
    path = state_dir / PASSWORD_FILE
    with private_files.explained(state_dir):
        try:
            return private_files.read(private_files.prove_state_dir(state_dir) / PASSWORD_FILE).decode().strip()
        except FileNotFoundError:
            raise ConfigError(
                f"{path} does not exist: the first start writes it, and a change of admin's password removes it. Log"
                " in with the chosen password, or set a new one with `blockstore user password admin`."
            ) from None
