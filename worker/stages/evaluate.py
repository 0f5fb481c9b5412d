"""evaluating: base and distilled students answer the holdout, and every answer is graded against the reference."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from shared.curation import assistant_message
from shared.dataset import text_of
from shared.graders import parse_graders
from shared.models import Job, Prompt, StoredCompletion
from shared.plan import PassPlan, evaluation_plans
from shared.store.jobs import TEACHER
from shared.verdict import Answer, Contestant, HoldoutExample, assemble
from worker.outcomes import Done, Outcome, Wait
from worker.stages import Save, Tools
from worker.stages.generate import run_pass

_NO_ANSWER: Final = Answer(None)


async def evaluate(job: Job, tools: Tools, save: Save) -> Outcome:
    """One look at the evaluation's passes; the verdict once all are complete."""
    assert job.manifest is not None
    plans = evaluation_plans(job)
    pending: list[Wait] = []
    for plan in plans:
        outcome = await run_pass(job, plan, tools, prompts=job.manifest.holdout, smoke=0)
        if isinstance(outcome, Wait):
            pending.append(outcome)
        elif outcome is not None:
            return outcome
    if pending:
        return Wait(min(wait.seconds for wait in pending), progress=any(wait.progress for wait in pending))
    prompts = await _holdout(job, tools)
    holdout = [await _example(job, prompt, tools) for prompt in prompts]
    contestants = [
        Contestant(plan.role, plan.model, plan.student, await _answers(job, plan, len(prompts), tools))
        for plan in plans
    ]
    results = await asyncio.to_thread(
        assemble,
        holdout=holdout,
        contestants=contestants,
        graders=parse_graders(job.spec.evaluation.graders),
        teacher_model=job.spec.teacher.model,
        holdout_sha256=job.manifest.holdout_sha256,
        min_score=job.spec.evaluation.min_score,
    )
    return Done(results=results)


async def _holdout(job: Job, tools: Tools) -> list[Prompt]:
    content = tools.store.content
    chunks = range(await content.chunk_count(job.id, "holdout"))
    return [prompt for chunk in chunks for prompt in await content.prompt_chunk(job.id, "holdout", chunk)]


async def _example(job: Job, prompt: Prompt, tools: Tools) -> HoldoutExample:
    assert prompt.origin is not None
    chunk = prompt.origin // job.chunk_size
    teacher = await tools.store.content.completion(job.id, TEACHER, chunk, prompt.origin)
    return HoldoutExample(prompt.key, prompt.messages, prompt.reference, _answer(teacher))


async def _answers(job: Job, plan: PassPlan, count: int, tools: Tools) -> Sequence[Answer]:
    answers = [_NO_ANSWER] * count
    for chunk in range(-(-count // job.chunk_size)):
        for index, completion in (await tools.store.content.completion_chunk(job.id, plan.name, chunk)).items():
            answers[index] = _answer(completion)
    return answers


def _answer(completion: StoredCompletion | None) -> Answer:
    if completion is None or completion.status == "failed":
        return _NO_ANSWER
    message, _ = assistant_message(completion.raw)
    return Answer(text_of(message), completion.latency_ms, completion.cost_nano)
