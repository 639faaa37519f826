"""Flask, without what this API never uses and each request pays for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from flask import Flask, Request
from flask.sessions import SessionInterface, SessionMixin
from werkzeug.routing import MapAdapter, Rule


class MatchOnlyRule(Rule):
    """A routing rule that matches paths and builds none.

    Werkzeug compiles two functions for each rule that build its URL; for 700 rules that is nine tenths of the time that
    the URL map takes. Nothing here calls ``url_for``: ``blockstore.api.links`` makes the links of replies.
    """

    def _compile_builder(self, append_unknown: bool = True) -> Callable[..., NoReturn]:
        return _build_nothing


def _build_nothing(*_args: Any, **_values: Any) -> NoReturn:
    raise NotImplementedError("This application matches URLs and builds none.")


class Application(Flask):
    """The application: it routes by method and path alone, and keeps no sessions of browsers."""

    url_rule_class = MatchOnlyRule

    def __init__(self, name: str) -> None:
        """Make one without static files."""
        super().__init__(name, static_folder=None)
        self.session_interface = _NoSessions()

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Return what finds the endpoint of a request. Hosts play no part; ``blockstore.address`` looks at them."""
        if request is None:
            return None
        return self.url_map.bind("", "/", None, "http", request.method, request.path)


class _NoSessions(SessionInterface):
    """Sessions that hold nothing."""

    _NULL = SessionInterface.null_session_class()

    def open_session(self, app: Flask, request: Request) -> SessionMixin:
        """Return the session that all requests share, because nothing can be written into it."""
        return self._NULL
