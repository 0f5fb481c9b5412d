"""Looking at many fine-tuning jobs of one provider with few requests.

One worker reads pages of the provider's list and writes down what it met; all others read that.  So the requests per
interval grow with the pages and not with the jobs.  Where little is due, a job is retrieved by itself: that is cheaper
than a page, and it is the way out for whatever the list does not show (deleted, too new for it, in another order).

Rows stay the truth: what is lost here, a lock or an entry, costs a further request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import structlog

from shared.errors import ProviderModelMissing, ProviderRejected
from shared.ids import JobId
from shared.ports import Trainer, TrainingJob, TrainingPage
from shared.store.followed import Entry, FollowedStore, Pace, Sight

_log: Final = structlog.get_logger()

ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
_FRESH: Final = 0.95  # of the time between two looks: a reading that old serves the next look too
_DUE: Final = 0.7  # of that time: a reading is worth renewing when the list is read anyway
_BEARABLE: Final = 3.0  # of that time: good enough while somebody else reads
_PAGES_MAX: Final = 100
_READING_MS: Final = 5_000  # a reader that is dead for so long is not waited for
_MOMENT_SECONDS: Final = 0.3
_FORGOTTEN_MS: Final = 86_400_000  # not looked at for so long, it is not followed


@dataclass(frozen=True)
class Look:
    """later: another worker is reading the list; look again in a moment.  job: None when the provider does not know
    it.  followed: fine-tuning jobs at this provider."""

    job: TrainingJob | None
    followed: int
    later: bool = False


# --- pure parts ------------------------------------------------------------------------------------------------------


def way(sight: Sight, *, every_ms: int, list_from: int, hinted: bool) -> Literal["board", "retrieve", "list"]:
    """Where to look.  every_ms: between two looks.  hinted: the provider has told of a change, so what was read before
    counts no more.  Who is new begins with a request of its own."""
    if hinted or sight.new or not sight.has_list or sight.followed < list_from:
        return "retrieve"
    if sight.entry is None or sight.now_ms - sight.entry.read_at_ms >= _FRESH * every_ms:
        return "list"
    return "board" if sight.entry.job is not None else "retrieve"


def due(followed: Mapping[str, Pace], board: Mapping[str, Entry], now_ms: int) -> dict[str, Pace]:
    """What is worth reading now: whatever will be asked for before long."""
    found = {}
    for id_, pace in followed.items():
        entry = board.get(id_)
        if entry is None or now_ms - entry.read_at_ms >= _DUE * pace.every_ms:
            found[id_] = pace
    return found


def read_on(page: TrainingPage, *, pages: int, met: int, unmet: Sequence[Pace], wanted: int, list_from: int) -> bool:
    """Whether a further page may show what is still wanted, for less than retrieving it.

    pages: read so far.  met: of the wanted, on this page.  wanted: at the beginning."""
    if not unmet or not page.more or not page.jobs or pages >= min(_PAGES_MAX, wanted):
        return False
    if max(job.created_at for job in page.jobs) < min(pace.since for pace in unmet):
        return False  # newest first, so nothing older is wanted; in another order, there is no telling
    return met > 0 or len(unmet) >= list_from


# --- the shell -------------------------------------------------------------------------------------------------------


class Noticeboard:
    """job_id: whose fine-tuning jobs are looked at.  list_from: as many that are due are read by pages; fewer are
    retrieved one by one."""

    def __init__(self, store: FollowedStore, provider: str, trainer: Trainer, job_id: JobId, *, list_from: int) -> None:
        self._store = store
        self._job_id = job_id
        self._provider = provider
        self._trainer = trainer
        self._list_from = list_from

    async def look(self, id_: str, *, since: int, every_seconds: float, hinted: bool = False) -> Look:
        """One fine-tuning job as it stands.  since: it was not created before (unix s).

        Raises a `ProviderError` when the provider was asked and gave no usable answer."""
        every_ms = int(every_seconds * 1000)
        sight = await self._store.look(self._provider, id_, self._job_id, since=since, every_ms=every_ms)
        match way(sight, every_ms=every_ms, list_from=self._list_from, hinted=hinted):
            case "board":
                assert sight.entry is not None
                return Look(sight.entry.job, sight.followed)
            case "retrieve":
                return await self._retrieve(id_, sight)
        if not await self._store.begin_reading(self._provider, for_ms=_READING_MS):
            return await self._read_by_another(id_, sight, every_ms)
        try:
            entry = await self._read(id_, sight.now_ms)
        finally:
            await self._store.end_reading(self._provider)
        if entry is None or entry.job is None:
            return await self._retrieve(id_, sight)
        return Look(entry.job, sight.followed)

    async def _retrieve(self, id_: str, sight: Sight) -> Look:
        job = await self._trainer.poll(id_)
        if job is not None and sight.followed >= self._list_from:
            await self._store.post(self._provider, {id_: Entry(sight.now_ms, job)})
        return Look(job, sight.followed)

    async def _read_by_another(self, id_: str, sight: Sight, every_ms: int) -> Look:
        entry = sight.entry
        if entry is None or sight.now_ms - entry.read_at_ms >= _BEARABLE * every_ms:
            await asyncio.sleep(_MOMENT_SECONDS)
            entry = await self._store.entry(self._provider, id_)
            if entry is not None and entry.read_at_ms < sight.now_ms - every_ms:
                entry = None
        if entry is None:
            return Look(None, sight.followed, later=True)
        if entry.job is None:
            return await self._retrieve(id_, sight)
        return Look(entry.job, sight.followed)

    async def _read(self, id_: str, now_ms: int) -> Entry | None:
        """Read the list as far as it pays, and post what was met.  The entry of this job; None when it was not worth
        the pages."""
        followed, board = await self._store.all(self._provider)
        forgotten = [other for other, pace in followed.items() if now_ms - pace.seen_at_ms > _FORGOTTEN_MS]
        await self._store.forget(self._provider, forgotten)
        for other in forgotten:
            del followed[other]
        wanted = due(followed, board, now_ms)
        if len(wanted) < self._list_from:
            return None
        unmet, ended, found = dict(wanted), [], dict[str, Entry]()
        started, pages, after = time.monotonic(), 0, None
        while True:
            read_at_ms = now_ms + int((time.monotonic() - started) * 1000)
            try:
                page = await self._trainer.page(after=after)
            except (ProviderRejected, ProviderModelMissing):
                _log.warning("fine_tuning_jobs_not_listed", provider=self._provider)
                await self._store.has_no_list(self._provider)
                return None
            pages += 1
            met = {job.id: Entry(read_at_ms, job) for job in page.jobs if job.id in followed}
            await self._store.post(self._provider, met)
            await self._store.go_on_reading(self._provider, for_ms=_READING_MS)
            found |= met
            ended += [job.id for job in page.jobs if job.id in followed and job.state in ENDED]
            wanted_here = [other for other in met if unmet.pop(other, None) is not None]
            if not read_on(
                page,
                pages=pages,
                met=len(wanted_here),
                unmet=list(unmet.values()),
                wanted=len(wanted),
                list_from=self._list_from,
            ):
                break
            after = page.jobs[-1].id
        absent = Entry(now_ms + int((time.monotonic() - started) * 1000), None)
        await self._store.post(self._provider, dict.fromkeys(unmet, absent))
        await self._store.nudge(self._provider, [other for other in ended if other != id_])
        return found.get(id_, absent)
