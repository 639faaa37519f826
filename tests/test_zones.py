"""Availability zones: each way in which a request, a type, a source and the configuration can name one."""

from __future__ import annotations

import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockstore.config import Config, ServiceConfig
from blockstore.errors import BadRequest
from blockstore.zones import SPEC, warn_of_empty_default, zone_of_new, zones_by_backend, zones_of
from tests.conftest import Served, backend_section, make_config


def config(default: str, **zones: str) -> Config:
    """A configuration whose backends are in the given zones; an empty one is the default zone."""
    backends = tuple(
        backend_section(name, "memory", {"availability_zone": zone} if zone else {}) for name, zone in zones.items()
    )
    return make_config(Path("/nowhere"), backends=backends, service=ServiceConfig(availability_zone=default))


TWO = config("az1", a="", b="az2")
LOST = config("nova", a="az1", b="az2")


@pytest.mark.parametrize(
    ("of_type", "requested", "of_source", "zone"),
    [
        ("", None, None, "az1"),
        ("", "az2", None, "az2"),
        ("", None, "az2", "az2"),
        ("", "az2", "az2", "az2"),
        ("az2", None, None, "az2"),
        ("az2", "az2", None, "az2"),
        ("az2", None, "az2", "az2"),
        ("az1, az2", None, None, None),
        ("az1,az2", "az1", None, "az1"),
        ("az2,mars", None, None, "az2"),
        (" , ", None, None, "az1"),
    ],
)
def test_the_zone_of_a_new_volume(of_type: str, requested: str | None, of_source: str | None, zone: str | None) -> None:
    specs: dict[str, str | None] = {SPEC: of_type} if of_type else {}
    assert zone_of_new(TWO, specs, requested=requested, of_source=of_source, source="snapshot") == zone


@pytest.mark.parametrize(
    ("configured", "of_type", "requested", "of_source", "words"),
    [
        (TWO, "", "mars", None, "Availability zone 'mars' is invalid. Name one of az1, az2."),
        (TWO, "az2", "az1", None, "Availability zone 'az1' is invalid. Volume type is only supported in these"),
        (TWO, "az2", None, "az1", "Availability zone 'az1' is invalid. Volume type is only supported in these"),
        (
            TWO,
            "mars",
            None,
            None,
            "Volume type is only supported in these availability zones: mars. None of these zones has",
        ),
        (TWO, "mars", "az1", None, "Volume type is only supported in these availability zones: mars."),
        (TWO, "mars", "mars", None, "Volume type is only supported in these availability zones: mars."),
        (TWO, "", "az2", "az1", "Invalid input received: Volume must be in the same availability zone as the snapshot"),
        (TWO, "az2", "az2", "az1", "Volume must be in the same availability zone as the snapshot, az1."),
        (TWO, "", None, "gone", "Availability zone 'gone' is invalid. Name one of az1, az2."),
        (LOST, "", None, None, "Availability zone 'nova' is invalid. Name one of az1, az2."),
        (LOST, "", "nova", None, "Availability zone 'nova' is invalid. Name one of az1, az2."),
        (config("nova"), "", None, None, "No backend is configured"),
    ],
)
def test_a_zone_that_cannot_be(
    configured: Config, of_type: str, requested: str | None, of_source: str | None, words: str
) -> None:
    specs: dict[str, str | None] = {SPEC: of_type} if of_type else {}
    with pytest.raises(BadRequest) as refused:
        zone_of_new(configured, specs, requested=requested, of_source=of_source, source="snapshot")
    assert words in refused.value.message


def test_a_default_zone_without_a_backend_is_no_matter_to_who_names_one() -> None:
    assert zone_of_new(LOST, {}, requested="az2") == "az2"
    assert zone_of_new(LOST, {SPEC: "az1"}, requested=None) == "az1"
    assert zones_by_backend(LOST) == {"blockstore@a": "az1", "blockstore@b": "az2"}


@pytest.mark.parametrize(("configured", "warned"), [(LOST, True), (TWO, False)])
def test_a_default_zone_without_a_backend_is_warned_about(
    configured: Config, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_empty_default(configured)
    assert ("availability_zone is nova" in caplog.text and "az1, az2" in caplog.text) is warned


@pytest.mark.parametrize(("value", "zones"), [(None, ()), ("", ()), ("a", ("a",)), (" a ,b,", ("a", "b")), (",", ())])
def test_the_zones_of_a_type(value: Any, zones: tuple[str, ...]) -> None:
    assert zones_of({SPEC: value}) == zones


def test_the_start_tells_of_a_default_zone_without_a_backend(serve: Callable[..., Served]) -> None:
    served = serve("[backend:files]\nplugin = directory\navailability_zone = az1\n")
    assert "availability_zone is nova, and no backend is in that zone" in served.log.read_text()
    body = json.dumps({"volume": {"size": 1}}).encode()
    request = urllib.request.Request(f"{served.url}/volumes", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    message = json.load(refused.value)["badRequest"]["message"]
    assert (refused.value.code, message) == (400, "Availability zone 'nova' is invalid. Name one of az1.")
