"""Broken exports are noticed and made again."""

from __future__ import annotations

from functools import partial
from unittest import SkipTest

from blockstore.conformance.initiators import ConnectionInfo
from blockstore.conformance.sandbox import expect
from blockstore.conformance.target.case import case
from blockstore.conformance.target.pair import PairSandbox


class FaultCases:
    """Broken exports are noticed and made again."""

    @case()
    def test_what_was_exported_has_no_fault(self, sandbox: PairSandbox) -> None:
        """A look finds no fault with an export that is used or was withdrawn, and another owner sees none of it."""
        exported, other = (
            sandbox.exported(sandbox.volume("kept")),
            sandbox.exported(sandbox.volume(), sandbox.other_host),
        )
        sandbox.reads(exported, "kept")
        sandbox.serves(exported, other)
        sandbox.target.withdraw(other.id)
        again = sandbox.again()
        again.export(exported.export)
        for target in (sandbox.target, again):
            faults = target.faults()
            expect(not faults.keys() & {exported.id, other.id}, f"There is no fault, but faults() tells {faults}.")
        expect(not sandbox.stranger().faults(), "faults() must leave out what another owner exports.")

    @case()
    def test_a_broken_export_is_noticed_and_made_again(self, sandbox: PairSandbox) -> None:
        """What a tool breaks is noticed by the next look and made again, with the same secret; others serve on."""
        if not sandbox.damages:
            raise SkipTest(f"{sandbox.target.name} is broken only by tests, which know how.")
        name = sandbox.volume("kept")
        other = sandbox.exported(sandbox.volume("other"))
        for what, damage in sandbox.damages.items():
            exported = sandbox.exported(name)
            sandbox.serves(exported, other)
            damage(exported)
            sandbox.soon(partial(sandbox.broken, exported), f"A look must notice: {what}.")
            sandbox.backend.locate(name)  # this makes a device appear again
            answer = sandbox.target.export(exported.export)
            expect(
                answer == exported.connection,
                f"Made again, it must answer {exported.connection}, but answers {answer}.",
            )
            sandbox.serves(exported, other)
            sandbox.reads(exported, "kept")
            if exported.connection.secret_as:
                sandbox.keeps_out(ConnectionInfo.of(exported.connection, "w" * 16), f"A wrong secret, after: {what},")
            sandbox.target.withdraw(exported.id)
        sandbox.reads(other, "other")

    @case()
    def test_a_service_that_was_started_anew_notices(self, sandbox: PairSandbox) -> None:
        """What was broken while no service ran is noticed, and can be ended, by the next one."""
        if not sandbox.damages:
            raise SkipTest(f"{sandbox.target.name} is broken only by tests, which know how.")
        name = sandbox.volume()
        for what, damage in sandbox.damages.items():
            exported, again = sandbox.exported(name), sandbox.again()
            damage(exported)
            noticed = partial(sandbox.broken, exported, again)
            sandbox.soon(noticed, f"A service that was started anew must notice: {what}.")
            sandbox.backend.locate(name)
            again.withdraw(exported.id)
            sandbox.lists_exports()
