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
        made = sandbox.exported(sandbox.volume("kept"))
        for target in (sandbox.target, sandbox.again()):
            answer = target.export(made.export)
            expect(
                answer == made.connection, f"Exported again, it must answer {made.connection}, but answers {answer}."
            )
            sandbox.lists_exports(made)
        sandbox.reads(made, "kept")
        sandbox.target.withdraw(made.id)
        sandbox.lists_exports()

    @case()
    def test_exporting_again_keeps_sessions(self, sandbox: PairSandbox) -> None:
        """Exporting again leaves those who are connected alone."""
        kept, made = sandbox.held_over(READ_MARK, lambda made: sandbox.makes(made.export), marked=True)
        expect(kept, "A session must outlive that its export is asked for again.")
        sandbox.gone(made)

    @case()
    def test_withdraw_twice(self, sandbox: PairSandbox) -> None:
        """Withdrawing what is not there any more, and what never was, succeeds."""
        name = sandbox.volume()
        made, other = sandbox.exported(name), sandbox.exported(sandbox.volume("other"))
        sandbox.target.withdraw(made.id)
        sandbox.lists_exports(other)
        sandbox.target.withdraw(made.id)
        sandbox.target.withdraw(str(uuid.uuid4()))
        sandbox.lists_exports(other)
        sandbox.reads(other, "other")

    @case()
    def test_a_restarted_service_goes_on(self, sandbox: PairSandbox) -> None:
        """A new instance with the same owner and directory lists, and ends, what the former one exported."""
        made, other = sandbox.exported(sandbox.volume("kept")), sandbox.exported(sandbox.volume())
        again = sandbox.again()
        expect({made.id, other.id} <= again.list_exports(), "A restarted service must list its exports.")
        again.withdraw(other.id)
        sandbox.lists_exports(made)
        sandbox.reads(made, "kept")
        again.withdraw(made.id)
        sandbox.lists_exports()

    @case()
    def test_another_installation_is_left_alone(self, sandbox: PairSandbox) -> None:
        """An instance with another owner neither lists our exports nor ends them."""
        made, stranger = sandbox.exported(sandbox.volume("kept")), sandbox.stranger()
        expect(made.id not in stranger.list_exports(), "list_exports() must leave out what another owner exports.")
        expect(made.id not in stranger.sessions(), "sessions() must leave out what another owner exports.")
        stranger.withdraw(made.id)
        sandbox.lists_exports(made)
        sandbox.reads(made, "kept")

    @case()
    def test_many_at_once(self, sandbox: PairSandbox) -> None:
        """Different volumes are exported and withdrawn at the same time."""
        asked = [sandbox.asks(sandbox.volume()) for _ in range(6)]
        with ThreadPoolExecutor(len(asked)) as threads:
            made = list(threads.map(sandbox.makes, asked))
            sandbox.lists_exports(*made)
            expect(len({json.dumps(dict(one.connection.data)) for one in made}) == 6, "Each has its own connection.")
            list(threads.map(sandbox.target.withdraw, [one.id for one in made[1:]]))
        sandbox.lists_exports(made[0])
        sandbox.reads(made[0], "")
