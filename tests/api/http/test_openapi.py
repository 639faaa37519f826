"""The API's own document: it is valid, it is complete, and what the service does is what it says."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from openapi_spec_validator import validate
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks

from blockstore.api import ROUTE_TABLES
from blockstore.app.service import Service
from tests import sampling
from tests.api.conftest import SharedService
from tests.conftest import make_config

EXAMPLES = sampling.effort(15, 45)
"""Requests that are generated for each operation; fewer where there are not so many different ones."""
VERSIONS = ("3.0", "3.43", "3.71")
"""Each is sent at these, because making one up takes far longer than answering it."""
LEAST = sampling.effort(7_000, 20_000)
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]
HARMFUL = {("PUT", "/v3/os-services/set-log")}
"""Not sent: the log levels of the test's own process would change."""
sent: Counter[str] = Counter()


def document(shared_service: SharedService) -> Any:
    answer = shared_service.admin()("GET", "/volumes")
    assert answer.status == 200
    got = shared_service.service.app.test_client().get("/openapi.json")
    assert (got.status_code, got.mimetype) == (200, "application/json")
    return json.loads(got.data)


def test_the_document_is_valid(sqlite_service: SharedService) -> None:
    validate(document(sqlite_service))


def test_every_route_is_in_it(sqlite_service: SharedService) -> None:
    told = {(method.upper(), path) for path, item in document(sqlite_service)["paths"].items() for method in item}
    routed = {
        (method, "/v3" + re.sub(r"<(\w+)>", r"{\1}", path)) for table in ROUTE_TABLES for method, path in table.routes
    }
    assert told == routed


def test_bodies_say_what_the_schemas_say(sqlite_service: SharedService) -> None:
    schemas = document(sqlite_service)["components"]["schemas"]
    volume = schemas["volumes_NewVolumeBody"]["properties"]
    assert volume["name"] == {"anyOf": [{"type": "string", "minLength": 0, "maxLength": 255}, {"type": "null"}]}
    assert volume["backup_id"]["x-openstack"] == {"min-ver": "3.47"}
    assert schemas["volumes_CreateVolumeBody"]["required"] == ["volume"]


# --- schemathesis ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(make_config(tmp_path_factory.mktemp("openapi") / "state"))
    service.start()
    yield service
    service.stop()


@pytest.mark.slow
def test_generated_requests_are_answered_as_the_document_says(served: Service, tmp_path: Path) -> None:
    """Many thousand requests, right and wrong ones: no 5xx but 501, and every reply as it is told."""
    schema = schemathesis.openapi.from_wsgi("/openapi.json", served.app)
    failures = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if (operation.method.upper(), operation.path) in HARMFUL:
            continue
        try:
            _exercise(operation)
        except (
            Exception,
            BaseExceptionGroup,
        ) as exc:  # every operation is tried, and all that is wrong is told at once
            failures.append(f"{operation.method.upper()} {operation.path}: {exc}")
        served.bus.wait_idle(60)
    assert failures == [], "\n\n".join(failures)
    print(f"{sent.total()} requests")
    assert sent.total() >= LEAST


def _exercise(operation: Any) -> None:
    strategy = hypothesis.strategies.one_of(
        operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE),
        operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE),
    )

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(case=strategy)
    def send(case: Any) -> None:
        for version in VERSIONS:
            sent[operation.path] += 1
            response = case.call(headers={"OpenStack-API-Version": f"volume {version}"})
            if response.status_code != 501:
                case.validate_response(response, checks=CHECKS)

    send()
