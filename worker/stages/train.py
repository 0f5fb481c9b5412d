"""training: each student becomes a fine-tuned model, submitted exactly once and followed until it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final, TypeVar

import structlog

from shared.errors import JobFailed, ProviderError, ProviderUnavailable, StoreError
from shared.lifecycle import PausedReason, Stage
from shared.models import Event, FineTune, Job, JobError, usd
from worker.outcomes import Done, Fail, Outcome, Pause, Stopped, Wait
from worker.stages import Save, Tools
from worker.stages.following import Following
from worker.stages.holding import Holding
from worker.stages.landing import Landing
from worker.stages.stopping import Stopping
from worker.stages.student import LOOK_FOR_LOST_SECONDS, StudentStep, given_up
from worker.stages.submission import BudgetReached, Submission

Step = TypeVar("Step", bound=StudentStep)
_log: Final = structlog.get_logger()
_NOTHING_SECONDS: Final = 3600.0  # until the next look when nothing is at the provider


class _Students:
    """The students of one job during one look: their records, and what there is to tell of them."""

    def __init__(self, job: Job, tools: Tools, save: Save) -> None:
        self._job = job
        self._tools = tools
        self._save = save
        self.tunes = list(job.fine_tunes)
        self.events: list[Event] = []

    def step(self, kind: type[Step], number: int) -> Step:
        async def keep(changed: FineTune) -> None:
            # Money moves in the same step as the record of it, so a crash neither loses nor doubles it.
            before, self.tunes[number] = self.tunes[number], changed
            money = _moved([before], [changed])
            notices = ("job.awaiting_deployment",) if changed.step == "awaiting" != before.step else ()
            await self._save({"fine_tunes": self.tunes}, add=money, events=list(self.events), notices=notices)
            self.events.clear()
            if changed.step != before.step:
                await _wait_for(self._job, number, changed, self._tools)

        return kind(self._job, number, self._tools, keep, self.events)


async def train(job: Job, tools: Tools, save: Save) -> Outcome:
    """One step for every student that has not ended; done when all have."""
    hinted = await tools.store.followed.take_hint(job.id)
    students = _Students(job, tools, save)
    waits: list[float] = []
    for number, tune in enumerate(job.fine_tunes):
        if tune.step == "ended" and job.untaken_endpoint(number) is None:
            continue
        try:
            if tune.step == "submitted":
                resumed = await students.step(Holding, number).resume(tune)
                wait = await students.step(Following, number).look(resumed, hinted=hinted)
            elif tune.step in {"awaiting", "ended"}:
                wait = await students.step(Landing, number).await_endpoint()
            else:
                wait = await students.step(Submission, number).advance(tune)
        except BudgetReached as reached:
            return _budget_reached(job, reached.needs_nano, students.events)
        if wait is not None:
            waits.append(wait)
    tunes, events = students.tunes, students.events
    if waits:
        return Wait(min(waits), events=events)
    if any(tune.status == "succeeded" for tune in tunes):
        return Done(events=events)
    return Fail(next(tune.error for tune in tunes if tune.error is not None), events=events)


async def train_while_paused(job: Job, tools: Tools, save: Save) -> Wait | None:
    """One look at what is at the provider while the job waits for its owner; None when nothing is.

    The owner's pause reaches the provider; a pause for money does not: what trains will be paid either way.  Nothing
    new is submitted, ends are noticed, and trouble with the provider does not fail a job that waits."""
    hinted = await tools.store.followed.take_hint(job.id)
    students = _Students(job, tools, save)
    waits: list[float] = []
    for number in range(len(job.fine_tunes)):
        try:
            wait = await _look_while_paused(job, number, students, tools, hinted=hinted)
        except ProviderError as error:
            _log.warning("provider_failed_while_paused", code=error.code, provider_code=error.provider_code)
            wait = max(tools.settings.poll_max_seconds, error.retry_after_seconds or 0.0)
        if wait is not None:
            waits.append(wait)
    if not waits and not students.events:
        return None
    return Wait(min(waits, default=_NOTHING_SECONDS), events=students.events)


async def _look_while_paused(job: Job, number: int, students: _Students, tools: Tools, *, hinted: bool) -> float | None:
    tune = students.tunes[number]
    if tune.step == "intent":
        tune = await students.step(Holding, number).adopt(tune)
        if tune.step == "intent":
            return None if given_up(tune, tools) else LOOK_FOR_LOST_SECONDS
    if tune.step != "submitted":
        return None
    if job.paused_reason is PausedReason.REQUESTED:
        tune = await students.step(Holding, number).pause(tune)
    return await students.step(Following, number).look(tune, hinted=hinted, slowly=True)


async def _wait_for(job: Job, number: int, tune: FineTune, tools: Tools) -> None:
    """The provider's events about this student's fine-tuning job are for this job, until it has ended."""
    provider, followed = job.spec.students[number].provider, tools.store.followed
    if tune.fine_tuning_job_id is None:
        return
    if tune.step in {"awaiting", "ended"}:
        await followed.unfollow(provider, tune.fine_tuning_job_id)
    else:
        await followed.expect(provider, tune.fine_tuning_job_id, job.id)


def _budget_reached(job: Job, needs_nano: int, events: Sequence[Event]) -> Outcome:
    if job.spec.budget.on_limit == "pause":
        return Pause(PausedReason.BUDGET, events, needs_nano=needs_nano)
    return Fail(
        JobError(
            code="cost_above_limit",
            message=f"Training may cost up to {usd(needs_nano)} dollars, more than is left of the job's budget, and "
            "`budget.on_limit` is `fail`.  The dataset is kept; retry the job with a larger budget to reuse what was "
            "paid.",
            param="budget.max_cost_usd",
            stage=Stage.TRAINING,
        ),
        events,
    )


async def cancel_training(job: Job, tools: Tools, save: Save) -> Stopped | Wait:
    """Stop what is being trained, and what a lost submission may have started: that one is waited for until it shows or
    cannot any more.

    Where nothing is waited for, the record, the money and the end of the job are one step, and after a crash before it
    everything is asked again.  save: keeps what is stopped while something else is not, so that it is not asked again
    and again, of a provider that may know less by then.  Raises ProviderError once every provider was asked."""
    ending, waits, failed = _Ending(job, tools), list[float](), list[ProviderError]()
    for number, tune in enumerate(job.fine_tunes):
        try:
            wait = await ending.step(number).stop(tune)
        except ProviderError as error:
            failed.append(error)
        except JobFailed as error:  # its provider is no longer configured: an operator may yet mend that
            failed.append(ProviderUnavailable(str(error)))
        else:
            waits += [] if wait is None else [wait]
    stopped = await ending.outcome()
    if not waits and not failed:
        return stopped
    if ending.tunes != job.fine_tunes:
        await save(stopped.set, add=stopped.add, events=stopped.events)
    if failed:
        raise failed[0]
    return Wait(min(waits), progress=False)


async def leave_training(job: Job, tools: Tools) -> Stopped:
    """A provider would not stop what is being trained, or not tell of it.  The job ends all the same, with what that
    may cost in its books; what others have stopped is accounted for as ever."""
    ending = _Ending(job, tools)
    for number, tune in enumerate(job.fine_tunes):
        with suppress(JobFailed):  # its provider is no longer configured, so it has no price either
            step = ending.step(number)
            try:
                is_out = await step.stop(tune) is not None
            except StoreError:
                raise
            except Exception:  # noqa: BLE001  # a provider is away, or a defect of ours: the job ends
                is_out = True
            if is_out:
                await step.leave(tune)
    return await ending.outcome()


class _Ending:
    """The students of a job that ends without them: their records, to be written in the step that ends it."""

    def __init__(self, job: Job, tools: Tools) -> None:
        self._job = job
        self._tools = tools
        self._events: list[Event] = []
        self.tunes = list(job.fine_tunes)

    def step(self, number: int) -> Stopping:
        async def keep(changed: FineTune) -> None:
            self.tunes[number] = changed

        return Stopping(self._job, number, self._tools, keep, self._events)

    async def outcome(self) -> Stopped:
        for number, (before, after) in enumerate(zip(self._job.fine_tunes, self.tunes, strict=True)):
            if after.step != before.step:
                await _wait_for(self._job, number, after, self._tools)
        return Stopped(
            set={"fine_tunes": self.tunes}, add=_moved(self._job.fine_tunes, self.tunes), events=self._events
        )


def _moved(before: Sequence[FineTune], after: Sequence[FineTune]) -> dict[str, int]:
    """What the job's sums grow by when its students change so."""

    def total(tunes: Sequence[FineTune], field: str) -> int:
        return sum(getattr(tune, field) or 0 for tune in tunes)

    fields = {"spent_nano": "cost_nano", "reserved_nano": "reserved_nano", "unconfirmed_nano": "unconfirmed_nano"}
    return {of_job: total(after, of_tune) - total(before, of_tune) for of_job, of_tune in fields.items()}
