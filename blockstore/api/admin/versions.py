"""The version documents and the health check, which clients request before anything else."""

from __future__ import annotations

from typing import Any

import orjson
from flask import Blueprint, Response, current_app, g, redirect, request
from werkzeug.wrappers import Response as BaseResponse

from blockstore.address import base_url
from blockstore.api.http import pipeline
from blockstore.db.health import Health
from blockstore.microversions import MAXIMUM, MINIMUM

blueprint = Blueprint("versions", __name__)
HEALTH = "blockstore health"
"""Key of the ``Health`` in ``app.extensions``."""


READ_METHODS = ("GET", "HEAD", "OPTIONS")
"""compat: Cinder answers the version documents to every method. HAProxy's health check sends ``OPTIONS /``."""


@blueprint.route("/", methods=READ_METHODS, provide_automatic_options=False)
def discover() -> Response:
    """List the versions; no token is needed."""
    g.in_controller = True
    g.version_text = str(MINIMUM)
    return _document(300)


@blueprint.route("/v3/", methods=READ_METHODS, provide_automatic_options=False)
def show() -> Response:
    """List the versions; no token is needed.

    Cinder requires a token here. A client that takes this address for the identity service has no token yet, and would
    ask again and again.
    """
    g.in_controller = True
    pipeline.asked_microversion()
    return _document(200)


@blueprint.route("/v3", methods=READ_METHODS, strict_slashes=True, provide_automatic_options=False)
def slash() -> BaseResponse:
    """Redirect to the version document."""
    return redirect(f"{base_url(request.environ)}/v3/", code=302)


@blueprint.route("/healthcheck", methods=READ_METHODS, provide_automatic_options=False)
def healthcheck() -> Response:
    """Return OK if the database accepts writes, else 503 with the reason."""
    health: Health = current_app.extensions[HEALTH]
    complaint = health.complaint()
    if complaint is not None:
        return Response(complaint + "\n", status=503, mimetype="text/plain", headers={"Retry-After": "5"})
    return Response("OK", mimetype="text/plain")


def _document(status: int) -> Response:
    version: dict[str, Any] = {
        "id": "v3.0",
        "status": "CURRENT",
        "version": str(MAXIMUM),
        "min_version": str(MINIMUM),
        "updated": "2023-08-31T00:00:00Z",
        "links": [
            {"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/"},
            {"rel": "self", "href": f"{base_url(request.environ)}/v3/"},
        ],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.volume+json;version=3"}],
    }
    return Response(orjson.dumps({"versions": [version]}), status=status, mimetype="application/json")
