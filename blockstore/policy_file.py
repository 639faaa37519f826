"""A site's own policies: oslo.policy, with the defaults of ``policies.py`` and the overrides of one YAML file.

Imported only where there is such a file. The defaults decide as ``policies.py`` does; a test compares the two.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from blockstore.context import RequestContext
from blockstore.errors import ConfigError
from blockstore.policies import IMPLIED, RULES, Level

log = logging.getLogger(__name__)

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
    """What one file says, as it was read."""

    def __init__(self, file: Path) -> None:
        """Read a file. Raises ConfigError naming it, and the rule that cannot be used."""
        try:
            from oslo_config import cfg
            from oslo_policy import policy
        except ImportError as exc:
            raise ConfigError(
                f"{file}: policies of your own need oslo.policy: pip install 'blockstore[policy]'"
            ) from exc
        conf = cfg.ConfigOpts()
        conf([], project="blockstore", default_config_files=[], default_config_dirs=[])
        self._enforcer: Any = policy.Enforcer(conf, policy_file=str(file))
        defaults = {**HELPERS, **{rule: CHECKS[level] for rule, level in RULES.items()}}
        for name, check in defaults.items():
            self._enforcer.register_default(policy.RuleDefault(name, check))
        try:
            self._enforcer.load_rules()
            # Not check_rules(), which only says that something is wrong; and a cycle would be met by a request.
            rules = self._enforcer.file_rules
            self._enforcer.check_rules(raise_on_violation=True)
        except Exception as exc:  # its parser, YAML's, and the file system each have errors of their own
            raise ConfigError(f"{file}: it cannot be used as a policy file: {' '.join(str(exc).split())}") from None
        self.overridden = frozenset(rules)
        for name in sorted(self.overridden - defaults.keys()):
            log.info("%s: the rule %s is not one of this service; only other rules can use it", file, name)

    def check_of(self, rule: str) -> str:
        """Return the check in force for a rule, in the words of oslo.policy."""
        return str(self._enforcer.rules[rule]) or "(anybody with a valid token)"

    def is_admin(self, roles: Collection[str], user_id: str, project_id: str) -> bool:
        """Say whether these roles make an administrator: the rule context_is_admin."""
        creds = {"roles": sorted(roles), "user_id": user_id, "project_id": project_id}
        return bool(self._enforcer.enforce(CREATES_CONTEXT, {"project_id": project_id, "user_id": user_id}, creds))

    def allowed(self, ctx: RequestContext, rule: str) -> bool:
        """Say whether a caller satisfies a rule, on what belongs to the caller's own project."""
        creds = {
            "roles": sorted(with_implied(ctx.roles)),
            "user_id": ctx.user_id,
            "project_id": ctx.project_id,
            "is_admin": ctx.is_admin,
            "is_admin_project": True,
        }
        return bool(self._enforcer.enforce(rule, {"project_id": ctx.project_id, "user_id": ctx.user_id}, creds))


def with_implied(roles: Collection[str]) -> frozenset[str]:
    """Return roles with those that come with them."""
    return frozenset(roles).union(*(IMPLIED.get(role, ()) for role in roles))
