"""One long-lived event loop per worker process, on a thread of its own; Celery's threads hand coroutines to it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import structlog

T = TypeVar("T")
_log: Final = structlog.get_logger()

_TICK_SECONDS: Final = 1.0
_STUCK_SECONDS: Final = 60.0  # a loop that has not ticked for so long holds leases and does nothing: better dead


class WorkerLoop:
    """start() once; run() from any thread; stop() at the end."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="worker-loop", daemon=True)
        self._ticked_at = time.monotonic()
        self._stopping = threading.Event()

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._tick(), self._loop)
        threading.Thread(target=self._watch, name="worker-watchdog", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def call(self, what: Callable[[], None]) -> None:
        """Have something done on the loop, soon, without waiting for it."""
        self._loop.call_soon_threadsafe(what)

    def submit(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a coroutine on the loop and do not wait."""
        asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        self._stopping.set()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    async def _tick(self) -> None:
        while True:
            self._ticked_at = time.monotonic()
            await asyncio.sleep(_TICK_SECONDS)

    def _watch(self) -> None:
        """Ends the process when the loop is stuck; its leases run out and other workers go on."""
        while not self._stopping.wait(_TICK_SECONDS):
            if time.monotonic() - self._ticked_at > _STUCK_SECONDS:
                _log.critical("worker_loop_stuck", seconds=_STUCK_SECONDS)
                os._exit(70)
