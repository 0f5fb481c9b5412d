"""Asking a judge: its questions are written as a prompt set of their own, and answered by a pass like any other.

So ledger, budget, rate, retries and recovery are those of every call.  The questions follow from completions that never
change any more: whoever writes them again after a crash writes the same."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from shared.curation import assistant_message
from shared.dataset import text_of
from shared.errors import ProviderError
from shared.graders import Ungradable
from shared.judge import judge_score
from shared.models import Job, Prompt, StoredCompletion
from shared.plan import PassPlan
from shared.store.passes import PassId
from worker.stages import Tools


async def write_questions(job: Job, plan: PassPlan, questions: Iterable[Prompt], tools: Tools) -> int:
    """How many there are.  The pass may be opened once this has returned, and not before."""
    left, count, chunk = iter(questions), 0, 0
    while some := list(islice(left, job.chunk_size)):
        await tools.store.content.put_prompt_chunk(job.id, plan.prompt_set, chunk, some)
        count, chunk = count + len(some), chunk + 1
    return count


async def questions_written(job: Job, plan: PassPlan, tools: Tools) -> int | None:
    """How many there are once the pass was opened, None before."""
    state = await tools.store.passes.state(PassId(job.id, plan.name))
    return None if state is None else state.prompts


async def scores_of_chunk(job: Job, plan: PassPlan, chunk: int, tools: Tools) -> dict[int, float]:
    """The scores that one chunk of questions has brought, by place.  A reply without one is left out."""
    content = tools.store.content
    prompts = await content.prompt_chunk(job.id, plan.prompt_set, chunk)
    replies = await content.completion_chunk(job.id, plan.name, chunk)
    scores: dict[int, float] = {}
    for index, prompt in enumerate(prompts, start=chunk * job.chunk_size):
        score = score_in(replies.get(index))
        if score is not None and prompt.place is not None:
            scores[prompt.place] = score
    return scores


def score_in(reply: StoredCompletion | None) -> float | None:
    if reply is None or reply.status == "failed":
        return None
    try:
        return judge_score(text_of(assistant_message(reply.raw)[0]))
    except (Ungradable, ProviderError):
        return None
