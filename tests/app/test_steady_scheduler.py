"""Jobs go on at their intervals whatever somebody does to the system's clock."""

from __future__ import annotations

import datetime
import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from apscheduler.schedulers import base

from blockstore.app import steady_scheduler
from blockstore.app.steady_scheduler import MonotonicInterval, SteadyScheduler
from tests.conftest import Served, need

DAY_S = 86400


class Clock:
    """The system's clock of this process, as the scheduler sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step_s = 0.0
        clock = self

        class Stepped(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Stepped:
                return cls.fromtimestamp(time.time() + clock.step_s, tz)

        class Times:
            monotonic = staticmethod(time.monotonic)

            @staticmethod
            def time() -> float:
                return time.time() + clock.step_s

        monkeypatch.setattr(base, "datetime", Stepped)
        monkeypatch.setattr(steady_scheduler, "time", Times)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Job:
    """Counts how often it ran."""

    def __init__(self) -> None:
        self.runs = 0
        self._ran = threading.Condition()

    def __call__(self) -> None:
        with self._ran:
            self.runs += 1
            self._ran.notify_all()

    def wait_for(self, runs: int, timeout_s: float = 60) -> bool:
        with self._ran:
            return self._ran.wait_for(lambda: self.runs >= runs, timeout_s)


@pytest.fixture
def scheduler() -> Iterator[SteadyScheduler]:
    made = SteadyScheduler(timezone=datetime.UTC)
    yield made
    if made.running:
        made.shutdown()


@pytest.mark.timed
@pytest.mark.parametrize("step_s", [-DAY_S, -365 * DAY_S, DAY_S, 100 * 365 * DAY_S])
def test_a_step_of_the_clock_moves_no_job(scheduler: SteadyScheduler, clock: Clock, step_s: float) -> None:
    """Neither silence after a step back nor a burst after one forward; the interval is that of the monotonic clock."""
    job, rare = Job(), Job()
    scheduler.add_job(job, MonotonicInterval(seconds=0.1), coalesce=True, max_instances=1, misfire_grace_time=None)
    scheduler.add_job(rare, MonotonicInterval(seconds=3600), coalesce=True, max_instances=1, misfire_grace_time=None)
    scheduler.start()
    assert job.wait_for(2)
    clock.step_s += step_s
    begun, before = time.monotonic(), job.runs
    assert job.wait_for(before + 3)
    assert job.runs - before <= (time.monotonic() - begun) / 0.1 + 2
    assert rare.runs == 0


def test_what_was_missed_is_not_counted() -> None:
    """APScheduler lists each time that was missed, which after a century at each second is much memory."""
    now = datetime.datetime.now(datetime.UTC)
    trigger = MonotonicInterval(seconds=1)
    times = [now - datetime.timedelta(days=36500)]
    while times[-1] <= now:
        times.append(trigger.get_next_fire_time(times[-1], now))
    assert len(times) == 2


@pytest.fixture(scope="module")
def stepping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that steps the clock of a process."""
    made = tmp_path_factory.mktemp("clock") / "clock_step.so"
    source = Path(__file__).with_name("clock_step.c")
    done = subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", made, source], capture_output=True, check=False)
    need(done.returncode == 0, "apt-get install gcc libc6-dev")
    return made


def test_a_served_process_looks_at_its_backends_after_the_clock_was_set_back(
    tmp_path: Path, serve: Callable[..., Served], stepping: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that breaks a day before the last look is found to be down at once."""
    step, volumes = tmp_path / "step", tmp_path / "volumes"
    step.write_text("0")
    monkeypatch.setenv("LD_PRELOAD", str(stepping))
    monkeypatch.setenv("CLOCK_STEP", str(step))
    config = f"[service]\nreport_interval_s = 1\n[backend:files]\nplugin = directory\npath = {volumes}\n"
    served = serve(config, state_dir=tmp_path / "s")
    monkeypatch.delenv("LD_PRELOAD")

    def service() -> tuple[str, str]:
        request = urllib.request.Request(f"{served.url}/os-services", headers={"OpenStack-API-Version": "volume 3.71"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            (found,) = [s for s in json.load(answer)["services"] if s["binary"] == "cinder-volume"]
        return found["backend_state"], found["state"]

    assert service() == ("up", "up")
    for days, state, change in ((-1, "down", lambda: volumes.chmod(0o777)), (400, "up", lambda: volumes.chmod(0o700))):
        fresh = step.with_name("fresh")
        fresh.write_text(str(days * DAY_S))
        fresh.replace(step)
        change()
        deadline = time.monotonic() + 60
        while service() != (state, "up") and time.monotonic() < deadline:
            time.sleep(0.1)
        assert service() == (state, "up")
    assert served.log.read_text().count("the system's clock was stepped by") == 2
