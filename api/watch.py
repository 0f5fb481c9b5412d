"""Waiting for jobs to change: one poller per process for everybody who waits, however many they are.

A look at a job is three fields of its row.  Jobs are looked at every 50 ms while they change and every 500 ms while
they do not; their events are read once and handed to every stream."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import islice
from typing import Final, Protocol

import structlog

from shared.errors import StoreError, TooMany
from shared.ids import JobId, TenantId
from shared.lifecycle import TERMINAL
from shared.models import Event
from shared.store.jobs import Glance, JobStore

_log: Final = structlog.get_logger()
_FASTEST_SECONDS: Final = 0.05
_SLOWEST_SECONDS: Final = 0.5
_JOBS_PER_LOOK: Final = 500
_EVENTS_PER_READ: Final = 100
_EVENTS_REMEMBERED: Final = 200


class Watched:
    """A job that somebody waits for."""

    def __init__(self, job_id: JobId) -> None:
        self.job_id = job_id
        self.watchers = 0
        self.next_look_at = 0.0
        self.glance: Glance | None = None  # none before the first look
        self.gone = False
        self.changed = asyncio.Event()  # set, and replaced by a fresh one, when anything below is new
        self._every_seconds = _FASTEST_SECONDS
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=_EVENTS_REMEMBERED)
        self._reading = asyncio.Lock()

    @property
    def ended(self) -> bool:
        return self.gone or (self.glance is not None and self.glance.status in TERMINAL)

    def see(self, glance: Glance | None, now: float) -> None:
        if glance is None or glance != self.glance:
            self.glance, self.gone = glance, glance is None
            self._every_seconds = _FASTEST_SECONDS
            self.wake()
        else:
            self._every_seconds = min(self._every_seconds * 1.5, _SLOWEST_SECONDS)
        self.next_look_at = now + self._every_seconds

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def events_after(
        self, sequence: int, jobs: JobStore, frame: Callable[[Event], bytes]
    ) -> Sequence[tuple[int, bytes]]:
        """Some events later than `sequence`, in order, as (sequence, frame); none when there are none.

        Whoever follows closely is served from memory, whoever is far behind from the store."""
        last = self.glance.sequence if self.glance is not None else 0
        if sequence >= last:
            return ()
        async with self._reading:
            if not self._recent or sequence == self._recent[-1][0]:
                found = await jobs.events(self.job_id, after=sequence, limit=_EVENTS_PER_READ)
                self._recent += [(event.sequence, frame(event)) for event in found]
        if self._recent and self._recent[0][0] <= sequence + 1:
            return list(islice((kept for kept in self._recent if kept[0] > sequence), _EVENTS_PER_READ))
        return [
            (event.sequence, frame(event))
            for event in await jobs.events(self.job_id, after=sequence, limit=_EVENTS_PER_READ)
        ]


class Watcher:
    """Looks at the watched jobs of this process, over one connection."""

    def __init__(self, jobs: JobStore) -> None:
        self.jobs = jobs
        self.draining = False
        self._watched: dict[JobId, Watched] = {}
        self._poller: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    @asynccontextmanager
    async def watching(self, job_id: JobId) -> AsyncIterator[Watched]:
        watched = self._watched.setdefault(job_id, Watched(job_id))
        watched.watchers += 1
        self._wake.set()
        if self._poller is None or self._poller.done():
            self._poller = asyncio.get_running_loop().create_task(self._poll())
        try:
            yield watched
        finally:
            watched.watchers -= 1
            if not watched.watchers:
                self._watched.pop(job_id, None)

    async def until_ended(self, job_id: JobId, *, seconds: float, abandoned: Abandoned) -> None:
        """Returns once the job has ended, the time is over, or nobody listens any more."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        async with self.watching(job_id) as watched:
            while not (watched.ended or self.draining):
                left = deadline - loop.time()
                if left <= 0 or await abandoned():
                    return
                try:
                    await asyncio.wait_for(watched.changed.wait(), min(left, 1.0))
                except TimeoutError:
                    continue

    def drain(self) -> None:
        """The process is about to end: whoever waits is answered now."""
        self.draining = True
        self.wake()

    def wake(self) -> None:
        """Whoever waits looks up: what it may, or whether anybody listens, has changed."""
        for watched in self._watched.values():
            watched.wake()

    async def close(self) -> None:
        self.drain()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)

    async def _poll(self) -> None:
        clock = asyncio.get_running_loop().time
        while self._watched:
            self._wake.clear()
            due = [watched for watched in self._watched.values() if watched.next_look_at <= clock()]
            try:
                for start in range(0, len(due), _JOBS_PER_LOOK):
                    looked_at = due[start : start + _JOBS_PER_LOOK]
                    seen = await self.jobs.glances([watched.job_id for watched in looked_at])
                    for watched, glance in zip(looked_at, seen, strict=True):
                        watched.see(glance, clock())
            except StoreError:
                _log.warning("watcher_waits_for_store")
                await asyncio.sleep(_SLOWEST_SECONDS)
                continue
            soonest = min((watched.next_look_at for watched in self._watched.values()), default=0.0)
            try:
                # Jobs that come due within a few ms of each other share a look.
                await asyncio.wait_for(self._wake.wait(), max(soonest - clock(), 0.01))
            except TimeoutError:
                continue


class Abandoned(Protocol):
    async def __call__(self) -> bool: ...


class Slots:
    """How many may wait at once: in all, and of one tenant."""

    def __init__(self, *, most: int, most_per_tenant: int | None = None) -> None:
        self._most = most
        self._most_per_tenant = most if most_per_tenant is None else most_per_tenant
        self._taken: Counter[TenantId] = Counter()

    def free(self, tenant: TenantId) -> bool:
        return self._taken.total() < self._most and self._taken[tenant] < self._most_per_tenant

    @contextmanager
    def taken(self, tenant: TenantId) -> Iterator[None]:
        """Raises TooMany when none is free."""
        if not self.free(tenant):
            raise TooMany("Too many streams are open.  Close one, or read the events as a list.")
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]
