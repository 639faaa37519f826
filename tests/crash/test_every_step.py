"""Killed by SIGKILL at every step of every handler, and of the request before it, a service recovers by itself.

A survey run, unkilled, notes at each traced line what the disk looks like. Kills then happen in each distinct state of
the disk (so on both sides of every commit, every file made, renamed, grown or removed): at its first and its last line
in `make test-long`, at one of the two, drawn by the seed, in `make test`. They happen at every line around a started
tool, too, and at a sample of the other lines, which can only repeat one of those states. ``KILL_EVERY_LINE=1`` kills at
each single line instead.

What is exported by a target that lives on without the service, a tgtd or qemu-nbd, is tried as well, at fewer steps.

``KILL_CONFIG=FILE`` tries the backend of a configuration file, such as LVM in the lab, in place of the directory
backend; its pool must be empty, and is again afterwards. ``KILL_SAMPLE`` sets the size of the sample.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import pytest
from blockstore_plugins.nbd.folder import ExportFolder

from tests import sampling
from tests.conftest import need
from tests.crash.fork_server import ForkServer
from tests.tgtd import Tgtd

CONFIG = os.environ.get("KILL_CONFIG")
EVERY_LINE = os.environ.get("KILL_EVERY_LINE") == "1"
SAMPLE = int(os.environ.get("KILL_SAMPLE", sampling.effort(1, 40)))
OUTLIVING_SAMPLE = sampling.effort(8, 40)
SHORTER = ("create on the next pool",) if CONFIG else ()
MOST_MEDIAN_DRAIN_S = 5.0
PARALLEL = 1 if CONFIG else 2
LIMIT = pytest.mark.timeout(7200 if EVERY_LINE or CONFIG else sampling.effort(1800, 7200))


@dataclass
class Killing:
    """Where it happens, who does it, and what came of it."""

    place: Path
    nurseries: SimpleQueue[ForkServer] = field(default_factory=SimpleQueue)
    drains: list[float] = field(default_factory=list)
    kills: int = 0

    def run(self, function: str, *arguments: object) -> int:
        """Run a child in a free nursery."""
        fork_server = self.nurseries.get()
        try:
            return fork_server.run(self.place / "log", function, *arguments)
        finally:
            self.nurseries.put(fork_server)

    def said(self) -> str:
        """Return the end of what the children printed."""
        return (self.place / "log").read_text()[-6000:]


@pytest.fixture(scope="module")
def killing(request: pytest.FixtureRequest) -> Iterator[Killing]:
    """Interpreters to fork from, and a directory; in memory where there is one: a kill is no power cut."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) and not CONFIG else None
    with tempfile.TemporaryDirectory(prefix="blockstore-kill-", dir=parent) as place:
        killing = Killing(Path(place))
        nurseries = [ForkServer() for _ in range(PARALLEL)]
        for fork_server in nurseries:
            killing.nurseries.put(fork_server)
        yield killing
        for fork_server in nurseries:
            fork_server.close()
    if killing.drains:
        drains = sorted(killing.drains)
        print(
            f"\n{killing.kills} kills; start to nothing open: median {drains[len(drains) // 2]:.3f} s,"
            f" longest {drains[-1]:.3f} s"
        )


def scenarios() -> Sequence[str]:
    """Return the names; importing the children here would start what must not be started before a fork."""
    return (
        "create", "create from a snapshot", "clone", "create on the next pool", "create that nothing can take",
        "extend", "extend that nothing can take", "retype", "move", "retype by moving", "drain",
        "manage", "manage that nothing can take", "manage a snapshot", "unmanage",
        "retype that nothing can take", "first snapshot", "third snapshot", "delete a snapshot", "delete",
        "delete with cascade", "revert", "reserve", "attach at once", "connect", "complete", "detach",
        "detach the older way", "connect the older way", "disconnect the older way", "reset to detached",
        "offer", "accept", "accept what was connected",
        "delete what is reserved", "delete what is connected", "extend what is attached", "restore", "resume",
    )  # fmt: skip


OUTLIVING = {
    "tgt": (
        "attach at once", "connect by another target", "detach", "delete what is connected", "extend what is attached",
        "restore",
    ),
    "nbd": ("attach at once", "detach", "restore"),
}  # fmt: skip
"""What is tried with targets that go on without the service."""


@LIMIT
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in scenarios() if name not in SHORTER])
def test_killed_at_any_step_it_recovers(killing: Killing, name: str) -> None:
    """Whatever was accepted is carried out after the restart; what was not accepted left no trace."""
    kill_at_steps(killing, name, "local")


@LIMIT
@pytest.mark.slow
@pytest.mark.skipif(bool(CONFIG), reason="KILL_CONFIG has a target of its own")
@pytest.mark.parametrize(("target", "name"), [(target, name) for target in OUTLIVING for name in OUTLIVING[target]])
def test_killed_beside_a_target_that_lives_on_it_recovers(killing: Killing, target: str, name: str) -> None:
    """What the target was told and the database does not know is carried on with, or ended."""
    if target == "nbd":
        need(shutil.which("qemu-nbd"), "apt-get install qemu-utils")
    kill_at_steps(killing, name, target)


def kill_at_steps(killing: Killing, name: str, target: str) -> None:
    """Kill at each chosen step, each time in a new copy of the same world."""
    template = killing.place / "template"
    if not CONFIG:
        shutil.rmtree(template, ignore_errors=True)
        with running(target, template) as options:
            assert killing.run("prepare", str(template), name, options) in (0, -9), killing.said()
    survey = killing.place / "survey"
    remove(survey)  # of a scenario that failed
    with running(target, survey) as options:
        assert killing.run("victim", str(template), str(survey), name, options, None) == 0, killing.said()
        prints = json.loads((survey / "prints").read_text())
        assert killing.run("recover", str(survey), name, options, True) == 0, killing.said()
    remove(survey)
    steps = chosen(prints, name)
    if target in OUTLIVING and not EVERY_LINE:
        steps = sorted(sampling.dice(f"{target} {name}").sample(steps, min(OUTLIVING_SAMPLE, len(steps))))

    drains: list[float] = []

    def kill(step: int) -> str:
        place = killing.place / str(step)
        remove(place)
        with running(target, place) as options:
            victim = killing.run("victim", str(template), str(place), name, options, step)
            if victim not in (0, -9):
                return f"step {step}: the victim failed: {victim}"
            recovered = killing.run("recover", str(place), name, options, step % 10 == 0)
        if recovered:
            return f"step {step}: the recovery failed: {recovered}"
        drains.append(float((place / "drained").read_text()))
        killing.kills += victim == -9
        remove(place)
        return ""

    with ThreadPoolExecutor(PARALLEL) as pool:
        failures = [failure for failure in pool.map(kill, steps) if failure]
    print(f"{name}: {len(prints)} steps, {len({p for p, _ in prints})} states of the disk, {len(steps)} kills")
    assert not failures, "\n".join([*failures[:20], killing.said()])
    assert CONFIG or sorted(drains)[len(drains) // 2] < MOST_MEDIAN_DRAIN_S
    killing.drains += drains


def remove(state_dir: Path) -> None:
    """Remove a state directory if it is there, but nothing of what its service has mounted there."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in mounts:
        if Path(mount).is_relative_to(state_dir):
            subprocess.run(["umount", mount], check=True)
    if state_dir.exists():
        shutil.rmtree(state_dir)


@contextmanager
def running(target: str, state_dir: Path) -> Iterator[str]:
    """Give a service a target that outlives its kill; yield the target's name and options. Nothing of it is left."""
    if target == "tgt":
        with Tgtd() as tgtd:
            yield f"tgt portals={tgtd.portal} control_socket={tgtd.socket}"
        return
    try:
        yield target
    finally:
        for folder in (state_dir / "targets" / "nbd").glob("*-*"):
            ExportFolder(folder).stop()
            (folder / "nbd").unlink(missing_ok=True)


def chosen(prints: Sequence[tuple[int, bool]], name: str) -> list[int]:
    """Return the steps to kill at: in every state of the disk, before and at every line of a tool, and a sample."""
    total, dice = len(prints), sampling.dice(name)
    if EVERY_LINE:
        return list(range(1, total + 1))
    picked = {1, total}
    for (_, is_tool), run in itertools.groupby(range(1, total + 1), key=lambda step: prints[step - 1]):
        steps = list(run)
        ends = steps[0], steps[-1]
        if is_tool:  # which changes what the disk does not show
            picked |= {max(1, steps[0] - 1), *steps}
        else:
            picked |= set(ends) if sampling.LONG else {dice.choice(ends)}
    rest = [step for step in range(1, total + 1) if step not in picked]
    return sorted(picked | set(dice.sample(rest, min(SAMPLE, len(rest)))))
