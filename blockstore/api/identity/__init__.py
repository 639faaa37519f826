"""The Identity API v3 of ``auth = builtin``: the parts of Keystone that clients need, on ``blockstore.identity``.

``IDENTITY_ROUTES`` lists its route tables; ``endpoint.py`` is the pipeline around every function.
"""

from __future__ import annotations

from flask import Blueprint

from blockstore.api.identity import (
    assignments,
    catalog,
    credentials,
    domains,
    endpoint,
    projects,
    roles,
    tokens,
    users,
    versions,
)
from blockstore.api.identity.endpoint import IdentityRoutes, answer

IDENTITY_ROUTES: tuple[IdentityRoutes, ...] = (
    versions.routes,
    tokens.routes,
    catalog.routes,
    domains.routes,
    projects.routes,
    users.routes,
    credentials.routes,
    roles.routes,
    assignments.routes,
)


def blueprint() -> Blueprint:
    """Return the routes of the Identity API."""
    routes = Blueprint("identity", __name__)
    for table in IDENTITY_ROUTES:
        for (method, path), service in table.services.items():
            routes.add_url_rule(
                path,
                f"{method} {path}",
                answer(service),
                methods=[method],
                strict_slashes=False,
                provide_automatic_options=False,
            )
    return routes


__all__ = ["IDENTITY_ROUTES", "blueprint", "endpoint"]
