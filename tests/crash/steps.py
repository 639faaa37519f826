"""A crash at a chosen step of an action, for the crash tests of plugins: the action ends there, nothing tidies up.

For crashes within the process of the test. A service that is killed for real is in ``children.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Crash(BaseException):
    """The end of the process: no handler of ours may stop it."""


class Steps:
    """Counts the steps of an action, from 1, and fails at one of them.

    The failure is a crash unless another is given. A process that has crashed does nothing more: each later step
    crashes, too. Any other failure happens once.
    """

    def __init__(self, fatal: int | None = None, failure: BaseException | None = None) -> None:
        self.fatal, self.taken = fatal, 0
        self._failure = failure or Crash()

    @property
    def reached(self) -> bool:
        """Return True if the fatal step has been taken."""
        return self.fatal is not None and self.taken >= self.fatal

    def take(self) -> None:
        """Take a step, or raise the failure in its place."""
        if self.is_fatal():
            raise self._failure

    def is_fatal(self) -> bool:
        """Count a step; return True if the action must not get over it."""
        self.taken += 1
        return self.reached and (self.taken == self.fatal or self._is_dead)

    def wrap(self, function: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
        """Return the function as a step, which fails before the function is called, or after it."""

        def step(*args: Any, **options: Any) -> Any:
            if self._is_dead:
                raise self._failure
            is_fatal = self.is_fatal()
            if is_fatal and not after:
                raise self._failure
            answer = function(*args, **options)
            if is_fatal or self._is_dead:  # meanwhile, by a step of another thread
                raise self._failure
            return answer

        return step

    def crashed(self, fatal: int, action: Callable[[], object]) -> bool:
        """Run an action that crashes at a step; return False if it ended before."""
        self.fatal, self.taken = fatal, 0
        try:
            action()
        except Crash:
            return True
        finally:
            self.fatal = None
        return False

    @property
    def _is_dead(self) -> bool:
        return self.reached and isinstance(self._failure, Crash)
