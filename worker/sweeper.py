"""The sweep: every worker looks for rows whose time has come, and takes as many of them in hand as it has hands free.

The due clock is the queue.  A message only says that somebody should look now; lost, doubled or late, it changes
nothing, and no number of them makes a queue grow.  Rows wait where they are until a hand is free, and the next one goes
to the tenant with the fewest in hand, so that thousands of one tenant's rows do not stand before another's."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from shared.errors import StoreError
from shared.ids import TenantId
from shared.store import Store
from shared.store.due import Due, Kind, Room

_log: Final = structlog.get_logger()
_GAP_SECONDS: Final = 0.02  # between two sweeps: what rings meanwhile shares the next one


@dataclass(frozen=True)
class Work:
    """What is done with the due rows of one kind.  hands: rows at once.  act: the work, by the row's id."""

    hands: int
    act: Callable[[str], Awaitable[None]]

    @property
    def share(self) -> int:
        """Rows of one tenant at once: half of them, so that slow ones of one tenant leave room for others."""
        return max(1, self.hands // 2)


class Sweeper:
    """run() until cancelled; wake() when a row has become due; stop() and then finished() at the end."""

    def __init__(
        self, store: Store, works: Mapping[Kind, Work], *, interval_seconds: float, grace_seconds: float
    ) -> None:
        self._store = store
        self._works = works
        self._interval_seconds = interval_seconds
        self._grace_seconds = grace_seconds
        self._held: dict[Kind, Counter[TenantId]] = {kind: Counter() for kind in works}
        self._short: set[Kind] = set()  # kinds of which the last sweep may have left due rows where they were
        self._tasks: dict[Due, asyncio.Task[None]] = {}
        self._bell = asyncio.Event()
        self._stopping = False

    def wake(self) -> None:
        self._bell.set()

    async def run(self) -> None:
        while not self._stopping:
            self._bell.clear()
            try:
                await self._sweep()
            except StoreError:
                _log.warning("sweep_waits_for_store")
            except Exception:  # noqa: BLE001  # the edge: nothing may end the sweep, on which everything rests
                _log.exception("sweep_failed")
            await asyncio.sleep(_GAP_SECONDS)
            try:
                async with asyncio.timeout(self._interval_seconds):
                    await self._bell.wait()
            except TimeoutError:
                continue

    def stop(self) -> None:
        """Take nothing more in hand."""
        self._stopping = True
        self._bell.set()

    async def finished(self, *, within_seconds: float) -> None:
        """Wait for what is in hand.  What takes longer is broken off: its lease ends, and another worker goes on."""
        tasks = list(self._tasks.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=within_seconds)
            for task in late:
                task.cancel()

    async def _sweep(self) -> None:
        rooms = {
            kind: Room(free, work.share, self._held[kind])
            for kind, work in self._works.items()
            if (free := work.hands - self._held[kind].total()) > 0
        }
        for due in await self._store.due.hand_out(rooms, grace_seconds=self._grace_seconds):
            if due not in self._tasks:  # else it has been in hand for longer than the grace
                self._take(due)
        self._short = {
            kind
            for kind, work in self._works.items()
            if self._held[kind].total() >= work.hands or max(self._held[kind].values(), default=0) >= work.share
        }

    def _take(self, due: Due) -> None:
        self._held[due.kind][due.tenant] += 1
        task = asyncio.ensure_future(self._works[due.kind].act(due.id))
        self._tasks[due] = task
        task.add_done_callback(lambda task: self._let_go(due, task))

    def _let_go(self, due: Due, task: asyncio.Future[None]) -> None:
        del self._tasks[due]
        held = self._held[due.kind]
        held[due.tenant] -= 1
        if not held[due.tenant]:
            del held[due.tenant]
        if due.kind in self._short:
            self.wake()
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, StoreError):  # handed out again after the grace
            _log.warning("due_row_waits", kind=due.kind, id=due.id, code=error.code)
        else:
            _log.error("due_row_failed", kind=due.kind, id=due.id, error=type(error).__name__, exc_info=error)
