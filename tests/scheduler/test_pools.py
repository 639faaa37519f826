"""What is left in a pool."""

from __future__ import annotations

import math

import pytest

from blockstore.scheduler.pools import gib, protocol_spellings


def test_backend_is_the_name_without_the_pool(make_pool):
    assert make_pool("lab@lvm#fast").backend == "lab@lvm"


def test_thin_promises_more_than_there_is(make_pool):
    assert make_pool(provisioned_gib=100).virtual_free(wants_thick=False) == 35  # 90 * 1.5 - 100


def test_thick_volume_on_a_thin_pool_is_not_over_subscribed(make_pool):
    assert make_pool(provisioned_gib=50).virtual_free(wants_thick=True) == 40


def test_pool_without_thin_support_is_not_over_subscribed(make_pool):
    assert make_pool(thin=False, provisioned_gib=50).virtual_free(wants_thick=False) == 40


def test_thick_is_bounded_by_what_is_physically_free(make_pool):
    assert make_pool(thin=False, free_gib=7.5).virtual_free(wants_thick=False) == 7.5


def test_thin_is_not_bounded_by_what_is_physically_free(make_pool):
    assert make_pool(free_gib=20).virtual_free(wants_thick=False) == 135


def test_reserve_is_whole_gib_rounded_down(make_pool):
    pool = make_pool(thin=False, total_gib=19.0, free_gib=19.0, reserved_percentage=10)
    assert pool.virtual_free(wants_thick=False) == 18  # 1.9 GiB of reserve count as 1


def test_figures_are_rounded_to_two_decimals(make_pool):
    pool = make_pool(thin=False, reserved_percentage=0, provisioned_gib=33.3333)
    assert pool.virtual_free(wants_thick=False) == 66.67


def test_overdrawn_pool_has_less_than_nothing(make_pool):
    assert make_pool(provisioned_gib=150).virtual_free(wants_thick=False) == -15


@pytest.mark.parametrize("free", [None, math.inf])
def test_unknown_free_space_sets_no_bound(make_pool, free):
    assert make_pool(free_gib=free).virtual_free(wants_thick=False) == math.inf


@pytest.mark.parametrize("total", [None, math.inf])
@pytest.mark.parametrize(("reserved", "left"), [(0, math.inf), (10, 0)])
def test_unknown_total_sets_no_bound_unless_a_share_is_reserved(make_pool, total, reserved, left):
    assert make_pool(total_gib=total, reserved_percentage=reserved).virtual_free(wants_thick=False) == left


@pytest.mark.parametrize(
    ("changes", "ratio"),
    [
        ({"max_over_subscription_ratio": 3.0}, 3),
        ({"provisioned_gib": 0}, 20),
        ({"provisioned_gib": 60, "free_gib": 71}, 3),  # 1 + 60 / (29 + 1)
        ({"provisioned_gib": 60, "free_gib": 130}, 61),  # more free than there is counts as nothing used
        ({"thin": False}, 1),
        ({"thin": False, "max_over_subscription_ratio": 3.0}, 1),
        ({"free_gib": None}, 1),
        ({"total_gib": math.inf}, 1),
    ],
)
def test_over_subscription(make_pool, changes, ratio):
    assert make_pool(**{"max_over_subscription_ratio": "auto", **changes}).over_subscription == ratio


@pytest.mark.parametrize(
    ("changes", "filled"),
    [({"free_gib": 15}, 85), ({"free_gib": None}, None), ({"total_gib": None}, None), ({"total_gib": 0}, None)],
)
def test_filled_percentage(make_pool, changes, filled):
    assert make_pool(**changes).filled_percentage == filled


def test_saying_unknown_is_not_saying_nothing(make_pool):
    assert make_pool(free_gib=None, capabilities={"free_capacity_gb": "unknown"}).is_free_reported
    assert not make_pool(free_gib=None, capabilities={}).is_free_reported


@pytest.mark.parametrize(
    ("figure", "text"),
    [(7.5, "7.5"), (100.0, "100"), (12, "12"), (1.666, "1.67"), (1234567.0, "1234567"), (-3.0, "-3")],
)
def test_gib_is_written_as_people_write_it(figure, text):
    assert gib(figure) == text


@pytest.mark.parametrize(
    ("reported", "spellings"),
    [
        ("iSCSI", ("iSCSI", "iscsi")),
        ("fc", ("fc", "FC", "fibre_channel")),
        (["nfs", "iscsi"], ("nfs", "iscsi", "iSCSI", "NFS")),
        ("ceph", ("ceph",)),
        (None, (None,)),
    ],
)
def test_protocol_spellings(reported, spellings):
    assert protocol_spellings(reported) == spellings
