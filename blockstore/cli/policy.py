"""The command group policy: the policy rules in force."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from blockstore.cli.command import configured
from blockstore.cli.output import print_table
from blockstore.config import Config
from blockstore.errors import BlockstoreError


@click.group()
def policy() -> None:
    """Show the policy rules, and test them."""


@policy.command("list")
@configured
def policy_list(config: Config) -> None:
    """List the rules in force, and mark those that policy.yaml changes."""
    rules, changed = _policy_rules(config)
    print_table(
        ("RULE", "CHECK", "FROM"),
        [(rule, check, "policy file" if rule in changed else "default") for rule, check in rules.items()],
        empty="There are no rules.",
    )


@policy.command("check")
@configured
@click.argument("rule")
@click.option("--role", "roles", multiple=True, help="A role of the caller; can be given several times.")
@click.option("--user", "user_id", default="somebody", help="Id of the caller.")
@click.option("--project", "project_id", default="theirs", help="Id of the caller's project.")
def policy_check(config: Config, rule: str, roles: Sequence[str], user_id: str, project_id: str) -> None:
    """Explain whether a rule allows a caller with these roles. Exit status 1 means no."""
    from blockstore.app.wiring import load_policy, policy_file
    from blockstore.context import RequestContext
    from blockstore.policy.rules import IMPLIED, RULES

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
    click.echo(f"decision {'allowed' if allowed else 'refused: 403'} on resources of the caller's own project;")
    click.echo(f"         resources of other projects {'get the same decision' if ctx.is_admin else 'answer 404'}")
    sys.exit(0 if allowed else 1)


def _policy_rules(config: Config) -> tuple[dict[str, str], frozenset[str]]:
    from blockstore.app.wiring import policy_file
    from blockstore.policy.rules import RULES

    file = policy_file(config)
    if not file.exists():
        return {rule: level.value for rule, level in RULES.items()}, frozenset()
    from blockstore.policy.file import PolicyFile

    own = PolicyFile(file)
    return {rule: own.check_of(rule) for rule in RULES}, own.overridden
