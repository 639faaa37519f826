"""Each filter: what it lets pass, and what it says when it does not."""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.scheduler.filters import (
    availability_zone,
    capabilities,
    capacity,
    different_backend,
    filter_function,
    meets,
    same_backend,
)

quick = settings(deadline=None, derandomize="CI" in os.environ, database=None, max_examples=200)


# --- zones -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zones", [(), ("nova",), ("az1", "nova")])
def test_zone_passes(make_pool, make_placement_request, zones):
    assert availability_zone(make_placement_request(availability_zones=zones), make_pool()) is None


def test_zone_refusal_names_both_sides(make_pool, make_placement_request):
    reason = availability_zone(make_placement_request(availability_zones=("az1", "az2")), make_pool())
    assert reason == "in zone nova, az1 or az2 asked"


# --- capacity ----------------------------------------------------------------------------------------------


def test_capacity_refusal_holds_the_numbers_of_a_thin_pool(make_pool, make_placement_request):
    reason = capacity(make_placement_request(12), make_pool(provisioned_gib=127.5))
    assert reason == (
        "12 GiB asked, 7.5 GiB left "
        "(100 GiB in total, 10 % reserved, 1.5 times over-subscribed at most, 127.5 GiB provisioned)"
    )


def test_capacity_refusal_holds_the_numbers_of_a_thick_pool(make_pool, make_placement_request):
    reason = capacity(make_placement_request(12), make_pool(thin=False, free_gib=17.5, provisioned_gib=82.5))
    assert reason == (
        "12 GiB asked, 7.5 GiB left (100 GiB in total, 10 % reserved, 17.5 GiB free, 82.5 GiB provisioned)"
    )


def test_a_pool_that_takes_nothing_new_says_why(make_pool, make_placement_request):
    pool = make_pool(capabilities={"closed_because": "A disk is missing."})
    assert capacity(make_placement_request(1), pool) == (
        "1 GiB asked, but the pool accepts nothing new: A disk is missing."
    )
    assert capacity(make_placement_request(0), pool) is None  # nothing new: a retype of what is there


def test_overdrawn_pool_has_nothing_left_to_say(make_pool, make_placement_request):
    assert "0 GiB left" in capacity(make_placement_request(12), make_pool(provisioned_gib=999))


FULL = {"free_gib": 0.0, "provisioned_gib": 1000.0}


@pytest.mark.parametrize(
    ("placement_request", "pool", "refused"),
    [
        ({}, FULL, "0 GiB left"),
        ({"size_gib": 0}, FULL, None),
        ({}, {"free_gib": None, "capabilities": {}}, "not reported"),
        ({}, {"free_gib": None, "capabilities": {"free_capacity_gb": "unknown"}, "total_gib": 0}, None),
        ({"size_gib": 10**9}, {"free_gib": math.inf}, None),
        ({}, {"total_gib": None, "reserved_percentage": 0}, None),
        ({}, {"total_gib": math.inf, "reserved_percentage": 0}, None),
        ({}, {"total_gib": None}, "10 % reserved of a total that is unknown or infinite"),
        ({}, {"total_gib": 0.0}, "0 GiB in total"),
        ({}, {"total_gib": -1.0}, "-1 GiB in total"),
        ({"size_gib": 135}, {}, None),
        ({"size_gib": 136}, {}, "135 GiB left"),
        ({"size_gib": 90, "extra_specs": {"provisioning:type": "thick"}}, {}, None),
        ({"size_gib": 91, "extra_specs": {"provisioning:type": "thick"}}, {}, "90 GiB left"),
        ({"size_gib": 90, "extra_specs": {"provisioning:type": "thin"}}, {}, None),
        ({"size_gib": 91}, {"thin": False}, "90 GiB left"),
        ({}, {"max_over_subscription_ratio": 0.9}, "max_over_subscription_ratio is 0.9, below 1"),
        ({}, {"max_over_subscription_ratio": 0.9, "thin": False}, None),
        ({"extra_specs": {"provisioning:type": "thick"}}, {"max_over_subscription_ratio": 0.9}, None),
        ({"size_gib": 90}, {"max_over_subscription_ratio": 1.0}, None),
        ({"size_gib": 91}, {"max_over_subscription_ratio": 1.0}, "90 GiB left"),
        ({"size_gib": 1800}, {"max_over_subscription_ratio": "auto"}, None),
        ({"size_gib": 1801}, {"max_over_subscription_ratio": "auto"}, "20 times"),
        ({}, {"reserved_percentage": 100}, "0 GiB left"),
    ],
)
def test_each_step_of_the_arithmetic(make_pool, make_placement_request, placement_request, pool, refused):
    reason = capacity(make_placement_request(**placement_request), make_pool(**pool))
    if refused is None:
        assert reason is None
    else:
        assert reason is not None
        assert refused in reason


def test_thin_pool_takes_nothing_new_when_it_is_nearly_full(make_pool, make_placement_request):
    assert capacity(make_placement_request(), make_pool(free_gib=15.0)) is None
    assert capacity(make_placement_request(), make_pool(free_gib=14.0)) == (
        "1 GiB asked, but the pool is 86 % full and accepts nothing new above 85 % (14 of 100 GiB physically free)"
    )


def test_fill_limit_is_the_pools_own(make_pool, make_placement_request):
    assert capacity(make_placement_request(), make_pool(free_gib=14.0, fill_limit_percentage=90)) is None


def test_fill_limit_holds_for_a_thick_volume_on_thin_storage(make_pool, make_placement_request):
    placement_request = make_placement_request(extra_specs={"provisioning:type": "thick"})
    assert "86 % full" in capacity(placement_request, make_pool(free_gib=14.0))


def test_fill_limit_does_not_hold_for_thick_storage_nor_for_what_is_there_already(make_pool, make_placement_request):
    assert capacity(make_placement_request(), make_pool(free_gib=14.0, thin=False)) is None
    assert capacity(make_placement_request(0), make_pool(free_gib=14.0)) is None


def steps_of_the_reference(size, total, free, provisioned, reserved, ratio, thin_support, wants_thick):
    """Follow scheduler.md step by step from step 6 on, with the ratio test our filter leaves out."""
    if total <= 0:
        return False
    base = total - math.floor(total * reserved / 100)
    if thin_support and not wants_thick:
        if ratio < 1:
            return False
        available = base * ratio
        left = round(available - provisioned, 2)
        if available > 0 and round((provisioned + size) / available, 2) > ratio:
            return False
        return left >= size
    return round(min(free, base - provisioned), 2) >= size


gibs = st.integers(0, 5000) | st.floats(0, 5000).map(lambda x: round(x, 3))
pool_figures = st.fixed_dictionaries(
    {
        "total_gib": gibs,
        "free_gib": gibs,
        "provisioned_gib": gibs,
        "reserved_percentage": st.integers(0, 100),
        "max_over_subscription_ratio": st.floats(0.1, 20).map(lambda x: round(x, 2)),
        "thin": st.booleans(),
    }
)
sizes = st.integers(1, 5000)


@quick
@given(size=sizes, figures=pool_figures, thick=st.booleans())
def test_capacity_decides_as_the_steps_of_the_reference(make_pool, make_placement_request, size, figures, thick):
    pool = make_pool(**figures, fill_limit_percentage=10**9)
    placement_request = make_placement_request(size, extra_specs={"provisioning:type": "thick"} if thick else {})
    expected = steps_of_the_reference(
        size,
        figures["total_gib"],
        figures["free_gib"],
        figures["provisioned_gib"],
        figures["reserved_percentage"],
        figures["max_over_subscription_ratio"],
        figures["thin"],
        thick,
    )
    assert (capacity(placement_request, pool) is None) is expected


@quick
@given(size=sizes, figures=pool_figures, thick=st.booleans())
def test_a_placed_request_never_exceeds_the_bound(make_pool, make_placement_request, size, figures, thick):
    pool = make_pool(**figures)
    placement_request = make_placement_request(size, extra_specs={"provisioning:type": "thick"} if thick else {})
    if capacity(placement_request, pool) is not None:
        return
    base = pool.total_gib - math.floor(pool.total_gib * pool.reserved_percentage / 100)
    bound = base * (pool.max_over_subscription_ratio if pool.thin and not thick else 1)
    assert pool.provisioned_gib + size <= bound + 0.0051  # rounded to two decimals, as in Cinder
    if thick or not pool.thin:
        assert size <= pool.free_gib + 0.0051
    if pool.thin:
        assert pool.filled_percentage <= 85


@quick
@given(figures=pool_figures, size=sizes, less=sizes)
def test_what_takes_more_takes_less(make_pool, make_placement_request, figures, size, less):
    pool = make_pool(**figures)
    if capacity(make_placement_request(size), pool) is None:
        assert capacity(make_placement_request(min(size, less)), pool) is None


# --- capabilities ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reported", "required", "expected"),
    [
        # no operator: the whole text, exactly
        ("lvm", "lvm", True),
        ("lvm fast", "lvm fast", True),
        ("lvm", "LVM", False),
        ("lvm", "lvm ", False),
        ("", "", True),
        (True, "True", False),
        (10, "10", False),
        ("=5", "=5", True),  # no blank, so no operator
        # = is at least
        (10, "= 9", True),
        (10, "= 10", True),
        (10, "= 11", False),
        ("10.5", "= 10", True),
        # numbers
        (10, "== 10.0", True),
        ("10", "== 10", True),
        (10, "== 11", False),
        (10, "!= 11", True),
        (10, "!= 10", False),
        (10, ">= 10", True),
        (10, ">= 11", False),
        (10, "<= 10", True),
        (10, "<= 9", False),
        ("unknown", ">= 1", False),
        ("unknown", "!= 1", False),
        (10, ">= ten", False),
        (10, "!= ten", False),
        ([1], ">= 1", False),
        (10**400, ">= 1", False),
        # texts
        ("abc", "s== abc", True),
        ("abc", "s== abd", False),
        ("abc", "s!= abd", True),
        ("abc", "s!= abc", False),
        ("abc", "s< abd", True),
        ("abc", "s< abc", False),
        ("abc", "s<= abc", True),
        ("abd", "s<= abc", False),
        ("abd", "s> abc", True),
        ("abc", "s> abc", False),
        ("abc", "s>= abc", True),
        ("abb", "s>= abc", False),
        ("9", "s> 10", True),
        (10, "s== 10", True),
        # membership
        ("thin provisioned", "<in> thin", True),
        ("thick", "<in> thin", False),
        (("a", "b"), "<in> b", True),
        (7, "<in> 7", False),
        # booleans
        (True, "<is> True", True),
        (True, "<is> true", True),
        ("yes", "<is> True", True),
        (False, "<is> True", False),
        (False, "<is> False", True),
        (True, "<is> False", False),
        ("whatever", "<is> False", True),
        # one of
        ("b", "<or> a <or> b", True),
        ("c", "<or> a <or> b", False),
        ("a", "<or> a", True),
        ("a", "<or>", False),
        # only the first word counts; an operator alone matches nothing
        ("abc", "s== abc def", True),
        (10, ">= 10 20", True),
        (10, ">=", False),
        ("", "s==", False),
        # null
        (None, None, True),
        ("x", None, False),
        (None, "x", False),
        (None, "<is> False", False),
        (None, "s!= x", False),
    ],
)
def test_each_operator_of_extra_specs(reported, required, expected):
    assert meets(reported, required) is expected


@pytest.mark.parametrize(
    ("extra_specs", "reason"),
    [
        ({"volume_backend_name": "lvm"}, None),
        ({"capabilities:volume_backend_name": "lvm"}, None),
        ({"volume_backend_name": "ceph"}, "volume_backend_name is 'lvm', 'ceph' required"),
        ({"capabilities:volume_backend_name": "ceph"}, "volume_backend_name is 'lvm', 'ceph' required"),
        ({"nothing": "x"}, "nothing is not reported, 'x' required"),
        ({"nothing": None}, "nothing is not reported, None required"),
        ({"provisioning:type": "thick", "RESKEY:availability_zones": "az9", "vendor:x:y": "z"}, None),
        ({"capabilities:nested:deep": "<is> True"}, None),
        ({"capabilities:nested:deep": "<is> False"}, "nested:deep is True, '<is> False' required"),
        ({"capabilities:nested:deeper": "1"}, "nested:deeper is not reported, '1' required"),
        ({"capabilities:volume_backend_name:x": "1"}, "volume_backend_name:x is not reported, '1' required"),
        ({"capabilities:": "1"}, " is not reported, '1' required"),
        ({"tiers": "gold"}, None),
        ({"tiers": "<in> silv"}, None),
        ({"tiers": "bronze"}, "tiers is ['gold', 'silver'], 'bronze' required"),
        ({"empty": "x"}, "empty is [], 'x' required"),
        ({"storage_protocol": "iscsi"}, None),
        ({"storage_protocol": "iSCSI"}, None),
        ({"storage_protocol": "<or> fc <or> iscsi"}, None),
        ({"storage_protocol": "NFS"}, "storage_protocol is 'iSCSI', 'NFS' required"),
        ({"storage_protocol": "s!= iscsi"}, "storage_protocol is 'iSCSI', 's!= iscsi' required"),
        ({"storage_protocol": "s!= nfs"}, None),
        ({"multiattach": "True"}, "multiattach is True, 'True' required (write '<is> True')"),
        ({"multiattach": "<is> True", "volume_backend_name": "x"}, "volume_backend_name is 'lvm', 'x' required"),
        ({}, None),
    ],
)
def test_extra_specs_are_looked_up(make_pool, make_placement_request, extra_specs, reason):
    pool = make_pool(
        capabilities={
            "volume_backend_name": "lvm",
            "storage_protocol": "iSCSI",
            "multiattach": True,
            "nested": {"deep": True},
            "tiers": ["gold", "silver"],
            "empty": [],
        }
    )
    assert capabilities(make_placement_request(extra_specs=extra_specs), pool) == reason


@pytest.mark.parametrize(
    ("attached", "support", "refused"),
    [(True, False, True), (True, "False", True), (True, True, False), (True, None, False), (False, False, False)],
)
def test_extend_under_an_attachment_needs_support(make_pool, make_placement_request, attached, support, refused):
    pool = make_pool(capabilities={} if support is None else {"online_extend_support": support})
    reason = capabilities(make_placement_request(extends_attached=attached), pool)
    assert reason == ("the volume is attached and online_extend_support is False" if refused else None)


@quick
@given(
    reported=st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()),
    operator=st.sampled_from(["", "= ", "== ", "!= ", ">= ", "<= ", "s== ", "s< ", "<in> ", "<is> ", "<or> "]),
    operand=st.text(),
)
def test_no_extra_spec_makes_the_filter_raise(make_pool, make_placement_request, reported, operator, operand):
    pool = make_pool(capabilities={"key": reported})
    reason = capabilities(make_placement_request(extra_specs={"key": operator + operand}), pool)
    assert reason is None or "required" in reason


# --- filter_function ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (None, None),
        ("", None),
        ("volume.size < 10", None),
        ("volume.size", None),
        ("volume.size > 10", "filter_function 'volume.size > 10' is False (volume.size is 5)"),
        ("0", "filter_function '0' is 0.0 (it uses no variables)"),
        ("volume.size <", "filter_function: position 14: a value expected, not the end"),
        ("volume.colour == 'red'", "filter_function: position 1: there is no volume.colour"),
        ("qos.limit == 5", "filter_function: position 1: there is no qos.limit"),
        (["volume.size"], "filter_function: an expression is a text, not list"),
        ("stats.host == 'lab@lvm#lvm' and extra.iops >= 100", None),
        ("stats.free_capacity_gb == 40 && stats.total_capacity_gb == 'infinite'", None),
        ("capabilities.custom == 'x' and stats.reserved_percentage == 10", None),
        ("stats.storage_protocol == 'iscsi'", None),
        ("stats.storage_protocol == 'iSCSI'", None),
        ("capabilities.storage_protocol == 'iscsi'", None),
        (
            "stats.storage_protocol == 'NFS'",
            "filter_function 'stats.storage_protocol == 'NFS'' is False (stats.storage_protocol is 'iSCSI')",
        ),
        ("stats.storage_protocol == 'iscsi' ? 1 : 1 / 0", None),  # one spelling with a value is enough
        ("stats.vendor_name == stats.cluster_name", None),  # both null
    ],
)
def test_filter_function(make_pool, make_placement_request, function, reason):
    pool = make_pool(
        free_gib=40.0,
        total_gib=math.inf,
        capabilities={"filter_function": function, "storage_protocol": "iSCSI", "custom": "x"},
    )
    placement_request = make_placement_request(5, volume={"size": 5}, extra_specs={"iops": "100"})
    assert filter_function(placement_request, pool) == reason


# --- hints -------------------------------------------------------------------------------------------------

HERE, THERE = frozenset({"lab@lvm#lvm"}), frozenset({"lab@nfs#nfs"})


@pytest.mark.parametrize(
    ("pools", "same", "different"),
    [
        (None, None, None),
        (HERE, None, "a volume of the hint different_host is here; they are on lab@lvm#lvm"),
        (THERE, "none of the volumes of the hint same_host is here; they are on lab@nfs#nfs", None),
        (HERE | THERE, None, "a volume of the hint different_host is here; they are on lab@lvm#lvm, lab@nfs#nfs"),
        (frozenset(), "none of the volumes of the hint same_host is here; they are on no pool that is known", None),
    ],
)
def test_hints(make_pool, make_placement_request, pools, same, different):
    assert same_backend(make_placement_request(same_pools=pools), make_pool()) == same
    assert different_backend(make_placement_request(different_pools=pools), make_pool()) == different
