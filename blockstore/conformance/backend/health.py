"""Health checks, capabilities and capacity."""

from __future__ import annotations

from blockstore.conformance.backend.case import case
from blockstore.conformance.sandbox import Sandbox, eventually, expect

PATIENCE_S = 10.0
"""Time within which a pool's capacity must follow a change."""


class HealthCases:
    """Health checks, capabilities and capacity."""

    @case()
    def test_check_twice(self, sandbox: Sandbox) -> None:
        """check() succeeds, again and again, and changes nothing."""
        sandbox.backend.check()
        sandbox.backend.check()
        sandbox.lists({})

    @case()
    def test_capabilities_are_steady_and_whole(self, sandbox: Sandbox) -> None:
        """Capabilities stay the same and say whether space is taken when written or when created."""
        has = sandbox.backend.capabilities()
        expect(has == sandbox.has, "capabilities() must answer the same each time.")
        expect(has.thin or has.thick, "capabilities() must declare thin, thick or both.")
        expect(has.storage_protocol, "capabilities() must name a storage_protocol.")
        expect(has.snapshots or not has.revert, "revert is declared without snapshots, which it needs.")
        expect(has.snapshots or not has.group_snapshots, "group_snapshots is declared without snapshots.")

    @case()
    def test_capacity_is_plausible(self, sandbox: Sandbox) -> None:
        """The pool's figures make sense: 0 <= free <= total, and the total is not nothing."""
        now = sandbox.backend.capacity()
        expect(now.total_gib > 0, f"total_gib must be more than 0, but is {now.total_gib}.")
        expect(0 <= now.free_gib <= now.total_gib, f"free_gib must be within 0 and total_gib: {now}.")
        expect(now.provisioned_gib is None or now.provisioned_gib >= 0, f"provisioned_gib is negative: {now}.")

    @case()
    def test_capacity_moves_with_volumes(self, sandbox: Sandbox) -> None:
        """A new volume takes its space at once when thick, and next to none when thin; deleting gives it back."""
        before = sandbox.backend.capacity()
        name = sandbox.volume(size_gib=2)
        if sandbox.has.thin is not sandbox.has.thick:

            def taken() -> float:
                return before.free_gib - sandbox.backend.capacity().free_gib

            if sandbox.has.thick:
                eventually(lambda: taken() > 1.5, "free_gib must fall by the size of a new thick volume.", PATIENCE_S)
            else:
                eventually(lambda: taken() < 1, "free_gib must not fall by the size of a new thin volume.", PATIENCE_S)
        if before.provisioned_gib is not None:
            was = before.provisioned_gib
            eventually(
                lambda: (sandbox.backend.capacity().provisioned_gib or 0) - was > 1.9,
                "provisioned_gib must grow by a new volume's size.",
                PATIENCE_S,
            )
        sandbox.backend.delete_volume(name)
        eventually(
            lambda: sandbox.backend.capacity().free_gib > before.free_gib - 1,
            "free_gib must come back when a volume is deleted.",
            PATIENCE_S,
        )
