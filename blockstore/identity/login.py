"""Exchanges a proof (password, token or application credential) for a token of the requested scope.

Callers who fail too often have to wait (``attempts.py``). A wrong name, a wrong password and a disabled user get the
same reply after the same time. The delays are the same too, because unknown names are counted like known ones.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from blockstore.address import network_of
from blockstore.config import IdentityConfig
from blockstore.db import reserve
from blockstore.db.models import ApplicationCredential, Domain, Project, User, now
from blockstore.db.session import Database
from blockstore.errors import Unauthorized
from blockstore.identity import accounts, passwords, tokens
from blockstore.identity.attempts import Attempts
from blockstore.identity.hashing import HashingPool

log = logging.getLogger(__name__)

REFUSED = "The name, the password, or the project is wrong, or is disabled."

LendThread = Callable[[], AbstractContextManager[Any]]


@dataclass(kw_only=True)
class _LoginProof:
    """The result of the proofs of one login."""

    user_id: str
    password_hash: str | None = None
    """The hash with which the password was compared."""
    credential: ApplicationCredential | None = None
    earlier: tokens.Caller | None = None
    """The caller of the token that was presented."""


class Login:
    """Issues tokens for logins."""

    def __init__(self, db: Database, config: IdentityConfig, lend_thread: LendThread) -> None:
        """``lend_thread`` is entered while a password is hashed, so that other requests are answered meanwhile."""
        self._db, self._config, self._lend_thread = db, config, lend_thread
        self._attempts = Attempts(config.login_failures, config.login_pause_s)
        self._pool = HashingPool()

    def close(self) -> None:
        """Refuse all waiting logins."""
        self._attempts.close()
        self._pool.close()

    def token(self, auth: Mapping[str, Any], address: str) -> str:
        """Return the text of a new token for the body ``auth``. Raises Unauthorized, TooManyRequests, Busy."""
        proved: _LoginProof | None = None
        methods = list(dict.fromkeys(auth["identity"]["methods"]))
        for method in methods:
            proof = auth["identity"].get(method)
            if proof is None:
                raise Unauthorized(f"identity.methods names {method}, and identity.{method} is missing.")
            found = self._PROOFS[method](self, proof, address)
            if proved is not None and proved.user_id != found.user_id:
                raise Unauthorized(REFUSED)
            proved = found
        assert proved is not None  # the schema asks for at least one method
        with reserve.usable(), self._db.write() as session:  # without a token, no user could delete anything
            self._still_true(session, proved)
            scope, scope_id = self._scope(session, auth.get("scope"), proved)
            expires_at = now() + datetime.timedelta(seconds=self._config.token_lifetime_s)
            if proved.earlier is not None:
                methods = list(dict.fromkeys([*proved.earlier.methods, *methods]))
                expires_at = min(expires_at, proved.earlier.expires_at)  # else a token could be renewed for ever
            if proved.credential is not None and proved.credential.expires_at is not None:
                expires_at = min(expires_at, proved.credential.expires_at)
            return tokens.issue(
                session,
                user_id=proved.user_id,
                scope=scope,
                scope_id=scope_id,
                methods=methods,
                expires_at=expires_at,
                most=self._config.tokens_per_user,
                credential_id=proved.credential.id if proved.credential else None,
            )

    def check_password(self, user_id: str, password: str, address: str) -> str:
        """Return the hash that a user's password matches. Raises Unauthorized, TooManyRequests, Busy."""
        proved = self._by_password({"user": {"id": user_id, "password": password}}, address)
        return proved.password_hash or ""

    def hashed(self, password: str, address: str, user_id: str) -> str:
        """Return the hash to store for a password or a secret. Raises Busy."""
        with self._lend_thread():
            return self._pool.run(
                lambda: passwords.hashed(password),
                address=network_of(address),
                account=f"user {user_id}",
                familiar=True,
            )

    # --- proofs --------------------------------------------------------------------------------------------

    def _by_password(self, proof: Mapping[str, Any], address: str) -> _LoginProof:
        who = proof["user"]
        with self._db.read() as session:
            user = _user(session, who)
            account = _account(session, who, user)
        self._compare(address, account, account, user.password_hash if user else None, who["password"])
        assert user is not None  # else no password would have matched
        return _LoginProof(user_id=user.id, password_hash=user.password_hash)

    def _by_token(self, proof: Mapping[str, Any], _address: str) -> _LoginProof:
        with self._db.read() as session:
            caller = tokens.check(session, proof["id"])
        if caller is None:
            raise Unauthorized("The token is not valid, or is no longer valid.")
        if caller.credential is not None:
            raise Unauthorized("A token from an application credential keeps its project; it cannot be exchanged.")
        return _LoginProof(user_id=caller.user.id, earlier=caller)

    def _by_application_credential(self, proof: Mapping[str, Any], address: str) -> _LoginProof:
        credential: ApplicationCredential | None = None
        with self._db.read() as session:
            if proof.get("id"):
                credential = session.get(ApplicationCredential, proof["id"])
            elif proof.get("user") and (user := _user(session, proof["user"])):
                statement = select(ApplicationCredential).where(
                    ApplicationCredential.user_id == user.id, ApplicationCredential.name == proof.get("name")
                )
                credential = session.scalars(statement).one_or_none()
            account = _credential_account(session, proof, credential)
        user_account = f"user {credential.user_id}" if credential else account
        self._compare(address, account, user_account, credential.secret_hash if credential else None, proof["secret"])
        assert credential is not None
        if credential.expires_at is not None and credential.expires_at <= now():
            raise Unauthorized(f"The application credential {credential.id} has expired.")
        return _LoginProof(user_id=credential.user_id, credential=credential)

    _PROOFS: Mapping[str, Callable[[Login, Mapping[str, Any], str], _LoginProof]] = {
        "password": _by_password,
        "token": _by_token,
        "application_credential": _by_application_credential,
    }

    def _compare(self, address: str, account: str, user_account: str, kept: str | None, password: str) -> None:
        """Raise Unauthorized unless a password is right.

        Attempts are counted by ``account``. Places in the hashing queue are counted by ``user_account``, which all
        credentials of one user share.
        """
        with self._lend_thread(), self._attempts.made(account, address) as attempt:
            attempt.right = self._pool.run(
                lambda: passwords.matches(kept, password),
                address=network_of(address),
                account=user_account,
                familiar=attempt.familiar,
                standing=attempt.standing,
            )
        if not attempt.right:
            log.warning("a login from %s failed", address)
            raise Unauthorized(REFUSED)

    # --- scope ---------------------------------------------------------------------------------------------

    def _still_true(self, session: Session, proved: _LoginProof) -> None:
        """Raise Unauthorized unless the proofs still hold, inside the transaction that makes the token."""
        found = session.get(User, proved.user_id)
        domain = accounts.hold(session, Domain, found.domain_id) if found is not None else None
        user = accounts.hold(session, User, proved.user_id)
        fits = user is not None and user.enabled and domain is not None and domain.enabled
        if fits and proved.password_hash is not None:
            fits = user is not None and user.password_hash == proved.password_hash
        if fits and proved.credential is not None:
            present = session.get(
                ApplicationCredential, proved.credential.id, with_for_update={"read": True}, populate_existing=True
            )
            fits = present is not None
        if fits and proved.earlier is not None:
            fits = tokens.is_there(session, proved.earlier.token_id)
        if not fits:
            raise Unauthorized(REFUSED)

    def _scope(self, session: Session, requested: Any, proved: _LoginProof) -> tuple[str, str]:
        user_id = proved.user_id
        if proved.credential is not None:
            if requested is not None:
                raise Unauthorized("An application credential is for one project; the request must name no scope.")
            scope, scope_id = accounts.PROJECT, proved.credential.project_id
        elif requested is None:
            home = session.get_one(User, user_id).default_project_id
            if not home or not _open(session, accounts.PROJECT, home) or not _has_role(session, user_id, home):
                return accounts.NO_SCOPE, ""
            return accounts.PROJECT, home
        elif requested == "unscoped" or "unscoped" in requested:
            return accounts.NO_SCOPE, ""
        elif "project" in requested:
            project = _project(session, requested["project"])
            scope, scope_id = accounts.PROJECT, project.id if project else ""
        elif "domain" in requested:
            domain = _domain(session, requested["domain"])
            scope, scope_id = accounts.DOMAIN, domain.id if domain else ""
        else:
            scope, scope_id = accounts.SYSTEM, accounts.ALL
        if not _open(session, scope, scope_id) or not accounts.roles_on(session, user_id, scope, scope_id, hold=True):
            raise Unauthorized(f"{REFUSED} Or the user has no role on the {scope}.")
        return scope, scope_id


def _has_role(session: Session, user_id: str, project_id: str) -> bool:
    return bool(accounts.roles_on(session, user_id, accounts.PROJECT, project_id, hold=True))


def _open(session: Session, scope: str, scope_id: str) -> bool:
    if scope == accounts.SYSTEM:
        return True
    domain_id: str | None = scope_id
    if scope == accounts.PROJECT:
        found = session.get(Project, scope_id)
        domain_id = found.domain_id if found is not None else None
    domain = accounts.hold(session, Domain, domain_id) if domain_id else None
    if scope == accounts.PROJECT and domain is not None:
        project = accounts.hold(session, Project, scope_id)
        return project is not None and project.enabled and domain.enabled
    return domain is not None and domain.enabled


def _account(session: Session, who: Mapping[str, Any], user: User | None) -> str:
    """Return the key by which the attempts at a user's password are counted.

    The key is made only of the fields by which ``_user`` finds a user. So all bodies that mean the same user share one
    count, whether or not the user exists.
    """
    if user is not None:
        return f"user {user.id}"
    if who.get("id"):
        return _digest("user", who["id"])
    ref = who.get("domain") or {}
    domain = _domain(session, ref)
    where = domain.id if domain else ref.get("id") or ref.get("name")
    return _digest("user", where, who.get("name"))


def _credential_account(session: Session, proof: Mapping[str, Any], credential: ApplicationCredential | None) -> str:
    """Return the key by which the attempts at the secret of an application credential are counted."""
    if credential is not None:
        return f"credential {credential.id}"
    if proof.get("id"):
        return _digest("credential", proof["id"])
    who = proof.get("user") or {}
    return _digest("credential", _account(session, who, _user(session, who)), proof.get("name"))


def _digest(*words: Any) -> str:
    """Return a digest, of bounded size, of values from the caller."""
    return hashlib.sha256(repr(words).encode("utf-8", "surrogatepass")).hexdigest()


def _domain(session: Session, ref: Mapping[str, Any] | None) -> Domain | None:
    if ref is None:
        return None
    if ref.get("id"):
        return session.get(Domain, ref["id"])
    return accounts.by_name(session, Domain, ref.get("name") or "")


def _user(session: Session, ref: Mapping[str, Any]) -> User | None:
    if ref.get("id"):
        return session.get(User, ref["id"])
    domain = _domain(session, ref.get("domain"))
    return None if domain is None else accounts.by_name(session, User, ref.get("name") or "", domain.id)


def _project(session: Session, ref: Mapping[str, Any]) -> Project | None:
    if ref.get("id"):
        return session.get(Project, ref["id"])
    domain = _domain(session, ref.get("domain"))
    return None if domain is None else accounts.by_name(session, Project, ref.get("name") or "", domain.id)
