"""``auth = keystone``: keystonemiddleware in front of the application asks a real Keystone about each token.

This module is imported only with ``auth = keystone``. The middleware removes its own headers from callers' requests.
While a request waits for Keystone, another thread answers. The number of waiting requests is limited for each project
and for strangers. A stranger's token was not found valid lately.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from blockstore.address import network_of
from blockstore.api.http.authentication import KEYSTONE_AWAY
from blockstore.api.http.waiting import ThreadReserve
from blockstore.config import KeystoneConfig
from blockstore.errors import ConfigError
from blockstore.repeats import Repeats

try:
    from keystoneauth1.exceptions import ConnectFailure, DiscoveryFailure, RequestTimeout
    from keystonemiddleware.auth_token import AuthProtocol, InvalidToken, ServiceError
except ImportError as exc:
    raise ConfigError("auth = keystone needs keystonemiddleware: pip install 'blockstore[keystone]'") from exc

repeats = Repeats(logging.getLogger(__name__))
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of each connection that it discards

NEEDED = ("auth_url", "username", "password", "project_name")
ANSWER_S = 10
"""Seconds within which Keystone must accept a connection, and answer; each request is tried twice."""
STRANGERS, STRANGERS_OF_ONE = 64, 32
"""Strangers' requests that may wait for Keystone at once: in total, and from one address."""
AWAY = "Keystone does not answer. Try again later."
CROWDED = "Too many requests with unknown tokens wait for Keystone. Try again later."


class Strangers:
    """Counts the requests of strangers that wait for Keystone."""

    def __init__(self, thread_reserve: ThreadReserve) -> None:
        self._waiting_room = thread_reserve
        self._waiting: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def entered(self, address: str) -> Iterator[bool]:
        """Let another thread answer meanwhile. Yield False if there is no place, like ``ThreadReserve.entered``."""
        with self._lock:
            has_place = self._waiting.total() < STRANGERS and self._waiting[address] < STRANGERS_OF_ONE
            if has_place:
                self._waiting[address] += 1
        if not has_place:
            yield False
            return
        try:
            with self._waiting_room.lent():
                yield True
        finally:
            with self._lock:
                self._waiting[address] -= 1
                self._waiting = +self._waiting  # drops addresses without waiting requests


class Away(Exception):
    """Keystone was not asked, or gave no answer."""


class Guard(AuthProtocol):  # type: ignore[misc]
    """keystonemiddleware that tells the application if Keystone is away; the original would call the token invalid."""

    def __init__(
        self,
        application: Any,
        settings: Mapping[str, Any],
        project_of: Callable[[Mapping[str, str]], str],
        thread_reserve: ThreadReserve,
    ) -> None:
        """``project_of`` returns the project for a request's headers if the token was found valid lately."""
        super().__init__(application, settings)
        self._project_of, self._waiting_room = project_of, thread_reserve
        self._strangers = Strangers(thread_reserve)
        self._asking = threading.local()

    def process_request(self, request: Any) -> Any:
        """Check the tokens of a request with Keystone, and write the caller's identity into its headers."""
        self._asking.environ = request.environ
        try:
            return super().process_request(request)
        except Away as exc:
            request.environ[KEYSTONE_AWAY] = str(exc)
            return None

    def fetch_token(self, token: str, **kwargs: Any) -> Any:
        """Return the data of a token, from the cache or from Keystone. Raises Away and InvalidToken."""
        with self._place() as has_place:
            if not has_place:
                raise Away(CROWDED)
            try:
                return super().fetch_token(token, **kwargs)
            except InvalidToken as exc:
                if isinstance(exc.__context__, ConnectFailure | DiscoveryFailure | RequestTimeout | ServiceError):
                    raise Away(AWAY) from exc
                raise
            except Exception as exc:  # Keystone was too slow, or another service answers at its address
                repeats.log(logging.ERROR, AWAY, "Keystone did not say whether a token is good: %r", exc)
                raise Away(AWAY) from exc

    def _place(self) -> AbstractContextManager[bool]:
        environ = self._asking.environ
        project = self._project_of({"x-auth-token": environ.get("HTTP_X_AUTH_TOKEN", "")})
        if project:
            return self._waiting_room.entered(project)
        return self._strangers.entered(network_of(environ["REMOTE_ADDR"]))


def guard(
    application: Any,
    config: KeystoneConfig,
    source: str,
    project_of: Callable[[Mapping[str, str]], str],
    thread_reserve: ThreadReserve,
) -> Guard:
    """Return the WSGI application behind the middleware. Raises ConfigError."""
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
        "http_connect_timeout": ANSWER_S,
        "http_request_max_retries": 1,
        "service_token_roles": config.service_token_roles,
        "service_token_roles_required": True,
        "delay_auth_decision": True,  # the service itself refuses requests: / and /healthcheck need no token
        "token_cache_time": config.token_cache_s,
        "include_service_catalog": False,
    }
    if config.memcached_servers:
        settings["memcached_servers"] = config.memcached_servers
    if config.region_name:
        settings["region_name"] = config.region_name
    given = {name: value for name, value in settings.items() if value is not None}
    return Guard(application, given, project_of, thread_reserve)
