"""The queue between components: passes each operation to its handler. The only asyncio in this package.

An operation waits for the resources it names (``Operation.keys``), then for a free worker thread of its component.
Operations on one resource run in the order of arrival. Operations on different resources run in parallel, a bounded
number at once. Workers serve the projects in turns (``turns.py``), so that a project with many operations does not
delay the others. A component may have separate workers for each place of work, so that a stuck place does not block
the others. Queued operations are also in the database: losing this process loses no operation.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import chain, repeat

from blockstore.db import wait_limits
from blockstore.errors import DatabaseAway, OutOfFiles, TryAgain
from blockstore.log_limiter import LogLimiter
from blockstore.operations.catalogue import Operation
from blockstore.turns import Turns

log = logging.getLogger(__name__)
log_limiter = LogLimiter(log)

Handler = Callable[[Operation], None]

RETRY_DELAYS_S = (0.5, 2.0, 5.0, 15.0, 30.0)
"""Delays before retries of an operation whose handler raised (the database is away); the last repeats for ever."""

LOOKUPS = 4
"""Number of operations whose place is looked up at the same time."""


class Workers:
    """A number of workers, given to operations in turns over their projects. Used on one event loop only."""

    def __init__(self, count: int, *, spare: int = 0) -> None:
        """``spare``: additional workers for projects that have no operation running here.

        Without them, a project whose long operations hold every worker would delay the others for hours.
        """
        self._count, self._spare = count, spare
        self._running: Counter[str] = Counter()
        self._waiting: Turns[asyncio.Future[None]] = Turns()

    @asynccontextmanager
    async def taken(self, project: str) -> AsyncIterator[None]:
        """Wait for a worker and hold it inside."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(project, granted)
        self._grant()
        try:
            await granted
            yield
        finally:
            if not granted.cancelled():  # if cancelled, the service stops and no worker was granted
                self._running[project] -= 1
                if not self._running[project]:
                    del self._running[project]
                self._grant()

    def _grant(self) -> None:
        while (turn := self._waiting.take(self._may_run)) is not None:
            project, granted = turn
            if not granted.done():  # otherwise it was cancelled, because the service stops
                self._running[project] += 1
                granted.set_result(None)

    def _may_run(self, project: str) -> bool:
        busy = self._running.total()
        return busy < self._count or (busy < self._count + self._spare and project not in self._running)


@dataclass
class _Component:
    handlers: Mapping[type[Operation], Handler]
    place_of: Callable[[Operation], str] | None
    workers: Mapping[str, Workers]
    """By place."""
    threads: ThreadPoolExecutor


@dataclass(eq=False)
class _Ticket:
    """An operation's place in the queue of each resource it names."""

    operation: Operation
    turn: asyncio.Event = field(default_factory=asyncio.Event)


class Completion:
    """Lets a thread outside the bus wait until some operations have ended."""

    def __init__(self, operation_ids: Sequence[str]) -> None:
        self.operation_ids = operation_ids
        self._missing = set(operation_ids)
        self._ended = threading.Event()

    def wait(self, timeout_s: float) -> bool:
        """Wait until every operation has ended, in whatever state; return False on timeout."""
        return self._ended.wait(timeout_s)

    def note(self, operation_id: str | None) -> None:
        """Record that an operation has ended. None: no further end will be reported."""
        self._missing = set() if operation_id is None else self._missing - {operation_id}
        if not self._missing:
            self._ended.set()


def _run(handler: Handler, operation: Operation) -> None:
    with wait_limits.acting_for(operation.project_id):
        handler(operation)


class Bus:
    """A queue for each resource, and the worker threads that run operations."""

    def __init__(self, *, on_slow: Callable[[Operation], None] | None = None, slow_after_s: float = 1.0) -> None:
        """``on_slow`` is called from a worker thread once for an operation that runs longer than ``slow_after_s``."""
        self._components: dict[str, _Component] = {}
        self._lines: dict[str, deque[_Ticket]] = {}
        self._chains: dict[str, _Ticket] = {}
        self.on_busy: Callable[[bool], None] = lambda _busy: None
        """Called with True when the first operation starts to run, and with False when the last one has ended."""
        self._on_slow = on_slow
        self._slow_after_s = slow_after_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bus", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._change = threading.Condition()
        self._pending: dict[str, int] = {}
        self._running: dict[str, Operation] = {}
        self._expected: dict[str, Completion] = {}
        self._closing = False
        self._lookups = Workers(LOOKUPS)

    def add_component(
        self,
        name: str,
        handlers: Mapping[type[Operation], Handler],
        *,
        workers: int,
        spare: int = 0,
        places: int = 1,
        place_of: Callable[[Operation], str] | None = None,
    ) -> None:
        """Register a component's handlers and its number of worker threads. Call it before ``start``.

        ``place_of`` returns the place of an operation's work; each of the ``places`` then has ``workers`` threads.
        Each place has ``spare`` more threads for projects that have nothing running there.
        """
        threads = ThreadPoolExecutor((workers + spare) * places, thread_name_prefix=name)
        by_place: Mapping[str, Workers] = defaultdict(lambda: Workers(workers, spare=spare))
        self._components[name] = _Component(handlers, place_of, by_place, threads)
        self._pending[name] = 0

    def start(self) -> None:
        """Start to pass operations to handlers."""
        self._thread.start()

    def enqueue(self, operation: Operation) -> None:
        """Queue an operation, from any thread, and return at once. After ``drain`` it is left to the next start."""
        with self._change:
            if self._closing:
                return
            self._pending[operation.component] += 1  # counted before the hand-over, so that wait_idle misses none
        self._loop.call_soon_threadsafe(self._begin, operation)

    @contextmanager
    def completion_of(self, operation_ids: Sequence[str]) -> Iterator[Completion]:
        """Observe the end of operations about to be enqueued. Never use it in a handler: it would wait for itself."""
        completion = Completion(operation_ids)
        with self._change:
            self._expected.update(dict.fromkeys(operation_ids, completion))
            if self._closing or not operation_ids:
                completion.note(None)
        try:
            yield completion
        finally:
            with self._change:
                for operation_id in operation_ids:
                    self._expected.pop(operation_id, None)

    def depth(self) -> dict[str, int]:
        """Return the number of waiting and running operations, by component."""
        with self._change:
            return dict(self._pending)

    def running(self) -> list[Operation]:
        """Return the operations whose handlers run now."""
        with self._change:
            return list(self._running.values())

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no operation waits or runs; return False on timeout."""
        with self._change:
            return self._change.wait_for(lambda: not any(self._pending.values()), timeout_s)

    def drain(self, timeout_s: float) -> bool:
        """Start no more operations and wait for the running ones; return False on timeout."""
        with self._change:
            self._closing = True
            return self._change.wait_for(lambda: not self._running, timeout_s)

    def stop(self) -> None:
        """Stop the loop; unfinished operations stay in the database."""
        with self._change:
            self._closing = True
            for expectation in self._expected.values():
                expectation.note(None)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        for task in self._tasks:
            task.cancel()
        if self._tasks and not self._loop.is_closed():
            self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        if not self._loop.is_closed():
            # The threads that record slow operations still use the database, which is closed next.
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
        for component in self._components.values():
            component.threads.shutdown(wait=False, cancel_futures=True)

    # --- on the loop ---------------------------------------------------------------------------------------

    def _begin(self, operation: Operation) -> None:
        # Entering every queue in one step keeps the order of arrival and makes deadlocks impossible.
        # An operation that continues a chain takes the place of the one about to leave, directly behind it in each
        # queue. It holds exactly the same keys (tests/test_house.py); with more keys, two such operations could wait
        # for each other.
        ticket, leaving = _Ticket(operation), self._chains.get(operation.chain)
        self._chains[operation.chain] = ticket
        for name in operation.keys():
            line = self._lines.setdefault(name, deque())
            line.insert(line.index(leaving) + 1 if leaving is not None and leaving in line else len(line), ticket)
        task = self._loop.create_task(self._process(ticket))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _process(self, ticket: _Ticket) -> None:
        component = self._components[ticket.operation.component]
        try:
            if not self._is_first(ticket):
                await ticket.turn.wait()
            for delay_s in chain(RETRY_DELAYS_S, repeat(RETRY_DELAYS_S[-1])):
                workers = component.workers[await self._place(component, ticket.operation)]
                async with workers.taken(ticket.operation.project_id):
                    if await self._completed(component, ticket.operation):
                        break
                await asyncio.sleep(delay_s)  # keeps its place in the queue, but no worker
        finally:
            self._leave(ticket)
            with self._change:
                self._pending[ticket.operation.component] -= 1
                if expectation := self._expected.get(ticket.operation.operation_id):
                    expectation.note(ticket.operation.operation_id)
                self._change.notify_all()

    async def _place(self, component: _Component, operation: Operation) -> str:
        if component.place_of is None:
            return ""
        if operation.place:
            return operation.place
        try:
            # Without turns, the look-ups of one project's thousand operations would delay the next project's.
            async with self._lookups.taken(operation.project_id):
                return await self._loop.run_in_executor(None, component.place_of, operation)
        except DatabaseAway:  # the handler will meet the same error
            return ""
        except Exception as exc:
            log.warning("the pool of %s %s cannot be determined: %s", operation.kind, operation.operation_id, exc)
            return ""

    def _is_first(self, ticket: _Ticket) -> bool:
        return all(self._lines[name][0] is ticket for name in ticket.operation.keys())

    def _leave(self, ticket: _Ticket) -> None:
        if self._chains.get(ticket.operation.chain) is ticket:
            del self._chains[ticket.operation.chain]
        for name in ticket.operation.keys():
            line = self._lines[name]
            line.remove(ticket)
            if not line:
                del self._lines[name]
            elif self._is_first(line[0]):
                line[0].turn.set()

    async def _completed(self, component: _Component, operation: Operation) -> bool:
        """Run the handler; return False if the operation must be tried again."""
        with self._change:
            if self._closing:
                return True  # left to the next start
            if not self._running:
                self.on_busy(True)
            self._running[operation.operation_id] = operation
        slow = self._loop.call_later(self._slow_after_s, self._tell_slow, operation)
        started = time.monotonic()
        try:
            await self._loop.run_in_executor(component.threads, _run, component.handlers[type(operation)], operation)
        except DatabaseAway as exc:
            # An outage makes all operations raise this at once.
            log_limiter.log(
                logging.WARNING,
                exc.message,
                "%s %s will be retried: %s",
                operation.kind,
                operation.operation_id,
                exc.detail,
            )
            return False
        except OutOfFiles as exc:
            log_limiter.log(
                logging.WARNING, "files", "%s %s will be retried: %s", operation.kind, operation.operation_id, exc
            )
            return False
        except TryAgain as exc:
            log.warning("%s %s will be retried: %s", operation.kind, operation.operation_id, exc)
            return False
        except Exception:
            log.exception("%s %s could not be settled", operation.kind, operation.operation_id)
            return False
        finally:
            slow.cancel()
            with self._change:
                self._running.pop(operation.operation_id, None)
                if not self._running:
                    self.on_busy(False)
                self._change.notify_all()
        log.debug("%s %s took %.1f ms", operation.kind, operation.operation_id, (time.monotonic() - started) * 1000)
        return True

    def _tell_slow(self, operation: Operation) -> None:
        if self._on_slow is not None and not self._closing:
            # Not on the component's own threads: all of them may be busy with slow operations.
            self._loop.run_in_executor(None, self._on_slow, operation)
