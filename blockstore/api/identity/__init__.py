"""Identity v3 over HTTP, with ``auth = builtin``: what clients need of a Keystone, on ``blockstore.identity``.

``DESKS`` is its contents page; ``door.py`` is what happens around every function of it.
"""

from __future__ import annotations

from flask import Blueprint

from blockstore.api.identity import (
    assignments,
    catalog,
    credentials,
    domains,
    door,
    projects,
    roles,
    tokens,
    users,
    versions,
)
from blockstore.api.identity.door import Desk, answer

DESKS: tuple[Desk, ...] = (
    versions.desk,
    tokens.desk,
    catalog.desk,
    domains.desk,
    projects.desk,
    users.desk,
    credentials.desk,
    roles.desk,
    assignments.desk,
)


def blueprint() -> Blueprint:
    """Return the routes of the Identity API."""
    routes = Blueprint("identity", __name__)
    for desk in DESKS:
        for (method, path), service in desk.services.items():
            routes.add_url_rule(
                path,
                f"{method} {path}",
                answer(service),
                methods=[method],
                strict_slashes=False,
                provide_automatic_options=False,
            )
    return routes


__all__ = ["DESKS", "blueprint", "door"]
