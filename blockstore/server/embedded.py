"""granian as this service runs it: inside the process, on a socket that listens already.

Its own embedded server makes the socket, and hands every request to the event loop. This one offers each to ``take``
first, on granian's thread. Where it uses what granian does not document, setup.cfg keeps the version.
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task
from functools import partial
from typing import Any

from granian._futures import _cbsched_aioschedule, _future_watcher_wrapper
from granian._granian import CallbackScheduler, RSGIWorker
from granian.server.embed import AsyncWorker, Server


class EmbeddedServer(Server):
    """granian's embedded server, for an ``Adapter``."""

    holder: Any
    """The listening socket, which it would otherwise make itself, on a port that nobody knows."""

    def _init_shared_socket(self) -> None:
        self._shd = self.holder

    @staticmethod
    @AsyncWorker.wrap_target  # type: ignore[untyped-decorator]
    async def _spawn_rsgi_worker(
        worker_id: int,
        stop: Any,
        adapter: Any,
        socket: Any,
        loop: asyncio.AbstractEventLoop,
        *options: Any,
    ) -> None:
        *settings, _task_impl, http, http1, http2, websockets, static, _log_format, tls, _scope = options
        stopped = loop.create_future()
        stop.add_cb(lambda: loop.call_soon_threadsafe(stopped.set_result, None))
        adapter.start(loop)
        made: Any = RSGIWorker  # the stubs of granian describe another one
        worker = made(worker_id, socket, None, *settings, http, http1, http2, websockets, static, *tls, (None, None))
        worker.serve_async(_Scheduler.made(loop, adapter), loop, stop)
        await stopped


class _Scheduler(CallbackScheduler):
    """Where granian brings each request, with its watcher, on a thread of its own."""

    @classmethod
    def made(cls, loop: asyncio.AbstractEventLoop, adapter: Any) -> Any:
        """Return a scheduler that asks the adapter to take a request, and else has the event loop call it."""
        call = _future_watcher_wrapper(adapter)  # type: ignore[no-untyped-call]
        made: Any = cls  # the same
        scheduler = made(loop, call, None, partial(_enter_task, loop), partial(_leave_task, loop))
        on_loop = _cbsched_aioschedule(loop, scheduler._ctx, call)  # type: ignore[no-untyped-call]

        def schedule(watcher: Any) -> None:
            if not adapter.take(watcher.scope, watcher.proto, watcher.done):
                on_loop(watcher)

        scheduler._schedule_fn = schedule
        return scheduler
