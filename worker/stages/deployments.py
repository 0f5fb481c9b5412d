"""Where owners have deployed their students: taken up as told, and given back where no such model is found.

The evaluation's first calls are the probe: they are paid by the job's rules, and their answers are kept."""

from __future__ import annotations

from typing import Final, Literal

from msgspec.structs import replace

from shared.errors import ProviderModelMissing
from shared.ids import new_event_id
from shared.lifecycle import JobStatus, Stage
from shared.models import Event, FineTune, Job, JsonObject
from shared.plan import PassPlan, evaluation_plans, judge_plans
from shared.store.passes import Halt, PassId
from worker.outcomes import Wait
from worker.stages import Save, Tools
from worker.stages.student import now_ms

AWAITING: Final = "awaiting_deployment"
#: A bell for a job whose worker died before it looked again is noticed after so long.  It costs a read of the row.
AWAITING_SECONDS: Final = 3_600.0
_REPLACED: Final = Halt("fail", "replaced")


def is_told(job: Job) -> bool:
    """Whether the owner has said where a student answers, and no worker has taken it up yet."""
    return any(job.untaken_endpoint(number) is not None for number in range(len(job.fine_tunes)))


async def take_up(job: Job, number: int, tools: Tools) -> FineTune:
    """The student at the place that was told last.  Instead of another place, it begins a new round of the evaluation;
    the round before is stopped first, since no look would find it any more."""
    tune, told = job.fine_tunes[number], job.untaken_endpoint(number)
    if tune.endpoint is None:
        return replace(tune, endpoint=told)
    for plan in (*evaluation_plans(job), *judge_plans(job)):
        await tools.store.passes.halt(PassId(job.id, plan.name), _REPLACED)
    return replace(tune, endpoint=told, replaced=[*tune.replaced, tune.endpoint])


async def with_what_was_told(job: Job, tools: Tools, save: Save) -> Job:
    """The job at the places that its owner has told since the last look."""
    for number in range(len(job.fine_tunes)):
        if job.untaken_endpoint(number) is None:
            continue
        tunes = list(job.fine_tunes)
        tunes[number] = await take_up(job, number, tools)
        await save({"fine_tunes": tunes})
        job = replace(job, fine_tunes=tunes)
    return job


async def unless_found(job: Job, tools: Tools, save: Save) -> Wait | None:
    """Back to the owner with the students of whose deployments the provider says that there is no such model.

    None when nobody has said so."""
    tunes, events = list(job.fine_tunes), []
    for plan in evaluation_plans(job):
        if plan.priced_as is None or plan.student is None:
            continue  # no deployment
        state = await tools.store.passes.state(PassId(job.id, plan.name))
        if state is None or state.halt is None or state.halt.reason != ProviderModelMissing.code:
            continue
        waiting = replace(job.fine_tunes[plan.student], step="awaiting", status=AWAITING, ended_at_ms=None)
        tunes[plan.student] = waiting
        events.append(_not_found(job, plan, state.halt))
    if not events:
        return None
    training = JobStatus.RUNNING
    moved = _event("info", "status", "The job is training, and waits for a deployment.", {"status": training})
    await save(
        {"fine_tunes": tunes, "stage": Stage.TRAINING, "stage_attempts": 0},
        events=[*events, moved],
        notices=("job.stage_changed", "job.awaiting_deployment"),
    )
    return Wait(AWAITING_SECONDS)


def _not_found(job: Job, plan: PassPlan, halt: Halt) -> Event:
    """What the provider answered, in its codes: its sentences may quote the key."""
    answer = None if halt.error is None else halt.error.provider
    named = "base_model" if plan.role == "base" else "model"
    return _event(
        "warn",
        "message",
        f"Student {plan.student} does not answer: its provider knows no such `{named}`.  Tell with POST "
        f"/v1/jobs/{job.id}/students/{plan.student}/endpoint where it answers; what else was answered is kept.",
        {
            "student": plan.student,
            "status": AWAITING,
            "provider": plan.provider,
            named: plan.model,
            "code": halt.reason,
            "provider_status": answer and answer.status,
            "provider_code": answer and answer.code,
            "provider_request_id": answer and answer.request_id,
        },
    )


def _event(level: Literal["info", "warn"], kind: Literal["status", "message"], message: str, data: JsonObject) -> Event:
    return Event(
        id=new_event_id(),
        level=level,
        type=kind,
        message=message,
        created_at_ms=now_ms(),
        stage=Stage.TRAINING,
        data=data,
    )
