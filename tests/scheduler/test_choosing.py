"""The choice: who wins, in which order, and what is said of those that do not."""

from __future__ import annotations

import ast
import dataclasses
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.scheduler import filters, weighers
from blockstore.scheduler.choosing import Filter, PlacementRequest, Weigher, choose, explain, explain_ranking, normalise

from ..conftest import ROOT

quick = settings(deadline=None, derandomize="CI" in os.environ, database=None, max_examples=200)

CAPACITY = Filter("CapacityFilter", filters.capacity)
MOST_FREE = Weigher("CapacityWeigher", weighers.capacity, 1.0)
FEWEST = Weigher("VolumeNumberWeigher", weighers.volume_number, -1.0)


def names(choice):
    return [ranked.pool.name for ranked in choice.ranking]


def test_most_free_space_wins(make_pool, make_placement_request):
    pools = [make_pool("n@a#a", provisioned_gib=50), make_pool("n@b#b"), make_pool("n@c#c", provisioned_gib=90)]
    choice = choose(make_placement_request(), pools, [CAPACITY], [MOST_FREE])
    assert choice.winner is pools[1]
    assert names(choice) == ["n@b#b", "n@a#a", "n@c#c"]
    assert not choice.refusals


def test_ranking_holds_the_numbers_behind_it(make_pool, make_placement_request):
    pools = [make_pool("n@a#a", volumes=4), make_pool("n@b#b", provisioned_gib=100, volumes=0)]
    choice = choose(make_placement_request(), pools, [], [MOST_FREE, FEWEST._replace(multiplier=-3.0)])
    best, second = choice.ranking
    assert [(w.weigher, w.raw, w.normalised, w.weighted) for w in best.weights] == [
        ("CapacityWeigher", 35, 0, 0),
        ("VolumeNumberWeigher", 0, 0, 0),
    ]
    assert [(w.raw, w.normalised, w.weighted) for w in second.weights] == [(135, 1, 1), (4, 1, -3)]
    assert (best.total, second.total) == (0, -2)
    assert explain_ranking(choice) == (
        "n@b#b: 0 (CapacityWeigher 35 is 0 x 1, VolumeNumberWeigher 0 is 0 x -3); "
        "n@a#a: -2 (CapacityWeigher 135 is 1 x 1, VolumeNumberWeigher 4 is 1 x -3)"
    )


def test_without_weighers_the_first_name_wins(make_pool, make_placement_request):
    choice = choose(make_placement_request(), [make_pool("n@b#b"), make_pool("n@a#a")], [], [])
    assert names(choice) == ["n@a#a", "n@b#b"]
    assert explain_ranking(choice) == "n@a#a: 0 (not weighed); n@b#b: 0 (not weighed)"


def test_the_first_filter_that_refuses_is_named(make_pool, make_placement_request):
    zone = Filter("AvailabilityZoneFilter", filters.availability_zone)
    pools = [make_pool("n@a#a", provisioned_gib=127.5), make_pool("n@b#b", availability_zone="az2")]
    choice = choose(make_placement_request(12, availability_zones=("nova",)), pools, [zone, CAPACITY], [MOST_FREE])
    assert choice.winner is None
    assert explain(choice) == (
        "n@a#a: CapacityFilter: 12 GiB asked, 7.5 GiB left (100 GiB in total, 10 % reserved, "
        "1.5 times over-subscribed at most, 127.5 GiB provisioned); "
        "n@b#b: AvailabilityZoneFilter: in zone az2, nova asked"
    )


def test_no_pools_no_winner(make_placement_request):
    choice = choose(make_placement_request(), [], [CAPACITY], [MOST_FREE])
    assert choice.winner is None
    assert (explain(choice), explain_ranking(choice)) == ("No pool was refused.", "No pool passed.")


def test_what_failed_already_is_not_tried_again(make_pool, make_placement_request):
    choice = choose(make_placement_request(tried=("n@a#a",)), [make_pool("n@a#a"), make_pool("n@b#b")], [], [])
    assert names(choice) == ["n@b#b"]
    assert explain(choice) == "n@a#a: RetryFilter: tried already"


def test_a_copy_goes_beside_its_source(make_pool, make_placement_request):
    choice = choose(
        make_placement_request(required_pool="n@a#a"), [make_pool("n@a#a"), make_pool("n@b#b")], [CAPACITY], [MOST_FREE]
    )
    assert names(choice) == ["n@a#a"]
    assert explain(choice) == "n@b#b: SourcePoolFilter: the source is on n@a#a"


def test_a_source_on_a_pool_that_is_away_is_said(make_pool, make_placement_request):
    choice = choose(make_placement_request(required_pool="n@gone#x"), [make_pool("n@a#a")], [], [])
    assert explain(choice) == (
        "n@a#a: SourcePoolFilter: the source is on n@gone#x, which is down, disabled or has not reported"
    )


def test_the_sources_pool_is_filtered_like_any(make_pool, make_placement_request):
    choice = choose(make_placement_request(999, required_pool="n@a#a"), [make_pool("n@a#a")], [CAPACITY], [])
    assert choice.refusals["n@a#a"].filter == "CapacityFilter"


def test_chance_spreads(make_pool, make_placement_request):
    pools = [make_pool("n@a#a"), make_pool("n@b#b")]
    chance = Weigher("ChanceWeigher", weighers.chance, 1.0)
    assert {choose(make_placement_request(), pools, [], [chance]).winner.name for _ in range(100)} == {"n@a#a", "n@b#b"}


@pytest.mark.parametrize(
    ("raws", "multiplier", "expected"),
    [
        ([], 1, []),
        ([5], 1, [0]),
        ([5, 5], 1, [0, 0]),
        ([0, 5, 10], 1, [0, 0.5, 1]),
        ([0, 5, 10], -1, [0, 0.5, 1]),
        ([math.inf, math.inf], 1, [0, 0]),
        ([math.inf, math.inf], -1, [0, 0]),
        ([math.inf, 0, 3], 1, [0, 0.25, 1]),  # no figure counts as -1
        ([math.inf, 0, 3], -1, [1, 0, 0.5]),  # no figure counts as more than any
        ([math.nan, 0, 3], 1, [0, 0.25, 1]),
        ([math.inf, 4], -1, [1, 0]),
        ([-1e308, 5, 6], 1, [0, 6 / 7, 1]),  # nor is what would overflow a figure
    ],
)
def test_normalise(raws, multiplier, expected):
    assert normalise(raws, multiplier) == pytest.approx(expected)


@quick
@given(raws=st.lists(st.floats()), multiplier=st.floats(-5, 5))
def test_normalised_numbers_keep_to_0_and_1_and_to_their_order(raws, multiplier):
    spread = normalise(raws, multiplier)
    assert all(0 <= number <= 1 for number in spread)
    known = [(raw, number) for raw, number in zip(raws, spread, strict=True) if abs(raw) < 1e300]
    for raw, number in known:
        assert all(number <= other for bigger, other in known if bigger > raw)


@st.composite
def some_pools(draw):
    figures = st.integers(0, 200).map(float)
    return [
        {
            "name": f"n@{letter}#{letter}",
            "total_gib": draw(st.none() | figures),
            "free_gib": draw(st.none() | st.just(math.inf) | figures),
            "provisioned_gib": draw(figures),
            "allocated_gib": draw(figures),
            "volumes": draw(st.integers(0, 9)),
            "thin": draw(st.booleans()),
        }
        for letter in "abcdefg"[: draw(st.integers(0, 7))]
    ]


WEIGHERS = [MOST_FREE, FEWEST, Weigher("AllocatedCapacityWeigher", weighers.allocated_capacity, -1.0)]


@quick
@given(figures=some_pools(), size=st.integers(0, 200), data=st.data())
def test_the_choice_does_not_depend_on_the_order_of_pools_or_weighers(
    make_pool, make_placement_request, figures, size, data
):
    pools = [make_pool(**each) for each in figures]
    placement_request = make_placement_request(size)
    choice = choose(placement_request, pools, [CAPACITY], WEIGHERS)
    other = choose(
        placement_request, data.draw(st.permutations(pools)), [CAPACITY], data.draw(st.permutations(WEIGHERS))
    )
    assert names(choice) == names(other)
    assert choice.refusals == other.refusals


@quick
@given(figures=some_pools(), size=st.integers(0, 200))
def test_every_pool_is_ranked_or_refused_never_both(make_pool, make_placement_request, figures, size):
    pools = [make_pool(**each) for each in figures]
    choice = choose(make_placement_request(size), pools, [CAPACITY], WEIGHERS)
    assert sorted([*names(choice), *choice.refusals]) == [pool.name for pool in pools]
    totals = [ranked.total for ranked in choice.ranking]
    assert totals == sorted(totals, reverse=True)


@quick
@given(figures=some_pools(), size=st.integers(1, 200), positive=st.booleans())
def test_a_pool_without_a_figure_comes_last(make_pool, make_placement_request, figures, size, positive):
    weigher = MOST_FREE._replace(multiplier=1.0 if positive else -1.0)
    choice = choose(make_placement_request(size), [make_pool(**each) for each in figures], [CAPACITY], [weigher])
    measured = [ranked.pool.is_measured for ranked in choice.ranking]
    assert measured == sorted(measured, reverse=True)


@quick
@given(figures=some_pools(), factor=st.floats(0.01, 100))
def test_scaling_every_multiplier_changes_nothing_but_the_totals(make_pool, make_placement_request, figures, factor):
    pools = [make_pool(**each) for each in figures]
    one = choose(make_placement_request(), pools, [], [MOST_FREE])
    scaled = choose(make_placement_request(), pools, [], [MOST_FREE._replace(multiplier=factor)])
    assert names(one) == names(scaled)


def test_the_service_sets_every_field_of_a_wish():
    """A field that only tests set would be a branch that no volume ever takes."""
    scheduler = ROOT / "blockstore" / "scheduler"
    made: set[str | None] = set()
    for module in ("placement.py", "explaining.py"):
        for node in ast.walk(ast.parse((scheduler / module).read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "PlacementRequest":
                made |= {keyword.arg for keyword in node.keywords}
            elif isinstance(node, ast.Dict):
                made |= {key.value for key in node.keys if isinstance(key, ast.Constant)}
    assert {field.name for field in dataclasses.fields(PlacementRequest)} <= made
