"""What every step of one batch shares: its row, the calls begun in its name, what there is to tell of it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final, Literal

from msgspec.structs import replace

from shared.ids import JobId, new_event_id
from shared.lifecycle import Stage
from shared.models import BatchRun, Event, Job, JsonObject, Prompt
from shared.plan import teacher_plan
from shared.ports import Batcher
from shared.store.passes import Beginning, PassId, Settlement, TickResult
from worker.completions import Scribe
from worker.stages import Save, Tools
from worker.stages.batches.lines import BatchLimits

TOKEN: Final = "batch"  # noqa: S105  (the name under which chunks are claimed)
SETTLED_TOGETHER: Final = 200


@dataclass(frozen=True)
class Shortage:
    """What did not allow the next call: the budget, or what the tenant may spend today.  needs_nano: for that call."""

    of_day: bool
    needs_nano: int


class Look:
    """One look at all batches of a job.  quota_exhausted: an answer said so of the provider's credit."""

    def __init__(self, job: Job, tools: Tools, save: Save, limits: BatchLimits, *, price_list: str | None) -> None:
        plan = teacher_plan(job)
        self.job = job
        self.save = save
        self.limits = limits
        self.tools = tools
        self.provider = plan.provider
        self.pass_id = PassId(job.id, plan.name)
        self.passes = tools.store.passes
        self.content = tools.store.content
        self.followed = tools.store.followed
        self.settings = tools.settings
        self.scribe = Scribe(
            job,
            plan,
            tools.prices,
            price_list,
            secret=tools.settings.secret,
            day_limited=tools.store.day_limit(job.tenant) is not None,
        )
        self.runs = list(job.batches)
        self.events: list[Event] = []
        self.shortage: Shortage | None = None
        self.quota_exhausted = False

    @cached_property
    def batcher(self) -> Batcher:
        """Raises JobFailed where the provider is no longer configured."""
        return self.tools.providers.batcher(self.provider)


class BatchStep:
    """One batch of one job.  Every step writes the row, under the job's lease, before it asks anything of the
    provider."""

    def __init__(self, look: Look, number: int) -> None:
        self._look = look
        self._number = number
        self._job = look.job
        self._settings = look.settings
        self._scribe = look.scribe

    @property
    def _batcher(self) -> Batcher:
        return self._look.batcher

    @property
    def run(self) -> BatchRun:
        return self._look.runs[self._number]

    async def _open_prompts(self, first: int, end: int) -> AsyncIterator[tuple[int, dict[int, Prompt]]]:
        """(chunk, those of its prompts that are not settled, by index), one chunk in memory at a time."""
        size = self._job.chunk_size
        for chunk in range(first // size, -(-end // size)):
            settled = await self._look.passes.settled_indexes(self._look.pass_id, chunk)
            if len(settled) == size:
                continue
            prompts = await self._look.content.prompt_chunk(self._job.id, "source", chunk)
            numbered = enumerate(prompts, start=chunk * size)
            open_ = {i: prompt for i, prompt in numbered if first <= i < end and i not in settled}
            if open_:
                yield chunk, open_

    async def _begun(self) -> AsyncIterator[tuple[int, Prompt]]:
        """The prompts of this batch that are not settled, in order of index."""
        run = self.run
        async for _, open_ in self._open_prompts(run.first, run.end or self._job.counters.prompts_total):
            calls = await self._look.passes.lost_calls(self._look.pass_id, list(open_))
            for index, prompt in open_.items():
                if calls.get(index) == self._call(index):
                    yield index, prompt

    def _without_answer(self, index: int, fingerprint: str, *, lost_nano: int | None) -> Settlement:
        """lost_nano: the most the call can have cost; None when it is not billed."""
        chunk, call, lost = self._chunk(index), self._call(index), lost_nano is not None
        return Settlement(chunk, index, call, b"", lost_nano, "failed", lost, fingerprint=fingerprint)

    async def _let_go(self, *, lost: bool) -> None:
        """End the calls of this batch that nothing came of.  lost: they may be billed."""
        ended: list[Settlement] = []
        async for index, prompt in self._begun():
            cost = self._scribe.ceiling_nano(prompt, index) if lost else None
            ended.append(self._without_answer(index, self._scribe.fingerprint(prompt), lost_nano=cost))
            if len(ended) >= SETTLED_TOGETHER:
                await self._tick(ended, [])
                ended = []
        if ended:
            await self._tick(ended, [])

    async def _end(self, run: BatchRun) -> None:
        await self._keep(replace(run, step="ended", ended_at_ms=now_ms()))

    async def _keep(self, run: BatchRun, add: Mapping[str, int] = MappingProxyType({})) -> None:
        """Write the batch into the row, with what there is to tell and to add to the job's sums."""
        self._look.runs[self._number] = run
        await self._look.save({"batches": self._look.runs}, add=add, events=list(self._look.events))
        self._look.events.clear()

    async def _tick(self, settlements: list[Settlement], beginnings: list[Beginning]) -> TickResult:
        return await self._look.passes.tick(self._look.pass_id, self._job.tenant, TOKEN, settlements, beginnings)

    def _call(self, index: int) -> str:
        return call_id(self._job.id, self._number, index)

    def _chunk(self, index: int) -> int:
        return index // self._job.chunk_size

    def _say(
        self, what: str, data: JsonObject | None = None, *, level: Literal["info", "warn", "error"] = "info"
    ) -> None:
        self._look.events.append(
            Event(
                id=new_event_id(),
                level=level,
                type="message",
                message=f"Batch {self._number} {what}",
                created_at_ms=now_ms(),
                stage=Stage.GENERATING,
                data={"batch": self._number, "batch_id": self.run.batch_id, **(data or {})},
            )
        )


def call_id(job_id: JobId, number: int, index: int) -> str:
    """Of the call that one line of a batch is: unique, and told again from the row alone."""
    return f"{TOKEN}.{job_id}.{number}.{index}"


def now_ms() -> int:
    return time.time_ns() // 1_000_000
