"""Exports are made and withdrawn again, by a restarted service, by another one, and at once."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor

from blockstore.conformance.sandbox import expect
from blockstore.conformance.target.case import case
from blockstore.conformance.target.pair import READ_MARK, PairSandbox


class RepetitionCases:
    """Exports are made and withdrawn again, by a restarted service, by another one, and at once."""

    @case()
    def test_export_twice_is_one_export(self, sandbox: PairSandbox) -> None:
        """Exporting again gives the same answer and makes nothing more, also by a restarted service."""
        exported = sandbox.exported(sandbox.volume("kept"))
        for target in (sandbox.target, sandbox.again()):
            answer = target.export(exported.export)
            expect(
                answer == exported.connection,
                f"Exported again, it must answer {exported.connection}, but answers {answer}.",
            )
            sandbox.lists_exports(exported)
        sandbox.reads(exported, "kept")
        sandbox.target.withdraw(exported.id)
        sandbox.lists_exports()

    @case()
    def test_exporting_again_keeps_sessions(self, sandbox: PairSandbox) -> None:
        """Exporting again leaves those who are connected alone."""
        kept, exported = sandbox.held_over(READ_MARK, lambda exported: sandbox.makes(exported.export), marked=True)
        expect(kept, "A session must outlive that its export is asked for again.")
        sandbox.gone(exported)

    @case()
    def test_withdraw_twice(self, sandbox: PairSandbox) -> None:
        """Withdrawing what is not there any more, and what never was, succeeds."""
        name = sandbox.volume()
        exported, other = sandbox.exported(name), sandbox.exported(sandbox.volume("other"))
        sandbox.target.withdraw(exported.id)
        sandbox.lists_exports(other)
        sandbox.target.withdraw(exported.id)
        sandbox.target.withdraw(str(uuid.uuid4()))
        sandbox.lists_exports(other)
        sandbox.reads(other, "other")

    @case()
    def test_a_restarted_service_goes_on(self, sandbox: PairSandbox) -> None:
        """A new instance with the same owner and directory lists, and ends, what the former one exported."""
        exported, other = sandbox.exported(sandbox.volume("kept")), sandbox.exported(sandbox.volume())
        again = sandbox.again()
        expect({exported.id, other.id} <= again.list_exports(), "A restarted service must list its exports.")
        again.withdraw(other.id)
        sandbox.lists_exports(exported)
        sandbox.reads(exported, "kept")
        again.withdraw(exported.id)
        sandbox.lists_exports()

    @case()
    def test_another_installation_is_left_alone(self, sandbox: PairSandbox) -> None:
        """An instance with another owner neither lists our exports nor ends them."""
        exported, stranger = sandbox.exported(sandbox.volume("kept")), sandbox.stranger()
        expect(exported.id not in stranger.list_exports(), "list_exports() must leave out what another owner exports.")
        expect(exported.id not in stranger.sessions(), "sessions() must leave out what another owner exports.")
        stranger.withdraw(exported.id)
        sandbox.lists_exports(exported)
        sandbox.reads(exported, "kept")

    @case()
    def test_many_at_once(self, sandbox: PairSandbox) -> None:
        """Different volumes are exported and withdrawn at the same time."""
        requests = [sandbox.asks(sandbox.volume()) for _ in range(6)]
        with ThreadPoolExecutor(len(requests)) as threads:
            exported = list(threads.map(sandbox.makes, requests))
            sandbox.lists_exports(*exported)
            expect(
                len({json.dumps(dict(one.connection.data)) for one in exported}) == 6, "Each has its own connection."
            )
            list(threads.map(sandbox.target.withdraw, [one.id for one in exported[1:]]))
        sandbox.lists_exports(exported[0])
        sandbox.reads(exported[0], "")
