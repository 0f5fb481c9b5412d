"""evaluating: base and distilled students answer the holdout, and every answer is graded against the reference.

Judges are asked once all of them have answered, and tried on a few answers first.  A judge that cannot be asked at all,
or whose trial fails, ends no job: its rows are incomplete, as where single replies are missing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

from shared.completions import StoredCompletion
from shared.curation import assistant_message
from shared.dataset import text_of
from shared.errors import ProviderModelMissing
from shared.graders import ScoreModel, parse_graders
from shared.ids import new_event_id
from shared.judge import compared, comparisons
from shared.lifecycle import Stage
from shared.models import Event, Job, Prompt
from shared.plan import PassPlan, evaluation_plans, judge_plans, teacher_plans
from shared.store.passes import Halt, PassId
from shared.verdict import Answer, Contestant, HoldoutExample, Judged, Role, assemble, pairs_to_judge
from worker.outcomes import Done, Fail, Outcome, Wait
from worker.stages import Save, Tools
from worker.stages.deployments import unless_found, with_what_was_told
from worker.stages.generate import first_of, run_pass, run_passes
from worker.stages.judging import questions_written, replies_of_chunk, write_questions

_NO_ANSWER: Final = Answer(None)
_NO_FAULT_OF_THE_JUDGE: Final = "cost_above_limit"


@dataclass(frozen=True)
class _Answered:
    """The holdout with everything that was said about it."""

    holdout: list[HoldoutExample]
    contestants: list[Contestant]


async def evaluate(job: Job, tools: Tools, save: Save) -> Outcome:
    """One look at the evaluation's passes; the verdict once all are complete."""
    job = await with_what_was_told(job, tools, save)
    assert job.manifest is not None
    outcome = await run_passes(job, evaluation_plans(job), tools, prompts=job.manifest.holdout)
    if isinstance(outcome, Fail) and outcome.error.code == ProviderModelMissing.code:
        return await unless_found(job, tools, save) or outcome
    if outcome is not None:
        return outcome
    answered: _Answered | None = None
    pending: list[Wait] = []
    given_up: list[Event] = []
    for plan in judge_plans(job):
        asked = await questions_written(job, plan, tools)
        if asked is None:
            answered = answered or await _answered(job, tools)
            asked = await _write_questions(job, plan, answered, tools)
        outcome = await run_pass(job, plan, tools, prompts=asked, trial=True)
        if isinstance(outcome, Fail) and (halt := await _given_up(job, plan, tools)) is not None:
            given_up.append(_told(job, plan, halt))
        elif isinstance(outcome, Wait):
            pending.append(outcome)
        elif outcome is not None:
            return outcome
    if (wait := first_of(pending)) is not None:
        return wait
    answered = answered or await _answered(job, tools)
    results = await asyncio.to_thread(
        assemble,
        holdout=answered.holdout,
        contestants=answered.contestants,
        graders=parse_graders(job.spec.evaluation.graders),
        teacher_model=job.spec.teacher.model,
        holdout_sha256=job.manifest.holdout_sha256,
        min_score=job.spec.evaluation.min_score,
        judged=await _judged(job, answered, tools),
    )
    return Done(results=results, events=given_up)


# --- judges ----------------------------------------------------------------------------------------------------------


async def _write_questions(job: Job, plan: PassPlan, answered: _Answered, tools: Tools) -> int:
    pairs = pairs_to_judge(answered.holdout, answered.contestants)

    async def questions() -> AsyncIterator[Prompt]:
        for question in comparisons(pairs, answered.holdout, _judge(job, plan).prompt):
            yield question

    return await write_questions(job, plan, questions(), tools)


async def _given_up(job: Job, plan: PassPlan, tools: Tools) -> Halt | None:
    """Why this judge cannot be asked any more.  The halt stays, so that nobody asks it again."""
    state = await tools.store.passes.state(PassId(job.id, plan.name))
    halt = None if state is None else state.halt
    return halt if halt is not None and halt.kind == "fail" and halt.reason != _NO_FAULT_OF_THE_JUDGE else None


def _told(job: Job, plan: PassPlan, halt: Halt) -> Event:
    return Event(
        id=new_event_id(),
        level="warn",
        type="message",
        message=f"The judge of grader {plan.grader} was given up ({halt.reason}); its rows are incomplete."
        + (f"  {halt.error.message}" if halt.error else ""),
        created_at_ms=time.time_ns() // 1_000_000,
        stage=Stage.EVALUATING,
        data={"grader": plan.grader, "code": halt.reason},
    )


async def _judged(job: Job, answered: _Answered, tools: Tools) -> Judged:
    judged: dict[str, Sequence[Sequence[float | None]]] = {}
    pairs = pairs_to_judge(answered.holdout, answered.contestants)
    for plan in judge_plans(job):
        grader = _judge(job, plan)
        scores: dict[int, float] = {}
        for chunk in range(await tools.store.content.chunk_count(job.id, plan.prompt_set)):
            replies = await replies_of_chunk(job, plan, chunk, tools)
            scores |= {place: score for place, score in replies if score is not None}
        judged[grader.name] = compared(
            pairs, scores, grader.prompt, rows=1 + len(answered.contestants), examples=len(answered.holdout)
        )
    return judged


def _judge(job: Job, plan: PassPlan) -> ScoreModel:
    assert plan.grader is not None
    return cast("ScoreModel", parse_graders(job.spec.evaluation.graders)[plan.grader])


# --- what was answered -----------------------------------------------------------------------------------------------


async def _answered(job: Job, tools: Tools) -> _Answered:
    prompts = await _holdout(job, tools)
    holdout = [await _example(job, prompt, tools) for prompt in prompts]
    contestants = [
        Contestant(cast("Role", plan.role), plan.model, plan.student, await _answers(job, plan, len(prompts), tools))
        for plan in evaluation_plans(job)
    ]
    return _Answered(holdout, contestants)


async def _holdout(job: Job, tools: Tools) -> list[Prompt]:
    content = tools.store.content
    chunks = range(await content.chunk_count(job.id, "holdout"))
    return [prompt for chunk in chunks for prompt in await content.prompt_chunk(job.id, "holdout", chunk)]


async def _example(job: Job, prompt: Prompt, tools: Tools) -> HoldoutExample:
    assert prompt.origin is not None
    chunk = prompt.origin // job.chunk_size
    teacher = await tools.store.content.completion(job.id, teacher_plans(job)[prompt.sample].name, chunk, prompt.origin)
    return HoldoutExample(prompt.key, prompt.messages, prompt.reference, _answer(teacher), prompt.origin)


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
