"""Flask, without what this API never uses and each request pays for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from flask import Flask, Request
from flask.sessions import SessionInterface, SessionMixin
from werkzeug.routing import MapAdapter

from blockstore.api.http.routing import MatchOnlyRule, Resources


class Application(Flask):
    """The application: it routes by method and path alone, and keeps no sessions of browsers."""

    url_rule_class = MatchOnlyRule

    def __init__(self, name: str) -> None:
        """Make one without static files."""
        super().__init__(name, static_folder=None)
        self.session_interface = _NoSessions()
        self.resources = Resources()

    def add_resource(self, method: str, path: str, view: Callable[..., Any]) -> None:
        """Have a view answer one method of a path below /v3, with and without a project before it."""
        name = f"{method} {path}"
        self.view_functions[name] = view
        self.resources.add(method, path, name)

    def raise_routing_exception(self, request: Request) -> NoReturn:
        """Raise what the routing found wrong; the request keeps it no longer, for it refers to the request."""
        found, request.routing_exception = request.routing_exception, None
        assert found is not None
        try:
            raise found
        finally:
            del found

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Return what finds the endpoint of a request. Hosts play no part; ``blockstore.address`` looks at them."""
        if request is None:
            return None
        adapter = _Adapter(self.url_map, "", "/", "", "http", request.path, request.method)
        adapter.resources = self.resources
        return adapter


class _Adapter(MapAdapter):
    """Finds a rule among those of the resources, then among Flask's."""

    resources: Resources

    def match(self, *args: Any, **options: Any) -> Any:
        """Return the rule of a request and the values in its path. Raises NotFound and others, as Werkzeug does."""
        return self.resources.match(self.default_method, self.path_info) or super().match(*args, **options)


class _NoSessions(SessionInterface):
    """Sessions that hold nothing."""

    _NULL = SessionInterface.null_session_class()

    def open_session(self, app: Flask, request: Request) -> SessionMixin:
        """Return the session that all requests share, because nothing can be written into it."""
        return self._NULL
