"""``auth = keystone``: keystonemiddleware in front of the application asks a real Keystone about each token.

This module is imported only with ``auth = keystone``. The middleware removes its own headers from callers' requests.
While a request waits for Keystone, another thread answers. The number of waiting requests is limited for each project
and for strangers, who take turns. A stranger's token was not found valid lately.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import orjson

from blockstore.address import Network, client_of, network_of
from blockstore.api.http.authentication import KEYSTONE_AWAY
from blockstore.api.http.strangers import Strangers
from blockstore.api.http.waiting import ThreadReserve
from blockstore.config import KeystoneConfig
from blockstore.errors import ConfigError
from blockstore.log_limiter import LogLimiter

try:
    from keystoneauth1.exceptions import ConnectFailure, DiscoveryFailure, RequestTimeout
    from keystonemiddleware.auth_token import AuthProtocol, InvalidToken, ServiceError
except ImportError as exc:
    raise ConfigError("auth = keystone needs keystonemiddleware: pip install 'blockstore[keystone]'") from exc

log_limiter = LogLimiter(logging.getLogger(__name__))
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of each connection that it discards

NEEDED = ("auth_url", "username", "password", "project_name")
ANSWER_S = 10
"""Seconds within which Keystone must accept a connection, and answer; each request is tried twice."""
AWAY_S = 3
"""Seconds for which nothing is asked after this service could not log in."""
MOST_CACHED_BYTES, ENTRY_BYTES = 16 << 20, 512
"""Size of the cache, and what Python needs for each entry. Keystone says some 4 KiB of each token."""
MAX_TOKEN = 8 << 10
"""Characters of a token: more than any token provider of Keystone uses."""
AWAY = "Keystone does not answer. Try again later."
ODD = "Keystone's answer about the token cannot be read. Ask your administrator."
CROWDED = "Too many requests with unknown tokens are waiting for Keystone. Try again later."


class KeystoneAway(Exception):
    """Keystone was not asked, or gave no answer."""


class Cache:
    """Keystone's data of valid tokens, for some seconds. All threads share it; the middleware's cache is per thread."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._entries: OrderedDict[tuple[str, bool], tuple[float, bytes]] = OrderedDict()
        """The time until which an entry is valid, and the data as JSON, which takes a fifth of the space of objects."""
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[str, bool]) -> Any:
        """Return Keystone's data of a token; None if the cache has none."""
        until, data = self._entries.get(key, (0.0, b""))
        return orjson.loads(data) if time.monotonic() < until else None

    def put(self, key: tuple[str, bool], said: Any) -> None:
        """Keep Keystone's data of a valid token. The oldest entries go if there are too many bytes."""
        if self._seconds <= 0:
            return
        data, at = orjson.dumps(said), time.monotonic()
        with self._lock:
            self._remove(key)
            self._entries[key] = at + self._seconds, data
            self._bytes += _size(key, data)
            while self._bytes > MOST_CACHED_BYTES or self._oldest_until() <= at:
                self._remove(next(iter(self._entries)))

    def _oldest_until(self) -> float:
        return next(iter(self._entries.values()))[0] if self._entries else math.inf

    def _remove(self, key: tuple[str, bool]) -> None:
        if key in self._entries:
            self._bytes -= _size(key, self._entries.pop(key)[1])


def _size(key: tuple[str, bool], data: bytes) -> int:
    return len(key[0]) + len(data) + ENTRY_BYTES


class Guard(AuthProtocol):  # type: ignore[misc]
    """The middleware. It tells the application if Keystone is away; by itself it would call the token bad."""

    def __init__(
        self,
        application: Any,
        settings: Mapping[str, Any],
        cache: Cache,
        trusted: Sequence[Network],
        project_of: Callable[[Mapping[str, str]], str],
        thread_reserve: ThreadReserve,
    ) -> None:
        """``trusted``: the proxies that may name a client's address.

        ``project_of`` is asked for the project of a request whose token was good lately, by its headers.
        """
        super().__init__(application, settings)
        self._cache, self._trusted, self._project_of = cache, trusted, project_of
        self._thread_reserve = thread_reserve
        self._strangers = Strangers(thread_reserve, 2 * ANSWER_S)
        self._asking = threading.local()
        self._login, self._away_until = threading.Lock(), 0.0

    def process_request(self, request: Any) -> Any:
        """Ask about the tokens of a request, and write into its headers who the caller is."""
        self._asking.environ = request.environ
        try:
            answer = super().process_request(request)
            # The middleware sets headers to None that a token has no data for.
            headers = [value for name, value in request.environ.items() if name.startswith("HTTP_")]
            if not all(value is None or isinstance(value, str) for value in headers):
                raise TypeError("it contains something else than a text")
            return answer
        except KeystoneAway as exc:
            request.environ[KEYSTONE_AWAY] = str(exc)
            return None
        except Exception as exc:  # a valid token whose data lack what every token has
            log_limiter.log(logging.ERROR, ODD, "Keystone's data of a token cannot be read: %r", exc)
            request.environ[KEYSTONE_AWAY] = ODD
            return None
        finally:
            del self._asking.environ  # the thread must not keep the body of its last request

    def fetch_token(self, token: str, **kwargs: Any) -> Any:
        """Return Keystone's data of a token, cached or new. Raise KeystoneAway or InvalidToken if there is none."""
        key = token, bool(kwargs.get("allow_expired"))
        if (known := self._cache.get(key)) is not None:
            return known
        if len(token) > MAX_TOKEN:
            raise InvalidToken(f"A token has at most {MAX_TOKEN} characters.")
        with self._place() as has_place:
            if not has_place:
                raise KeystoneAway(CROWDED)
            try:
                self._log_in()
                data = super().fetch_token(token, **kwargs)
            except InvalidToken as exc:
                if isinstance(exc.__context__, ConnectFailure | DiscoveryFailure | RequestTimeout | ServiceError):
                    raise KeystoneAway(AWAY) from exc
                self._strangers.note_failure(self._client_network())
                raise
            except KeystoneAway:
                raise
            except Exception as exc:  # it was too slow, or something else answers at its address
                log_limiter.log(logging.ERROR, AWAY, "Keystone could not validate a token: %r", exc)
                raise KeystoneAway(AWAY) from exc
        self._cache.put(key, data)
        return data

    def _log_in(self) -> None:
        """Make sure that this service has its own token. Raise KeystoneAway if another thread waits too long for one.

        keystoneauth logs in for one thread after the other. A caller's data has no part in a login, so one failure
        answers all waiting threads.
        """
        if not self._login.acquire(timeout=2 * ANSWER_S):
            raise KeystoneAway(AWAY)
        try:
            if time.monotonic() < self._away_until:
                raise KeystoneAway(AWAY)
            try:
                self._session.get_token(self._auth)
            except Exception:
                self._away_until = time.monotonic() + AWAY_S
                raise
        finally:
            self._login.release()

    def _place(self) -> AbstractContextManager[bool]:
        environ = self._asking.environ
        project = self._project_of({"x-auth-token": environ.get("HTTP_X_AUTH_TOKEN", "")})
        if project:
            return self._thread_reserve.waiting_place(project)
        return self._strangers.waiting_place(self._client_network())

    def _client_network(self) -> str:
        environ = self._asking.environ
        client, _proxies = client_of(self._trusted, environ["REMOTE_ADDR"], environ.get("HTTP_X_FORWARDED_FOR", ""))
        return network_of(client)


def guard(
    application: Any,
    config: KeystoneConfig,
    source: str,
    trusted: Sequence[Network],
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
        "token_cache_time": config.token_cache_s if config.memcached_servers else -1,
        "include_service_catalog": False,
    }
    if config.memcached_servers:
        settings["memcached_servers"] = config.memcached_servers
    if config.region_name:
        settings["region_name"] = config.region_name
    given = {name: value for name, value in settings.items() if value is not None}
    return Guard(application, given, Cache(config.token_cache_s), trusted, project_of, thread_reserve)
