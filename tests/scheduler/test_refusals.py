"""What a user is told when no pool can take a volume."""

from __future__ import annotations

import pytest

from blockstore.scheduler.choosing import PlacementRequest, Refusal
from blockstore.scheduler.refusals import public_reason

CANARY = "canary"
CAPACITY = Refusal("CapacityFilter", CANARY)
CAPABILITIES = Refusal("CapabilitiesFilter", CANARY)
ZONE = Refusal("AvailabilityZoneFilter", CANARY)
ELSEWHERE = Refusal("SourcePoolFilter", CANARY)
SITES_OWN = Refusal("CanaryFilter", CANARY)


@pytest.mark.parametrize(
    ("placement_request", "refusals", "absent", "said"),
    [
        (
            PlacementRequest(size_gib=10),
            [CAPACITY, CAPACITY],
            [],
            "No storage has 10 GiB free for this volume type. Ask for less, or ask your administrator.",
        ),
        (
            PlacementRequest(size_gib=5, required_pool="p0"),
            [CAPACITY, ELSEWHERE],
            ["px"],
            "The only possible storage does not have 5 GiB free for this volume type. Ask for less, or ask your"
            " administrator.",
        ),
        (
            PlacementRequest(size_gib=10),
            [CAPABILITIES],
            [],
            "No storage can take the volume: it does not have the capabilities that the volume type requires. Ask"
            " your administrator.",
        ),
        (
            PlacementRequest(size_gib=10, availability_zones=("az1",)),
            [ZONE, CAPACITY],
            ["px"],
            "No storage can take the volume: it does not have 10 GiB free; or it is not available at the moment; or"
            " it is not in the availability zone az1. Ask for less, or ask your administrator.",
        ),
        (
            PlacementRequest(size_gib=1, block_size=512),
            [Refusal("BlockSizeFilter", CANARY)],
            [],
            "No storage can take the volume: its block size differs from the 512 bytes of the volume, so the"
            " partitions would no longer be found. Ask your administrator.",
        ),
        (
            PlacementRequest(size_gib=1, required_pool="px"),
            [ELSEWHERE],
            ["px"],
            "The only possible storage cannot take the volume: it is not available at the moment. Try again later, or"
            " ask your administrator.",
        ),
        (
            PlacementRequest(size_gib=1),
            [],
            [],
            "No storage can take the volume: it is not available at the moment. Try again later, or ask your"
            " administrator.",
        ),
        (
            PlacementRequest(size_gib=1),
            [SITES_OWN],
            [],
            "No storage can take the volume: a filter of this installation excludes it. Ask your administrator.",
        ),
    ],
)
def test_the_user_is_told_sizes_and_what_to_do(
    placement_request: PlacementRequest, refusals: list[Refusal], absent: list[str], said: str
) -> None:
    named = {f"p{i}": refusal for i, refusal in enumerate(refusals)}
    assert public_reason(placement_request, named, absent) == said
