"""The tables of statuses: none is left by nothing, and every transitional one belongs to an operation."""

from __future__ import annotations

import pytest

from blockstore.operations import states
from blockstore.operations.catalogue import KINDS
from blockstore.operations.states import ATTACHMENT, SNAPSHOT, VOLUME, A, S, StateMachine, V

MACHINES = [VOLUME, SNAPSHOT, ATTACHMENT]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_every_transitional_status_has_a_failure_and_a_way_out(machine: StateMachine) -> None:
    for status, failure in machine.failure.items():
        assert failure not in machine.failure, f"{failure} is transitional too"
        assert status in machine.moves[failure], f"{status} may not become {failure}"
        ways_out = {to for to, come_from in machine.moves.items() if status in come_from}
        removed = status in ("deleting", "disconnecting")
        assert removed or failure == "available" or ways_out - {failure}, f"{status} can only fail"


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_every_status_of_an_operation_is_transitional_and_the_reverse(machine: StateMachine) -> None:
    """A status without an operation, or an operation without a failure status, would be a stuck state."""
    ended: set[str] = set()
    for kind in KINDS.values():
        ids = {
            name: "x"
            for name in (
                "volume_id",
                "snapshot_id",
                "attachment_id",
                "came_from",
                "destination",
                "name_id",
                "name",
                "reference",
            )
            if name in kind.__dataclass_fields__
        }
        extra = {
            name: 1
            for name in ("new_size_gib", "growth_gib", "pool", "type_id", "counted", "size_gib", "volume_gib")
            if name in kind.__dataclass_fields__
        }
        for noun, _id, status in kind(operation_id="o", request_id="r", project_id="p", **ids, **extra).covers():
            if states.MACHINES[noun] is machine:
                ended.add(status)
    assert ended == set(machine.failure)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_every_status_in_the_tables_is_one_of_the_machine(machine: StateMachine) -> None:
    known = {str(status) for status in {VOLUME.name: V, SNAPSHOT.name: S, ATTACHMENT.name: A}[machine.name]}
    used = {
        *machine.moves,
        *machine.failure,
        *machine.failure.values(),
        *(s for f in machine.moves.values() for s in f),
    }
    assert {str(status) for status in used} <= known
