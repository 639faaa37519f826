"""A path leads where it would lead if each of its forms had a rule of its own."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter, Map, MapAdapter, Rule
from werkzeug.routing.converters import DEFAULT_CONVERTERS

from blockstore.api import ROUTE_TABLES, routed
from blockstore.api.http.paths import KEY, KeyConverter

APP: Any = routed(with_identity=True)
ROUTES = sorted({place for table in ROUTE_TABLES for place in table.routes})
WORDS = ("1", "detail", "volumes", "action", "a.b", "a.json", ".json", "json", "é", "a\n", "-", "", "x" * 65)
"""What may stand where a path has a name: also what other paths have as a word."""
BEFORE = ("", "/P", "/volumes", "/types", "/os-quota-sets", "/a.b", f"/{'x' * 64}", f"/{'x' * 65}", "/", "/P/P", "/P\n")
AFTER = ("", ".json", ".json.json", "/", "/.json", "\n", ".jsonx", "/x")


class ProjectConverter(BaseConverter):
    regex = r"[0-9A-Za-z_\-]{1,64}"


def every_form() -> Map:
    """Return a map with a rule for each form of each path: with and without project, with and without suffix."""
    made = Map(converters={**DEFAULT_CONVERTERS, "project": ProjectConverter, "key": KeyConverter}, merge_slashes=False)
    for method, path in ROUTES:
        for prefix in ("/v3/<project:project_id>", "/v3"):
            forms = (path.replace(KEY, "/<key:key>"),) if path.endswith(KEY) else (path, f"{path}.json")
            for form in forms:
                made.add(Rule(f"{prefix}{form}", endpoint=f"{method} {path}", methods=[method]))
    return made


def filled() -> Iterator[str]:
    """Yield paths below /v3, with words where they have names."""
    luck = random.Random(13)
    for path in sorted({path for _, path in ROUTES}):
        for _ in range(6 if "<" in path else 1):
            yield re.sub("<[^>]+>", lambda _name: luck.choice(WORDS), path)


def found(adapter: MapAdapter) -> tuple[str, dict[str, Any]] | None:
    try:
        rule, values = adapter.match(return_rule=True)
    except HTTPException:
        return None
    return str(rule.endpoint), dict(values)


def test_each_path_leads_where_a_rule_for_each_form_would_lead() -> None:
    reference = every_form()
    counts = {True: 0, False: 0}
    for path, before, after in itertools.product(filled(), BEFORE, AFTER):
        asked = f"/v3{before}{path}{after}"
        for method in ("GET", "POST"):
            request: Any = SimpleNamespace(path=asked, method=method)
            adapter = APP.create_url_adapter(request)
            expected = found(reference.bind("", "/", None, "http", method, asked))
            assert found(adapter) == expected, (method, asked)
            counts[expected is not None] += 1
    assert min(counts.values()) > 5000, counts


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_each_route_is_found_in_each_form(method: str, path: str) -> None:
    plain = re.sub("<[^>]+>", "1", path)
    for before, after in itertools.product(("", "/P"), ("",) if path.endswith(KEY) else ("", ".json")):
        request: Any = SimpleNamespace(path=f"/v3{before}{plain}{after}", method=method)
        adapter = APP.create_url_adapter(request)
        name, values = found(adapter) or ("", {})
        assert name == f"{method} {path}"
        assert values == {
            **({"project_id": "P"} if before else {}),
            **dict.fromkeys(re.findall("<([^>]+)>", path), "1"),
        }


def test_no_rule_builds_addresses() -> None:
    """The functions that would are most of the work of a start; a new Werkzeug may make them by another method."""
    for rules in (APP.url_map, APP.resources._map):
        assert len(list(rules.iter_rules())) > 10
        for rule in rules.iter_rules():
            with pytest.raises(NotImplementedError):
                rule.build(dict.fromkeys(rule.arguments, "x"))
