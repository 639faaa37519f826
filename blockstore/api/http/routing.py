"""The routes of resources: one rule for each method and path.

A path may name a project and may end with ``.json``. Both are removed before the rule is looked up: with a rule for
each of the four forms, the URL map took 4 MiB more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.routing import Map, Rule
from werkzeug.routing.converters import DEFAULT_CONVERTERS

from blockstore.api.http import paths

ROOT = "/v3"

Match = tuple[Rule, dict[str, Any]]


class MatchOnlyRule(Rule):
    """A routing rule that matches paths and cannot build them.

    For each rule, Werkzeug compiles two functions that build its URL. This is nine tenths of the work of making a map.
    Nothing here calls ``url_for``: ``blockstore.api.http.links`` makes the links of replies.
    """

    def _compile_builder(self, append_unknown: bool = True) -> Callable[..., NoReturn]:
        return _build_nothing


def _build_nothing(*_args: Any, **_values: Any) -> NoReturn:
    raise NotImplementedError("This application matches URLs and builds none.")


class Resources:
    """Finds the rule of a resource."""

    def __init__(self) -> None:
        self._map = Map(converters={**DEFAULT_CONVERTERS, "key": paths.KeyConverter}, merge_slashes=False)
        self._names: set[str] = set()
        """The first segments of all paths."""

    def add(self, method: str, path: str, endpoint: str) -> None:
        """Add the route of an endpoint; ``path`` is below /v3."""
        rule = path.replace(paths.KEY, "/<key:key>") if path.endswith(paths.KEY) else path
        self._map.add(MatchOnlyRule(rule, endpoint=endpoint, methods=[method]))
        self._names.add(path.split("/")[1])

    def match(self, method: str, path: str) -> Match | None:
        """Return the rule of a path and the values in the path, the project first. Return None if no rule matches."""
        if not path.startswith(f"{ROOT}/"):
            return None
        resource = path.removeprefix(ROOT)
        if found := self._match(method, resource):
            return found
        project, _, below = resource[1:].partition("/")
        if paths.ACCOUNT_ID.fullmatch(project) and (found := self._match(method, f"/{below}")):
            rule, values = found
            return rule, {"project_id": project, **values}
        return None

    def _match(self, method: str, path: str) -> Match | None:
        if path.split("/", 2)[1].removesuffix(paths.SUFFIX) not in self._names:
            return None
        adapter = self._map.bind("", "/", None, "http", method)
        if path.endswith(paths.SUFFIX):
            found = _matched(adapter, path.removesuffix(paths.SUFFIX))
            if found is not None and "key" not in found[0].arguments:  # in a key, .json is part of the key
                return found
        return _matched(adapter, path)


def _matched(adapter: Any, path: str) -> Match | None:
    try:
        rule, values = adapter.match(path, return_rule=True)
    except (NotFound, MethodNotAllowed):
        return None
    return rule, values
