"""Runs granian inside this process, on a socket that already listens.

granian's own embedded server makes the socket itself, and passes every request to the event loop. This one offers each
request to ``Adapter.take`` first, on granian's thread. It uses undocumented parts of granian, so setup.cfg limits the
version.
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
    """The listening socket; granian would otherwise make one itself, on an unknown port."""

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
        made: Any = RSGIWorker  # the stubs of granian describe another signature
        worker = made(worker_id, socket, None, *settings, http, http1, http2, websockets, static, *tls, (None, None))
        worker.serve_async(_Scheduler.made(loop, adapter), loop, stop)
        await stopped


class _Scheduler(CallbackScheduler):
    """Receives each request from granian, with its watcher, on granian's thread."""

    @classmethod
    def made(cls, loop: asyncio.AbstractEventLoop, adapter: Any) -> Any:
        """Return a scheduler that offers each request to ``adapter.take``, and else has the event loop call it."""
        call = _future_watcher_wrapper(adapter)  # type: ignore[no-untyped-call]
        worker_class: Any = cls  # as above
        scheduler = worker_class(loop, call, None, partial(_enter_task, loop), partial(_leave_task, loop))
        on_loop = _cbsched_aioschedule(loop, scheduler._ctx, call)  # type: ignore[no-untyped-call]

        def schedule(watcher: Any) -> None:
            if not adapter.take(watcher.scope, watcher.proto, watcher.done):
                on_loop(watcher)

        scheduler._schedule_fn = schedule
        return scheduler
