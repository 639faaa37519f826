"""APScheduler by the monotonic clock: a step of the system's clock moves no job, and makes up for none.

APScheduler compares the times of jobs with the system's clock. After a step back by a day nothing would run for a day;
a step forward would count all that was missed. So a step is found out before each round, and the jobs are moved by it.
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
"""Less than this is no step: it is how a clock is made right little by little."""


class Every(IntervalTrigger):  # type: ignore[misc]
    """Fires after each interval; what was missed is not made up for, so it costs nothing to count."""

    def get_next_fire_time(
        self, previous_fire_time: datetime.datetime | None, now: datetime.datetime
    ) -> datetime.datetime:
        """Return the next time, which is after ``now`` if there was one before."""
        interval: datetime.timedelta = self.interval
        following = (previous_fire_time or now) + interval
        return following if following > now else now + interval


class SteadyScheduler(BackgroundScheduler):  # type: ignore[misc]
    """A scheduler whose jobs are due by the monotonic clock. Jobs have the trigger ``Every``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._ahead = _ahead()

    def start(self, *args: Any, **kwargs: Any) -> None:
        """Begin, unless that was done; jobs were added before."""
        self._follow_clock()
        super().start(*args, **kwargs)

    def _process_jobs(self) -> Any:
        self._follow_clock()
        return super()._process_jobs()

    def _follow_clock(self) -> None:
        """Move all jobs by what the system's clock was stepped since the last round."""
        step_s = _ahead() - self._ahead
        if abs(step_s) < LEAST_STEP_S:
            return
        self._ahead += step_s
        step = datetime.timedelta(seconds=step_s)
        log.warning("the system's clock was stepped by %.0f s; jobs go on at the times they would have had", step_s)
        for job in self.get_jobs():
            if (due := getattr(job, "next_run_time", None)) is not None:
                job.modify(next_run_time=due + step)


def _ahead() -> float:
    """Return what the system's clock is ahead of the monotonic clock, in seconds."""
    return time.time() - time.monotonic()
