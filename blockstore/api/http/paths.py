"""Paths of requests: projects and keys in paths, and repeated slashes.

Cinder reads ``//`` as ``/``, so clients that join addresses carelessly work with it.
Keys of metadata and extra specs may hold slashes, so a key is the whole rest of its path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.routing import BaseConverter

SLASHES = re.compile("//+")
SUFFIX = ".json"
KEY = "/<key>"
ACCOUNT_ID = re.compile(r"[0-9A-Za-z_\-]{1,64}")
"""The id of a project or user, in a path and in the headers of ``auth = none``."""


class KeyConverter(BaseConverter):
    """A key at the end of a path: everything to the end, slashes included."""

    part_isolating = False
    regex = ".+"

    def to_python(self, value: str) -> str:
        """Return the key. Some HTTP servers do not decode %2F; no key may contain a percent sign."""
        return value.replace("%2F", "/").replace("%2f", "/")


class Normalized:
    """WSGI middleware that merges repeated slashes in paths. Keys stay unchanged."""

    def __init__(self, application: Callable[..., Any], endpoint_paths: Iterable[str]) -> None:
        self._application = application
        parts = sorted({_pattern(path.removesuffix(KEY)) for path in endpoint_paths if path.endswith(KEY)})
        self._before_key = re.compile(rf"/+v3(?:/+[^/]+)?(?:{'|'.join(parts)})/(?=.)")

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ.get("PATH_INFO", "")
        if "//" in path:
            environ["PATH_INFO"] = self.normalized(path)
        return self._application(environ, start_response)

    def normalized(self, path: str) -> str:
        """Return a path with repeated slashes merged, except in a key."""
        found = self._before_key.match(path)
        if found is not None:
            return SLASHES.sub("/", found[0]) + path[found.end() :]
        return SLASHES.sub("/", path)  # compat: a slash at the end stays, and matches no route (Tempest tests it)


def _pattern(path: str) -> str:
    return re.sub("<[^>]+>", "[^/]+", path).replace("/", "/+").replace("[^/+]", "[^/]")
