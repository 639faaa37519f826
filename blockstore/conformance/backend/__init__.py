"""The conformance suite of backends: tests every promise of ``backends/contract.py`` on a real backend.

The cases run in two ways. With pytest: subclass ``BackendConformance`` and give it a ``backend`` fixture. On the
command line: ``blockstore backend check NAME`` calls ``run``. Each module of this package has the cases of one
capability. The helpers are in ``case.py`` and in ``conformance/sandbox.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from blockstore.backends.contract import Backend
from blockstore.conformance.backend.clones import CloneCases
from blockstore.conformance.backend.contents import ContentCases
from blockstore.conformance.backend.extend import ExtendCases
from blockstore.conformance.backend.group_snapshots import GroupSnapshotCases
from blockstore.conformance.backend.health import HealthCases
from blockstore.conformance.backend.manage import ManageCases
from blockstore.conformance.backend.names import NameCases
from blockstore.conformance.backend.owner import OwnerCases
from blockstore.conformance.backend.revert import RevertCases
from blockstore.conformance.backend.snapshots import SnapshotCases
from blockstore.conformance.backend.volumes import VolumeCases
from blockstore.conformance.sandbox import Result, cases_of, run_cases


# Cases run from the last base to the first, here and in pytest.
class BackendConformance(
    ManageCases,
    RevertCases,
    GroupSnapshotCases,
    CloneCases,
    SnapshotCases,
    NameCases,
    ExtendCases,
    ContentCases,
    VolumeCases,
    OwnerCases,
    HealthCases,
):
    """Every promise of contract.py, as a case with its sentence."""


def cases(suite: BackendConformance | None = None) -> Sequence[tuple[str, Callable[[Backend], None]]]:
    """Return name and function of every case, in the order in which they run."""
    return cases_of(suite or BackendConformance())


def run(backend: Backend, report: Callable[[str], None] = print, *, only: str = "") -> Sequence[Result]:
    """Run every case whose name contains ``only`` and report a line for each; failed cases are in the results."""
    return run_cases(BackendConformance(), backend, report, only)
