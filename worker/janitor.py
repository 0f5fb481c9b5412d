"""Purging: jobs that their owner deleted, and jobs whose retention has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import structlog

from shared.deletion import mark_deleted
from shared.errors import Conflict, StoreError
from shared.ids import JobId
from shared.lifecycle import TERMINAL
from shared.models import Job
from shared.plan import pass_sizes, plans, plans_once
from shared.pricing import Prices
from shared.settings import ProviderSettings
from shared.store import Store
from worker.completions import Scribe

_log: Final = structlog.get_logger()


class Janitor:
    """secret: the one under which completions were entered into the ledger.  lease_seconds: a worker that vanishes in
    the middle of a purge is noticed after so long."""

    def __init__(
        self,
        store: Store,
        prices: Prices,
        providers: Mapping[str, ProviderSettings],
        *,
        secret: bytes,
        lease_seconds: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._prices = prices
        self._providers = providers
        self._secret = secret
        self._lease_seconds = lease_seconds
        self._clock = clock

    async def purge(self, job_id: JobId) -> None:
        """Purge a job if its time has come.  Broken off anywhere, it is rung for again and begins anew."""
        job = await self._store.jobs.load(job_id)
        if job is None:
            await self._store.purging.not_due(job_id)
        elif await self._store.purging.begin(job_id, lease_seconds=self._lease_seconds):
            going_on = asyncio.create_task(self._go_on(job_id))
            try:
                await self._purge(job)
            finally:
                going_on.cancel()
                await self._store.purging.end(job_id)

    async def _go_on(self, job_id: JobId) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / 6)
            with suppress(StoreError):
                await self._store.purging.go_on(job_id, lease_seconds=self._lease_seconds)

    async def _purge(self, job: Job) -> None:
        job_id = job.id
        if not await self._store.purging.is_marked(job_id):
            if not self._expired(job):
                return
            try:
                await mark_deleted(self._store, job, delete_models=False, now_ms=int(self._clock() * 1000))
            except Conflict:
                return
        chunks = await self._store.content.chunk_count(job_id, "source")
        await self._forget_paid(job)
        if job.spec.file_id is not None and (file := await self._store.files.load(job.spec.file_id)) is not None:
            await self._store.files.release(file, job_id)
        passes = {name: max(chunks, -(-size // job.chunk_size)) for name, size in pass_sizes(job).items()}
        purged = await self._store.purging.purge(job, passes=passes)
        await self._store.purging.bury(job_id, purged)
        _log.info("job_purged", job=job_id, completions=purged.completions)

    def _expired(self, job: Job) -> bool:
        ends = job.expires_at_ms
        return job.status in TERMINAL and ends is not None and ends <= self._clock() * 1000

    async def _forget_paid(self, job: Job) -> None:
        """The ledger is keyed by what was asked, so what was asked is read once more."""
        for plan in (*plans(job), *plans_once(job)):
            provider = self._providers.get(plan.provider)
            scribe = Scribe(job, plan, self._prices, provider.prices if provider else None, secret=self._secret)
            of_set = await self._store.content.chunk_count(job.id, plan.prompt_set)
            for chunk in range(of_set):
                prompts = await self._store.content.prompt_chunk(job.id, plan.prompt_set, chunk)
                fingerprints = [scribe.fingerprint(prompt) for prompt in prompts]
                await self._store.purging.forget_paid(job.tenant, job.id, fingerprints)
