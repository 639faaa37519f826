"""Declare the endpoints of a module: method, path, policy, body, microversion, status."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blockstore.microversions import MINIMUM, Version
from blockstore.schemas.base import Schema

Function = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One method on one path, or one action of it."""

    function: Function
    policy: str
    body: type[Schema] | None
    since: Version
    status: int
    writes: bool
    frees: bool = False
    """It is accepted even if the disk of the database is full, because it frees storage or rows."""


class Routes:
    """Collects the endpoints of one module; ``api/__init__.py`` lists the modules."""

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], Endpoint | dict[str, Endpoint]] = {}

    def get(
        self, path: str, *, policy: str, since: Version = MINIMUM, status: int = 200, writes: bool = False
    ) -> Callable[[Function], Function]:
        """Declare a GET endpoint. Most only read; ``writes`` marks the few that change something."""
        return self._declare("GET", path, policy=policy, body=None, since=since, status=status, writes=writes)

    def post(
        self, path: str, *, policy: str, body: type[Schema], status: int = 202, since: Version = MINIMUM
    ) -> Callable[[Function], Function]:
        """Declare an endpoint that creates something."""
        return self._declare("POST", path, policy=policy, body=body, since=since, status=status, writes=True)

    def put(
        self,
        path: str,
        *,
        policy: str,
        body: type[Schema],
        status: int = 200,
        since: Version = MINIMUM,
        writes: bool = True,
    ) -> Callable[[Function], Function]:
        """Declare an endpoint that changes something."""
        return self._declare("PUT", path, policy=policy, body=body, since=since, status=status, writes=writes)

    def delete(
        self, path: str, *, policy: str, status: int = 202, since: Version = MINIMUM
    ) -> Callable[[Function], Function]:
        """Declare an endpoint that removes something."""
        return self._declare(
            "DELETE", path, policy=policy, body=None, since=since, status=status, writes=True, frees=True
        )

    def action(
        self,
        path: str,
        name: str,
        *,
        policy: str,
        body: type[Schema],
        status: int = 202,
        since: Version = MINIMUM,
        frees: bool = False,
    ) -> Callable[[Function], Function]:
        """Declare an action: POST with a body whose one key is the action's name."""

        def declare(function: Function) -> Function:
            actions = self.routes.setdefault(("POST", path), {})
            assert isinstance(actions, dict)
            actions[name] = Endpoint(
                function=function, policy=policy, body=body, since=since, status=status, writes=True, frees=frees
            )
            return function

        return declare

    def _declare(self, method: str, path: str, **facts: Any) -> Callable[[Function], Function]:
        def declare(function: Function) -> Function:
            assert (method, path) not in self.routes, f"{method} {path} is declared twice"
            self.routes[(method, path)] = Endpoint(function=function, **facts)
            return function

        return declare


def merged(tables: tuple[Routes, ...]) -> dict[tuple[str, str], Endpoint | dict[str, Endpoint]]:
    """Return all routes; the actions on one path may come from several modules."""
    routes: dict[tuple[str, str], Endpoint | dict[str, Endpoint]] = {}
    for table in tables:
        for place, target in table.routes.items():
            present = routes.get(place)
            if isinstance(present, dict) and isinstance(target, dict):
                assert not present.keys() & target.keys(), f"{place}: an action is declared twice"
                target = {**present, **target}
            else:
                assert present is None, f"{place} is declared twice"
            routes[place] = target
    return routes
