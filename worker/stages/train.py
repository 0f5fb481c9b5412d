"""training: each student becomes a fine-tuned model, submitted exactly once and followed until it has ended."""

from __future__ import annotations

from msgspec.structs import replace

from shared.lifecycle import PausedReason, Stage
from shared.models import Event, FineTune, Job, JobError
from worker.outcomes import Done, Fail, Outcome, Pause, Stopped, Wait
from worker.stages import Save, Tools
from worker.stages.following import Following
from worker.stages.student import given_up, metadata, now_ms
from worker.stages.submission import LOOK_FOR_LOST_SECONDS, BudgetReached, Submission


async def train(job: Job, tools: Tools, save: Save) -> Outcome:
    """One step for every student that has not ended; done when all have."""
    hinted = await tools.store.followed.take_hint(job.id)
    tunes = list(job.fine_tunes)
    events: list[Event] = []
    waits: list[float] = []
    for number, tune in enumerate(tunes):

        async def keep(changed: FineTune, number: int = number) -> None:
            # Money moves in the same step as the record of it, so a crash neither loses nor doubles it.
            before, tunes[number] = tunes[number], changed
            spent = (changed.cost_nano or 0) - (before.cost_nano or 0)
            reserved = changed.reserved_nano - before.reserved_nano
            await save({"fine_tunes": tunes}, add={"spent_nano": spent, "reserved_nano": reserved}, events=list(events))
            events.clear()

        if tune.step == "ended":
            continue
        try:
            if tune.step == "submitted":
                wait = await Following(job, number, tools, keep, events).look(tune, hinted=hinted)
            else:
                wait = await Submission(job, number, tools, keep, events).advance(tune)
        except BudgetReached:
            return _budget_reached(job)
        if tunes[number].step != tune.step:
            await _wait_for(job, number, tunes[number], tools)
        if wait is not None:
            waits.append(wait)
    if waits:
        return Wait(min(waits), events=events)
    if any(tune.status == "succeeded" for tune in tunes):
        return Done(events=events)
    return Fail(next(tune.error for tune in tunes if tune.error is not None), events=events)


async def _wait_for(job: Job, number: int, tune: FineTune, tools: Tools) -> None:
    """The provider's events about this student's fine-tuning job are for this job, until it has ended."""
    provider, followed = job.spec.students[number].provider, tools.store.followed
    if tune.fine_tuning_job_id is None:
        return
    if tune.step == "ended":
        await followed.unfollow(provider, tune.fine_tuning_job_id)
    else:
        await followed.expect(provider, tune.fine_tuning_job_id, job.id)


def _budget_reached(job: Job) -> Outcome:
    if job.spec.budget.on_limit == "pause":
        return Pause(PausedReason.BUDGET)
    return Fail(
        JobError(
            code="cost_above_limit",
            message="Training could exceed the job's budget, and `budget.on_limit` is `fail`.  The dataset is kept; "
            "retry the job with a larger budget to reuse what was paid.",
            param="budget.max_cost_usd",
            stage=Stage.TRAINING,
        )
    )


async def cancel_training(job: Job, tools: Tools) -> Stopped | Wait:
    """Cancel what is being trained, and what a lost submission may have started: that one is waited for until it shows
    or cannot any more."""
    tunes = list(job.fine_tunes)
    for number, tune in enumerate(tunes):
        if tune.step not in {"intent", "submitted"}:
            continue
        trainer = tools.providers.trainer(job.spec.students[number].provider)
        ids = [tune.fine_tuning_job_id] if tune.fine_tuning_job_id else []
        if tune.step == "intent" and tune.training_file is not None:
            found = await trainer.find(metadata(job, number), tune.training_file, not_before=0)
            ids = [training.id for training in found]
            if not ids and not given_up(tune, tools):
                return Wait(LOOK_FOR_LOST_SECONDS, progress=False)
        for fine_tuning_job_id in ids:
            await trainer.cancel(fine_tuning_job_id)
        tunes[number] = replace(tune, step="ended", status="cancelled", ended_at_ms=now_ms(), reserved_nano=0)
        await _wait_for(job, number, tunes[number], tools)
    freed = sum(after.reserved_nano - before.reserved_nano for before, after in zip(job.fine_tunes, tunes, strict=True))
    return Stopped(set={"fine_tunes": tunes}, add={"reserved_nano": freed})
