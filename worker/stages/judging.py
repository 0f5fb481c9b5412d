"""Asking a judge: its questions are written as a prompt set of their own, and answered by a pass like any other.

So ledger, budget, rate, retries and recovery are those of every call.  The questions follow from completions that never
change any more: whoever writes them again after a crash writes the same."""

from __future__ import annotations

from collections.abc import AsyncIterable

from shared.judge import score_in
from shared.models import Job, Prompt
from shared.plan import PassPlan
from shared.store.passes import PassId
from worker.stages import Tools


async def write_questions(job: Job, plan: PassPlan, questions: AsyncIterable[Prompt], tools: Tools) -> int:
    """How many there are.  The pass may be opened once this has returned, and not before."""
    chunk, count = 0, 0
    waiting: list[Prompt] = []

    async def write() -> None:
        nonlocal chunk, count
        await tools.store.content.put_prompt_chunk(job.id, plan.prompt_set, chunk, waiting)
        chunk, count = chunk + 1, count + len(waiting)
        waiting.clear()

    async for question in questions:
        waiting.append(question)
        if len(waiting) == job.chunk_size:
            await write()
    if waiting:
        await write()
    return count


async def questions_written(job: Job, plan: PassPlan, tools: Tools) -> int | None:
    """How many there are once the pass was opened, None before."""
    state = await tools.store.passes.state(PassId(job.id, plan.name))
    return None if state is None else state.prompts


async def replies_of_chunk(job: Job, plan: PassPlan, chunk: int, tools: Tools) -> list[tuple[int, float | None]]:
    """(place, score) of one chunk of questions, in their order; None for a reply that gives no score."""
    content = tools.store.content
    prompts = await content.prompt_chunk(job.id, plan.prompt_set, chunk)
    replies = await content.completion_chunk(job.id, plan.name, chunk)
    first = chunk * job.chunk_size
    return [(prompt.place or 0, score_in(replies.get(first + n))) for n, prompt in enumerate(prompts)]
