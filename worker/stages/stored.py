"""Reading the completions that a provider stores, before the teacher's pass: each becomes a prompt with its answer.

A chunk is written, then the place behind its last completion is saved: after a crash the chunk is written again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Final

from msgspec.structs import replace

from shared.errors import JobDeleted, JobFailed, NotFound, ProviderUnavailable
from shared.ids import JobId, TenantId, is_id, new_event_id
from shared.lifecycle import JobStatus
from shared.models import Event, Import, Job, JobError, JsonObject, Prompt
from shared.ports import ArchivedCompletion, CompletionArchive
from shared.prompts import read_prompt
from worker.outcomes import Fail, Outcome, Wait
from worker.stages import Save, Tools

OPERATOR: Final = TenantId("local")  # the tenant of the admin key, whose account at the provider it is
_SLICE_SECONDS: Final = 20.0  # of reading, before the engine looks at deadline and owner again
_READS_MAX: Final = 8  # at the same time


async def read_stored(job: Job, tools: Tools, save: Save) -> Outcome | None:
    """None once all are read."""
    state = job.imported or Import()
    reader: _Reader | None = None
    until = time.monotonic() + _SLICE_SECONDS
    while not state.complete:
        [seen] = await tools.store.jobs.glances([job.id])
        if time.monotonic() > until or seen is None or seen.status is not JobStatus.RUNNING:
            return Wait(0.0)
        reader = reader or _Reader(job, tools)
        state, prompts = await reader.chunk(state)
        if prompts:
            await tools.store.content.put_prompt_chunk(job.id, "source", state.chunks - 1, prompts)
        told = [_event(job, state)] if state.complete else []
        await save({"imported": state, "prompts_total": state.prompts}, events=told)
        if state.complete and state.prompts:
            return Wait(0.0)  # the job is loaded anew, with the number of its prompts
    if state.prompts:
        return None
    return Fail(
        JobError(
            code="too_few_accepted",
            message="The provider stores no completion of this model under this metadata that is yours to read.",
            param="source.metadata",
            stage=job.stage,
        )
    )


class _Reader:
    def __init__(self, job: Job, tools: Tools) -> None:
        stored = job.spec.stored
        assert stored is not None
        archive = tools.providers.archive(stored.provider)
        if archive is None:
            raise JobFailed(
                "The provider is no longer configured to keep completions.  Ask the operator, then retry the job.",
                code="provider_unavailable",
                retryable=True,
            )
        self._job = job
        self._store = tools.store
        self._archive: CompletionArchive = archive
        self._model = stored.model or job.spec.teacher.model
        self._metadata = stored.metadata
        self._most = tools.settings.file_max_prompts
        self._owned: dict[str, bool] = {}
        self._reads = asyncio.Semaphore(_READS_MAX)

    async def chunk(self, state: Import) -> tuple[Import, list[Prompt]]:
        """The prompts of the next chunk, and where reading stands behind it."""
        prompts: list[Prompt] = []
        skipped = Counter(state.skipped)
        room = min(self._job.chunk_size, self._most - state.prompts)
        after, more, seen = state.after, True, {state.after}
        while more and len(prompts) < room:
            page = await self._archive.page(self._model, self._metadata, after=after)
            # No more than there is room for, so that no answer is read twice.
            some = page.completions[: room - len(prompts)]
            more = bool(some) and (page.more or len(some) < len(page.completions))
            if any(found.id in seen for found in some):
                raise ProviderUnavailable("The provider lists a completion twice.", provider_code="malformed_answer")
            seen.update(found.id for found in some)
            for found in await asyncio.gather(*map(self._prompt, some)):
                if isinstance(found, Prompt):
                    prompts.append(found)
                else:
                    skipped[found] += 1
            after = some[-1].id if some else after
        total = state.prompts + len(prompts)
        complete = not more or total >= self._most
        chunks = state.chunks + bool(prompts)
        return Import(after=after, chunks=chunks, prompts=total, skipped=dict(skipped), complete=complete), prompts

    async def _prompt(self, stored: ArchivedCompletion) -> Prompt | str:
        """The completion as a prompt with its answer, or why it is left out."""
        if any(stored.metadata.get(name) != value for name, value in self._metadata.items()):
            return "other_metadata"  # not every server filters
        if not await self._is_ours(stored.metadata.get("distillation_job")):
            return "foreign"
        async with self._reads:
            messages = await self._archive.messages(stored.id)
        if messages is None:
            return "gone"
        if len(messages) > 1 and _same(messages[-1], stored.message):
            messages = messages[:-1]  # a server may list the answer with what it answers
        value = {
            "key": stored.id,
            "messages": messages,
            "tools": stored.tools,
            "response_format": stored.response_format,
            "completion": stored.message,
        }
        prompt = read_prompt(value)
        if not isinstance(prompt, Prompt):
            return "unusable"
        return replace(prompt, finish_reason=stored.finish_reason)

    async def _is_ours(self, job_id: str | None) -> bool:
        """All tenants share the operator's account: what a job has stored is for its own tenant alone, and what no job
        of ours has stored is the operator's."""
        if job_id is None:
            return self._job.tenant == OPERATOR
        if job_id not in self._owned:
            self._owned[job_id] = is_id("job", job_id) and await self._own_job(JobId(job_id))
        return self._owned[job_id]

    async def _own_job(self, job_id: JobId) -> bool:
        try:
            await self._store.jobs.version(self._job.tenant, job_id)
        except NotFound:
            return False
        except JobDeleted:
            return True
        return True


def _same(message: JsonObject, answer: JsonObject) -> bool:
    return message.get("role") == "assistant" and message.get("content") == answer.get("content") is not None


def _event(job: Job, state: Import) -> Event:
    left_out = sum(state.skipped.values())
    return Event(
        id=new_event_id(),
        level="warn" if left_out else "info",
        type="message",
        message=f"{state.prompts:,} stored completions were read, {left_out:,} left out.",
        created_at_ms=time.time_ns() // 1_000_000,
        stage=job.stage,
        data={"read": state.prompts, "left_out": state.skipped},
    )
