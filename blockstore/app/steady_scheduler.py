"""APScheduler by the monotonic clock: a step of the system's clock neither delays jobs nor runs missed ones.

APScheduler compares the times of jobs with the system's clock. After a step back by a day nothing would run for a day;
a step forward would count all missed runs. So each round first detects a step and moves the jobs by it.
"""

from __future__ import annotations

import datetime
import logging
import time
from typing import Any

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

log = logging.getLogger(__name__)

LEAST_STEP_S = 0.5
"""A smaller difference is no step: clocks are also corrected gradually."""


class MonotonicInterval(IntervalTrigger):  # type: ignore[misc]
    """Fires after each interval. Missed runs are skipped without counting them."""

    def get_next_fire_time(
        self, previous_fire_time: datetime.datetime | None, now: datetime.datetime
    ) -> datetime.datetime:
        """Return the next time, which is after ``now`` if the job has run before."""
        interval: datetime.timedelta = self.interval
        following = (previous_fire_time or now) + interval
        return following if following > now else now + interval


class SteadyScheduler(BackgroundScheduler):  # type: ignore[misc]
    """A scheduler whose jobs are due by the monotonic clock. Jobs have the trigger ``MonotonicInterval``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._ahead = _ahead()

    def start(self, *args: Any, **kwargs: Any) -> None:
        """Start the scheduler, after moving the jobs by any step of the clock since they were added."""
        self._follow_clock()
        super().start(*args, **kwargs)

    def _process_jobs(self) -> Any:
        self._follow_clock()
        return super()._process_jobs()

    def _follow_clock(self) -> None:
        """Move all jobs by the step of the system's clock since the last round."""
        step_s = _ahead() - self._ahead
        if abs(step_s) < LEAST_STEP_S:
            return
        self._ahead += step_s
        step = datetime.timedelta(seconds=step_s)
        log.warning(
            "the system's clock was stepped by %.0f s; the next times of all jobs are moved by the same step", step_s
        )
        for job in self.get_jobs():
            if (due := getattr(job, "next_run_time", None)) is not None:
                job.modify(next_run_time=due + step)


def _ahead() -> float:
    """Return by how many seconds the system's clock is ahead of the monotonic clock."""
    return time.time() - time.monotonic()
