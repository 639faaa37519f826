"""The conformance suite of targets: tests every promise of ``targets/contract.py`` on a backend with a target.

The cases run in two ways. With pytest: subclass ``TargetConformance`` and give it a ``pair`` fixture. On the command
line: ``blockstore backend check NAME`` calls ``run``. Each module of this package has the cases of one subject.
The helpers are in ``pair.py`` and in ``conformance/sandbox.py``, the initiators that use the exports are in
``conformance/initiators.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from blockstore.conformance.sandbox import Result, cases_of, run_cases
from blockstore.conformance.target.access import AccessCases
from blockstore.conformance.target.answers import AnswerCases
from blockstore.conformance.target.data import DataCases
from blockstore.conformance.target.faults import FaultCases
from blockstore.conformance.target.multiattach import MultiattachCases
from blockstore.conformance.target.pair import ExportedVolume, Pair
from blockstore.conformance.target.refusals import RefusalCases
from blockstore.conformance.target.repetition import RepetitionCases
from blockstore.conformance.target.resize import ResizeCases
from blockstore.conformance.target.sessions import SessionCases
from blockstore.conformance.target.withdraw import WithdrawCases

__all__ = ["ExportedVolume", "Pair", "TargetConformance", "cases", "run"]


# Cases run from the last base to the first, here and in pytest.
class TargetConformance(
    SessionCases,
    ResizeCases,
    MultiattachCases,
    RefusalCases,
    AccessCases,
    WithdrawCases,
    FaultCases,
    RepetitionCases,
    DataCases,
    AnswerCases,
):
    """Every promise of contract.py, as a case with its sentence."""


def cases(suite: TargetConformance | None = None) -> Sequence[tuple[str, Callable[[Pair], None]]]:
    """Return name and function of every case, in the order in which they run."""
    return cases_of(suite or TargetConformance())


def run(pair: Pair, report: Callable[[str], None] = print, *, only: str = "") -> Sequence[Result]:
    """Run every case whose name contains ``only`` and report a line for each; failed cases are in the results."""
    return run_cases(TargetConformance(), pair, report, only)
