"""The HTTP component: it accepts or refuses requests, and never does storage work.

``ROUTE_TABLES`` lists its route tables. It enqueues an accepted request as operations; it calls no other component.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask

from blockstore import address
from blockstore.api import attachments, identity, images, resource_metadata, snapshots, unsupported
from blockstore.api.admin import (
    extensions,
    hosts,
    limits,
    messages,
    pools,
    quota_sets,
    resource_filters,
    services,
    versions,
)
from blockstore.api.http import body, call, faults, openapi, paths, pipeline
from blockstore.api.http.application import Application

# Two modules are renamed: in this file ``volumes`` and ``types`` name modules of this package.
from blockstore.api.types import default_types, encryption, qos_specs
from blockstore.api.types import types as volume_types
from blockstore.api.volumes import (
    actions,
    attach_actions,
    create,
    delete,
    image_metadata,
    manageable,
    migration,
    transfers,
)
from blockstore.api.volumes import volumes as volume_resources
from blockstore.config import parse_listen
from blockstore.db import reserve, wait_limits
from blockstore.db.health import Health
from blockstore.identity.login import Login

ROUTE_TABLES = (
    volume_resources.routes,
    create.routes,
    delete.routes,
    actions.routes,
    attach_actions.routes,
    manageable.routes,
    migration.routes,
    resource_metadata.routes,
    image_metadata.routes,
    snapshots.routes,
    attachments.routes,
    transfers.routes,
    volume_types.routes,
    encryption.routes,
    qos_specs.routes,
    default_types.routes,
    pools.routes,
    services.routes,
    hosts.routes,
    quota_sets.routes,
    limits.routes,
    messages.routes,
    resource_filters.routes,
    extensions.routes,
    unsupported.routes,
)


def create_app(core: call.Core, login: Login | None = None) -> Flask:
    """Return the WSGI application; with ``login``, it includes the Identity API."""
    return equipped(routed(with_identity=login is not None), core, login)


def routed(*, with_identity: bool = False) -> Flask:
    """Return an application with all routes, which is not connected to a ``Core`` yet."""
    app = Application("blockstore")
    app.config["MAX_CONTENT_LENGTH"] = body.MAX_BODY_BYTES
    app.url_map.merge_slashes = False  # merging would redirect; paths.Normalized merges without
    pipeline.mount(app, ROUTE_TABLES)
    app.register_blueprint(versions.blueprint)
    app.register_blueprint(images.blueprint)
    app.register_blueprint(openapi.blueprint(ROUTE_TABLES))
    if with_identity:
        app.register_blueprint(identity.blueprint())
    app.before_request(pipeline.before_request)
    app.after_request(pipeline.after_request)
    app.register_error_handler(Exception, faults.reply)
    return app


def equipped(app: Flask, core: call.Core, login: Login | None) -> Flask:
    """Connect an application to ``core`` and ``login``, and wrap it in the WSGI middleware."""
    app.extensions[call.CORE] = core
    app.extensions[versions.HEALTH] = Health(core.db, core.thread_reserve.waiting_place)
    if login is not None:
        app.extensions[identity.endpoint.LOGIN] = login
    service = core.config.service
    listen, _ = parse_listen(service.listen, "[service] listen")
    routes = (path for routes in ROUTE_TABLES for _, path in routes.routes)
    app.wsgi_app = address.AddressMiddleware(  # type: ignore[method-assign]
        paths.Normalized(_with_short_wait(app.wsgi_app, core.thread_reserve.waiting_place), routes),
        own_host=address.own_host(listen, service.tls_certificate, service.tls_key),
        public_endpoint=service.public_endpoint,
        trusted=address.parse_networks(service.trusted_proxies),
    )
    return app


def _with_short_wait(application: Callable[..., Any], lend_thread: wait_limits.LendThread) -> Callable[..., Any]:
    """Return the application with a short limit on a request's wait to write; another thread answers meanwhile."""

    def answer(environ: Any, start_response: Any) -> Any:
        with wait_limits.limited(wait_limits.REQUEST_S, lend_thread), reserve.usable(by=False):
            return application(environ, start_response)

    return answer
