"""Several exports of one volume."""

from __future__ import annotations

from blockstore.conformance.sandbox import expect
from blockstore.conformance.target.case import case
from blockstore.conformance.target.pair import READ_MARK, ExportedVolume, PairSandbox
from blockstore.errors import BackendError


class MultiattachCases:
    """Several exports of one volume."""

    @case("multiattach")
    def test_declared_multiattach_works(self, sandbox: PairSandbox) -> None:
        """Two exports of one volume show the same bytes, and neither's end disturbs the other."""
        name = sandbox.volume("first")
        one, two = sandbox.exported(name), sandbox.exported(name, sandbox.other_host)
        sandbox.lists_exports(one, two)
        sandbox.reads(one, "first")
        sandbox.reads(two, "first", host=sandbox.other_host)
        sandbox.writes(one, "second")
        sandbox.reads(two, "second", host=sandbox.other_host)
        sandbox.target.withdraw(one.id)
        sandbox.lists_exports(two)
        if sandbox.has_doors:
            sandbox.keeps_out(one.connection_info, "Whose export was withdrawn")
        sandbox.reads(two, "second", host=sandbox.other_host)
        sandbox.writes(two, "third", host=sandbox.other_host)
        three = sandbox.exported(name)
        sandbox.target.withdraw(two.id)
        sandbox.reads(three, "third")

    @case("multiattach")
    def test_the_end_of_one_export_keeps_the_others_sessions(self, sandbox: PairSandbox) -> None:
        """Who is connected to a volume stays so when another export of it ends."""

        def another_comes_and_goes(exported: ExportedVolume) -> None:
            sandbox.target.withdraw(sandbox.exported(exported.export.volume, sandbox.other_host).id)

        kept, _made = sandbox.held_over(READ_MARK, another_comes_and_goes, marked=True)
        expect(kept, "A session must outlive that another export of its volume comes and goes.")

    @case(lacks="multiattach")
    def test_undeclared_multiattach_refuses(self, sandbox: PairSandbox) -> None:
        """Without multiattach, a second export of one volume is refused and the first goes on."""
        name = sandbox.volume("kept")
        exported = sandbox.exported(name)
        sandbox.refuses_export(BackendError, sandbox.asks(name, sandbox.other_host), exported)
        sandbox.reads(exported, "kept")
