"""Filters and weighers are found by name, the built-in ones through the same door as a site's own."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from blockstore.errors import ConfigError
from blockstore.scheduler import filters, loading, weighers


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these entry points are installed."""

    def install(*triples: tuple[str, str, str]) -> None:
        points = EntryPoints(EntryPoint(name, value, group) for name, value, group in triples)
        monkeypatch.setattr(loading, "entry_points", lambda group: points.select(group=group))

    return install


def test_filters_come_in_the_order_asked_for():
    assert loading.load_filters(["CapacityFilter", "AvailabilityZoneFilter"]) == [
        ("CapacityFilter", filters.capacity),
        ("AvailabilityZoneFilter", filters.availability_zone),
    ]


def test_every_declared_name_loads():
    names = ["AvailabilityZoneFilter", "CapacityFilter", "CapabilitiesFilter", "DriverFilter"]
    assert len(loading.load_filters([*names, "SameBackendFilter", "DifferentBackendFilter"])) == 6
    names = ["CapacityWeigher", "AllocatedCapacityWeigher", "VolumeNumberWeigher", "GoodnessWeigher", "ChanceWeigher"]
    assert [w.multiplier for w in loading.load_weighers(names)] == [1, -1, -1, 1, 1]


def test_a_configured_multiplier_wins():
    configured = {"capacity_weight_multiplier": -2.5}
    (weigher,) = loading.load_weighers(["CapacityWeigher"], configured.__getitem__)
    assert (weigher.weigh, weigher.multiplier) == (weighers.capacity, -2.5)


def test_an_unknown_name_lists_those_available():
    with pytest.raises(ConfigError) as caught:
        loading.load(loading.FILTERS, ["CapacityFiler"])
    assert caught.value.message == (
        "There is no scheduler filter 'CapacityFiler'; available: AvailabilityZoneFilter, CapabilitiesFilter, "
        "CapacityFilter, DifferentBackendFilter, DriverFilter, SameBackendFilter."
    )


def test_nothing_available_is_said(installed):
    installed()
    with pytest.raises(ConfigError, match="no scheduler weigher 'X'; available: none"):
        loading.load(loading.WEIGHERS, ["X"])


def test_a_site_adds_its_own_plain_function(installed):
    installed(("MoonPhaseWeigher", "math:hypot", loading.WEIGHERS))
    (weigher,) = loading.load_weighers(["MoonPhaseWeigher"], lambda option: pytest.fail(option))
    assert (weigher.name, weigher.multiplier) == ("MoonPhaseWeigher", 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module:thing", "cannot be loaded from no_such_module:thing: No module named 'no_such_module'"),
        ("math:no_such_thing", "cannot be loaded from math:no_such_thing"),
        ("math:pi", "at math:pi is not a function but float"),
    ],
)
def test_what_cannot_be_loaded_is_a_sentence(installed, value, message):
    installed(("Broken", value, loading.FILTERS))
    with pytest.raises(ConfigError, match=f"The scheduler filter 'Broken' {message}"):
        loading.load(loading.FILTERS, ["Broken"])


def test_a_name_offered_twice_is_refused(installed):
    installed(("F", "math:sin", loading.FILTERS), ("F", "math:cos", loading.FILTERS))
    with pytest.raises(ConfigError, match="'F' is offered more than once: by math:cos and by math:sin"):
        loading.load(loading.FILTERS, ["F"])
