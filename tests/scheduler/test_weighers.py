"""Each weigher's number, and the option that changes its weight."""

from __future__ import annotations

import logging
import math

import pytest

from blockstore.scheduler import weighers
from blockstore.scheduler.weighers import allocated_capacity, capacity, chance, goodness, volume_number


def test_capacity_is_what_may_still_be_promised(make_pool, make_placement_request):
    assert capacity(make_placement_request(), make_pool(provisioned_gib=100)) == 35
    assert (
        capacity(make_placement_request(extra_specs={"provisioning:type": "thick"}), make_pool(provisioned_gib=50))
        == 40
    )


@pytest.mark.parametrize("figure", [None, math.inf])
@pytest.mark.parametrize("which", ["total_gib", "free_gib"])
def test_capacity_has_no_figure_for_unknown_or_infinite(make_pool, make_placement_request, which, figure):
    assert capacity(make_placement_request(), make_pool(**{which: figure})) == math.inf


def test_allocated_capacity_and_volume_number_count_ours(make_pool, make_placement_request):
    pool = make_pool(allocated_gib=7.0, volumes=3)
    assert (allocated_capacity(make_placement_request(), pool), volume_number(make_placement_request(), pool)) == (7, 3)


@pytest.mark.parametrize(
    ("function", "number"),
    [
        (None, 0),
        ("", 0),
        ("42", 42),
        ("0", 0),
        ("100", 100),
        ("100.1", 0),
        ("-1", 0),
        ("1 == 1", 100),
        ("1 == 2", 0),
        ("'fifty'", 0),
        ("capabilities.none", 0),
        ("volume.size < 10 ? 100 : 50", 100),
        ("1 / 0", 0),
        ("1 +", 0),
        ("stats.storage_protocol == 'iscsi' ? 80 : 20", 80),  # the best spelling counts
        ("stats.storage_protocol == 'iSCSI' ? 20 : 80", 80),
    ],
)
def test_goodness(make_pool, make_placement_request, function, number):
    pool = make_pool(capabilities={"goodness_function": function, "storage_protocol": "iSCSI", "none": None})
    assert goodness(make_placement_request(volume={"size": 5}), pool) == number


def test_a_goodness_function_that_fails_is_logged(make_pool, make_placement_request, caplog):
    with caplog.at_level(logging.WARNING):
        goodness(make_placement_request(), make_pool(capabilities={"goodness_function": "1 / 0"}))
    assert "goodness_function of lab@lvm#lvm counts as 0: position 3: division by zero" in caplog.text


def test_chance_is_between_0_and_1(make_pool, make_placement_request):
    numbers = {chance(make_placement_request(), make_pool()) for _ in range(50)}
    assert len(numbers) > 1
    assert all(0 <= number < 1 for number in numbers)


@pytest.mark.parametrize(
    ("name", "option", "multiplier"),
    [
        ("capacity", "capacity_weight_multiplier", 1.0),
        ("allocated_capacity", "allocated_capacity_weight_multiplier", -1.0),
        ("volume_number", "volume_number_multiplier", -1.0),
        ("goodness", "goodness_weight_multiplier", 1.0),
        ("chance", "chance_weight_multiplier", 1.0),
    ],
)
def test_default_multipliers(name, option, multiplier):
    weigher = getattr(weighers, name)
    assert (weigher.option, weigher.multiplier) == (option, multiplier)
