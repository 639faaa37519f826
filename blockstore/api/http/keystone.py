"""With ``auth = keystone``: keystonemiddleware in front of the application, asking a real Keystone about each token.

Imported only then. What callers write into the headers that it sets is removed by it.
"""

from __future__ import annotations

from typing import Any

from blockstore.config import KeystoneConfig
from blockstore.errors import ConfigError

NEEDED = ("auth_url", "username", "password", "project_name")


def guard(application: Any, config: KeystoneConfig, source: str) -> Any:
    """Return the WSGI application behind the middleware. Raises ConfigError."""
    try:
        from keystonemiddleware.auth_token import AuthProtocol
    except ImportError as exc:
        raise ConfigError("auth = keystone needs keystonemiddleware: pip install 'blockstore[keystone]'") from exc
    for name in NEEDED:
        if not getattr(config, name):
            raise ConfigError(f"{source}: [keystone] {name} is missing; auth = keystone needs it.")
    settings = {
        "auth_type": "password",
        "auth_url": config.auth_url,
        "www_authenticate_uri": config.public_url or config.auth_url,
        "username": config.username,
        "password": config.password,
        "project_name": config.project_name,
        "user_domain_name": config.user_domain_name,
        "project_domain_name": config.project_domain_name,
        "interface": config.interface,
        "cafile": config.cafile or None,
        "insecure": False,
        "service_token_roles": config.service_token_roles,
        "service_token_roles_required": True,
        "delay_auth_decision": True,  # the service itself refuses, for / and /healthcheck ask nobody who they are
        "token_cache_time": config.token_cache_s,
        "include_service_catalog": False,
    }
    if config.memcached_servers:
        settings["memcached_servers"] = config.memcached_servers
    if config.region_name:
        settings["region_name"] = config.region_name
    return AuthProtocol(application, {name: value for name, value in settings.items() if value is not None})
