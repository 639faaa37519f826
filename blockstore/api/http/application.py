"""Flask without features that this API never uses and that cost time in each request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from flask import Flask, Request
from flask.sessions import SessionInterface, SessionMixin
from werkzeug.routing import MapAdapter

from blockstore.api.http.routing import MatchOnlyRule, Resources


class Application(Flask):
    """The Flask application: it routes by method and path alone, and keeps no browser sessions."""

    url_rule_class = MatchOnlyRule

    def __init__(self, name: str) -> None:
        """Create the application without static files."""
        super().__init__(name, static_folder=None)
        self.session_interface = _NoSessions()
        self.resources = Resources()

    def add_resource(self, method: str, path: str, view: Callable[..., Any]) -> None:
        """Route one method of a path below /v3 to a view, with and without a project in front of the path."""
        name = f"{method} {path}"
        self.view_functions[name] = view
        self.resources.add(method, path, name)

    def raise_routing_exception(self, request: Request) -> NoReturn:
        """Raise the routing error. The request drops it, because the error refers back to the request."""
        found, request.routing_exception = request.routing_exception, None
        assert found is not None
        try:
            raise found
        finally:
            del found

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Return the adapter that finds a request's endpoint. It ignores hosts; ``blockstore.address`` checks them."""
        if request is None:
            return None
        adapter = _Adapter(self.url_map, "", "/", "", "http", request.path, request.method)
        adapter.resources = self.resources
        return adapter


class _Adapter(MapAdapter):
    """Finds a rule: first among the rules of the resources, then among Flask's."""

    resources: Resources

    def match(self, *args: Any, **options: Any) -> Any:
        """Return the rule of a request and the values in its path. Raises NotFound and others, as Werkzeug does."""
        return self.resources.match(self.default_method, self.path_info) or super().match(*args, **options)


class _NoSessions(SessionInterface):
    """Empty sessions."""

    _NULL = SessionInterface.null_session_class()

    def open_session(self, app: Flask, request: Request) -> SessionMixin:
        """Return the null session. All requests share it, because it cannot be written."""
        return self._NULL
