"""Secrets, initiators and connectors."""

from __future__ import annotations

from unittest import SkipTest

from blockstore.conformance.initiators import ConnectionInfo
from blockstore.conformance.sandbox import expect, refuses
from blockstore.conformance.target.case import case
from blockstore.conformance.target.pair import PairSandbox
from blockstore.errors import InvalidConnector
from blockstore.targets.contract import Export

HOSTILE_VALUES = (
    "", "a\0b", "a\nb", "\n", "x" * 10_000, "../../etc/passwd", "a/b", "a b", "a,b", "a;b", "*", "ALL", "ünicode",
    7, True, None, ["x"], {"x": "y"},
)  # fmt: skip


class AccessCases:
    """Secrets, initiators and connectors."""

    @case()
    def test_the_secret_is_needed(self, sandbox: PairSandbox) -> None:
        """Without the secret, with another export's, or with a wrong one, nobody gets in."""
        sandbox.needs_doors()
        one, two = sandbox.exported(sandbox.volume("one")), sandbox.exported(sandbox.volume("two"))
        if not one.connection.secret_as:
            raise SkipTest(f"{sandbox.target.name} has no secrets: who may open its socket gets in.")
        sandbox.reads(one, "one")
        sandbox.keeps_out(ConnectionInfo.of(one.connection, two.export.secret), "Another export's secret")
        sandbox.keeps_out(ConnectionInfo.of(one.connection, "w" * 16), "A wrong secret")
        sandbox.keeps_out(ConnectionInfo.of(one.connection, ""), "Who has no secret")
        keys = [key for key in two.connection_info.data if key.startswith("auth_")]
        swapped = {**one.connection_info.data, **{key: two.connection_info.data[key] for key in keys}}
        sandbox.keeps_out(ConnectionInfo(one.connection_info.type, swapped), "Another export's name and secret")
        sandbox.reads(one, "one")

    @case()
    def test_other_initiators_are_refused(self, sandbox: PairSandbox) -> None:
        """An initiator of another name is refused, though it knows the secret."""
        if "initiator" not in sandbox.target.capabilities().connector_needs:
            raise SkipTest(f"{sandbox.target.name} does not know initiators by their names.")
        exported = sandbox.exported(sandbox.volume("kept"))
        sandbox.reads(exported, "kept")
        sandbox.keeps_out(exported.connection_info, "An initiator of another name", host=sandbox.other_host)

    @case()
    def test_connector_needs_are_needed(self, sandbox: PairSandbox) -> None:
        """A connector without what is needed is refused, without a trace."""
        name = sandbox.volume("kept")
        for key in sandbox.target.capabilities().connector_needs:
            connector = {k: v for k, v in sandbox.host.connector.items() if k != key}
            for poor in (connector, {}):
                refuses(InvalidConnector, sandbox.target.check_connector, poor)
                sandbox.refuses_export(InvalidConnector, sandbox.asks(name, connector=poor))
        sandbox.target.check_connector(sandbox.host.connector)
        sandbox.volume_holds(name, "kept")

    @case()
    def test_hostile_connectors(self, sandbox: PairSandbox) -> None:
        """Values that are no names, or no texts, are refused or ignored, the same before and during the export."""
        name = sandbox.volume("kept")
        needs = sandbox.target.capabilities().connector_needs
        for key in dict.fromkeys((*needs, "initiator", "host", "ip", "multipath")):
            for value in HOSTILE_VALUES:
                self._hostile(
                    sandbox, sandbox.asks(name, connector={**sandbox.host.connector, key: value}), key in needs
                )
        sandbox.volume_holds(name, "kept")

    @staticmethod
    def _hostile(sandbox: PairSandbox, export: Export, needed: bool) -> None:
        shown_as = repr(dict(export.connector))[:300]
        try:
            sandbox.target.check_connector(export.connector)
        except InvalidConnector as exc:
            expect(len(str(exc)) < 1000, "An error must not repeat ten thousand letters.")
            sandbox.refuses_export(InvalidConnector, export)
            return
        expect(not needed, f"check_connector must refuse {shown_as}")
        sandbox.lists_exports(sandbox.makes(export))
        sandbox.target.withdraw(export.id)
        sandbox.lists_exports()
