"""Requests to the running service, as an administrator."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from blockstore import address
from blockstore.cli.database import open_accounts
from blockstore.config import Config, parse_listen
from blockstore.errors import BlockstoreError


def admin_client(config: Config) -> Callable[..., Any]:
    """Return a client of the running service with an administrator's rights."""
    from blockstore.cli.local_client import LocalClient

    service = config.service
    url = address.recorded_url(config.state_dir)
    if url is None:
        raise BlockstoreError(
            f"No service has used {config.state_dir} yet. Start `blockstore serve`, or give this command the same"
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
    """Return a token for one command, or None without authentication. The caller can write the database anyway."""
    import os

    if config.service.auth == "none":
        return None
    if config.service.auth == "keystone":
        if not os.environ.get("OS_TOKEN"):
            raise BlockstoreError(
                "The users are in Keystone. Give this command a token: export OS_TOKEN=$(openstack token issue -f"
                " value -c id)"
            )
        return os.environ["OS_TOKEN"]
    from blockstore.db.models import now
    from blockstore.identity import accounts, tokens

    with open_accounts(config) as session:
        return tokens.issue(
            session,
            user_id=accounts.ADMIN,
            scope=accounts.PROJECT,
            scope_id=accounts.ADMIN,
            methods=["password"],
            most=config.identity.tokens_per_user,
            expires_at=now() + datetime.timedelta(seconds=config.service.attach_timeout_s * 2 + 60),
        )
