"""A site's own policies: oslo.policy, with the defaults of ``policy/rules.py`` and the overrides of one YAML file.

Imported only if there is such a file. The defaults decide as ``policy/rules.py`` does; a test compares the two.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from blockstore.context import RequestContext
from blockstore.errors import ConfigError, ServiceUnavailable, is_out_of_files
from blockstore.log_limiter import LogLimiter
from blockstore.policy.rules import IMPLIED, RULES, Level
from blockstore.trusted_paths import weak_place

log = logging.getLogger(__name__)
log_limiter = LogLimiter(log)

REMOTE_TIMEOUT_S = 2.0
"""Longest wait for the server of an ``http:`` rule, which may block the only answering thread."""

HELPERS = {
    "context_is_admin": "role:admin",
    "admin_api": "is_admin:True or (role:admin and is_admin_project:True)",
    "admin_or_owner": "is_admin:True or (role:admin and is_admin_project:True) or project_id:%(project_id)s",
    "xena_system_admin_or_project_reader": "rule:context_is_admin or (role:reader and project_id:%(project_id)s)",
    "xena_system_admin_or_project_member": "rule:context_is_admin or (role:member and project_id:%(project_id)s)",
}
CHECKS = {
    Level.ANYONE: "",
    Level.READER: "rule:xena_system_admin_or_project_reader",
    Level.MEMBER: "rule:xena_system_admin_or_project_member",
    Level.ADMIN: "rule:admin_api",
}
CREATES_CONTEXT = "context_is_admin"


class PolicyFile:
    """The policies of one file, as it was read."""

    def __init__(self, file: Path) -> None:
        """Read a file. Raise ConfigError with the file and the rule if it cannot be used."""
        try:
            from oslo_config import cfg
            from oslo_policy import policy
        except ImportError as exc:
            raise ConfigError(
                f"{file}: policies of your own need oslo.policy: pip install 'blockstore[policy]'"
            ) from exc
        conf = cfg.ConfigOpts()
        conf([], project="blockstore", default_config_files=[], default_config_dirs=[])
        # With use_conf it would read files itself: by the path, within a request, and it would look for others.
        self._enforcer: Any = policy.Enforcer(conf, use_conf=False)
        conf.set_override("remote_timeout", REMOTE_TIMEOUT_S, group="oslo_policy")
        defaults = {**HELPERS, **{rule: CHECKS[level] for rule, level in RULES.items()}}
        try:
            content = policy.parse_file_contents(_read(file))
            if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
                raise ConfigError("it must be a mapping from names of rules to checks")
            with _complaints() as complaints:
                rules = policy.Rules.from_dict({**defaults, **content})
                self._enforcer.set_rules(rules)
                self._enforcer.check_rules()  # otherwise a request would meet a cycle
            if complaints:
                raise ConfigError(complaints[0])
        except Exception as exc:  # oslo.policy, YAML and the file system each have their own errors
            why = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
            raise ConfigError(f"{file}: it cannot be used as a policy file: {' '.join(why.split())}") from None
        self.overridden = frozenset(content)
        self.asks_a_server = any("http" in str(check) for check in rules.values())
        for name in sorted(self.overridden - defaults.keys()):
            log.info("%s: this service has no rule %s; only other rules can use it", file, name)

    def check_of(self, rule: str) -> str:
        """Return the check in force for a rule, in oslo.policy's syntax."""
        return str(self._enforcer.rules[rule]) or "(anybody with a valid token)"

    def is_admin(self, roles: Collection[str], user_id: str, project_id: str) -> bool:
        """Return True if these roles make an administrator: the rule context_is_admin."""
        creds = {"roles": sorted(roles), "user_id": user_id, "project_id": project_id}
        return self._decide(CREATES_CONTEXT, {"project_id": project_id, "user_id": user_id}, creds)

    def allowed(self, ctx: RequestContext, rule: str) -> bool:
        """Return True if a caller satisfies a rule for resources of the caller's own project."""
        creds = {
            "roles": sorted(with_implied(ctx.roles)),
            "user_id": ctx.user_id,
            "project_id": ctx.project_id,
            "is_admin": ctx.is_admin,
            "is_admin_project": True,
        }
        return self._decide(rule, {"project_id": ctx.project_id, "user_id": ctx.user_id}, creds)

    def _decide(self, rule: str, target: dict[str, str], creds: dict[str, Any]) -> bool:
        """Return a rule's decision. Raise ServiceUnavailable if it cannot decide: its server does not answer."""
        try:
            return bool(self._enforcer.enforce(rule, target, creds))
        except Exception as exc:
            if is_out_of_files(exc):
                raise
            why = f"{type(exc).__name__}: {' '.join(str(exc).split())}"
            log_limiter.log(logging.ERROR, rule, "the policy rule %s cannot be evaluated: %s", rule, why)
            raise ServiceUnavailable.for_everybody(
                f"The policy rule {rule} could not be evaluated. Try again in a moment, or ask your administrator."
            ) from None


def _read(file: Path) -> bytes:
    """Return a file's content. Raise ConfigError if it is no plain file or others could change it. Raises OSError."""
    if reason := weak_place(file, {0, os.geteuid()}):
        raise ConfigError(f"others could change it: {reason}")
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a pipe could block for ever
    with os.fdopen(fd, "rb") as opened:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError("it is not a plain file")
        return opened.read()


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collect the rules that oslo.policy does not understand. It only logs them, some with a traceback."""
    found: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            found.append(record.getMessage())
        return False

    loggers = [logging.getLogger(f"oslo_policy.{name}") for name in ("_parser", "policy")]
    for logger in loggers:
        logger.addFilter(collect)
    try:
        yield found
    finally:
        for logger in loggers:
            logger.removeFilter(collect)


def with_implied(roles: Collection[str]) -> frozenset[str]:
    """Return roles with the roles that they imply."""
    return frozenset(roles).union(*(IMPLIED.get(role, ()) for role in roles))
