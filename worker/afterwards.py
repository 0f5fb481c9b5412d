"""What becomes of what was under way when its job ended.

Answers are stored and paid as they come.  Those of a worker that vanished never come, and no other takes its chunks
over: they are counted as lost once its lease has run out, at the most they can cost.  What is still
reserved then is nobody's, and may be billed as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import Final

import structlog

from shared.ids import JobId
from shared.lifecycle import TERMINAL
from shared.models import Job
from shared.plan import pass_sizes, plans, plans_once
from shared.pricing import Prices
from shared.settings import ProviderSettings
from shared.store import Store
from shared.store.jobs import Change
from shared.store.passes import PassId, Settlement
from worker.completions import Scribe

_log: Final = structlog.get_logger()
_COUNTED_TOGETHER: Final = 200


class Afterwards:
    """late_seconds: how long the answers of a worker that vanished are waited for."""

    def __init__(
        self, store: Store, prices: Prices, providers: Mapping[str, ProviderSettings], *, late_seconds: float
    ) -> None:
        self._store = store
        self._prices = prices
        self._providers = providers
        self._late_seconds = late_seconds

    async def look(self, job_id: JobId) -> None:
        """Count what is lost by now; the job stays due as long as a worker keeps a call of it."""
        job = await self._store.jobs.load(job_id)
        if job is None or job.status not in TERMINAL:
            await self._store.due.put("out", job_id, None)
            return
        waits: list[float] = []
        for name in pass_sizes(job):
            pass_id = PassId(job_id, name)
            lost, seconds = await self._store.passes.abandoned(pass_id, late_seconds=self._late_seconds)
            for start in range(0, len(lost), _COUNTED_TOGETHER):
                some = await self._priced(job, name, lost[start : start + _COUNTED_TOGETHER])
                await self._store.passes.tick(pass_id, job.tenant, "", some, [])
            if lost:
                _log.warning("calls_lost_with_their_worker", job_id=job_id, calls=len(lost))
            if seconds is not None:
                waits.append(seconds)
        if not waits:
            await self._let_go(job_id)
        await self._store.due.put("out", job_id, min(waits, default=None))

    async def _priced(self, job: Job, name: str, lost: Sequence[Settlement]) -> list[Settlement]:
        """With the most that each can cost, which counts where it had reserved nothing."""
        plan = next((plan for plan in (*plans(job), *plans_once(job)) if plan.name == name), None)
        provider = self._providers.get(plan.provider) if plan is not None else None
        if plan is None or provider is None:
            return [*lost]
        scribe = Scribe(job, plan, self._prices, provider.prices, secret=b"")
        priced: list[Settlement] = []
        by_chunk = attrgetter("chunk")
        for chunk, ended in groupby(sorted(lost, key=by_chunk), by_chunk):
            prompts = await self._store.content.prompt_chunk(job.id, plan.prompt_set, chunk)
            numbered = dict(enumerate(prompts, start=chunk * job.chunk_size))
            for call in ended:
                prompt = numbered.get(call.index)  # None: the job is deleted, its prompts are gone
                cost = None if prompt is None else scribe.ceiling_nano(prompt, call.index)
                priced.append(replace(call, cost_nano=cost))
        return priced

    async def _let_go(self, job_id: JobId) -> None:
        """No call is out any more, and none begins: nobody else moves what is reserved."""
        job = await self._store.jobs.load(job_id)
        if job is not None and (left := job.money.reserved_nano):
            await self._store.jobs.change(job, Change(add={"reserved_nano": -left, "unconfirmed_nano": left}))
