"""Moves one job at a time: takes its lease, lets its stage decide, writes the outcome, lets go.

Rung twice, the second finds no lease to take and returns.  Killed anywhere, the lease runs out and the due clock calls
another worker, which finds in the row how far it had come."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final

import structlog

from shared.errors import JobFailed, NewerVersion, ProviderError, ProviderQuotaExhausted, StoreError
from shared.ids import JobId, new_event_id
from shared.lifecycle import TERMINAL, JobStatus, PausedReason, Stage
from shared.models import Event, Job, JobError, usd
from shared.notices import Notices
from shared.plan import phases, plans
from shared.store.jobs import Change, Lease, Refused
from shared.store.passes import PassId
from shared.webhook_records import Delivery
from worker.completions import job_error
from worker.outcomes import Done, Fail, Outcome, Pause, Resume, Stopped, Wait
from worker.stages import LeaseLost, Save, StageStep, Tools
from worker.stages.batches.rounds import leave_batches, stop_batches
from worker.stages.curate import curate
from worker.stages.deployments import is_told
from worker.stages.evaluate import evaluate
from worker.stages.generate import generate
from worker.stages.train import cancel_training, leave_training, train, train_while_paused

_log: Final = structlog.get_logger()

STEPS: Final[Mapping[Stage, StageStep]] = {
    Stage.GENERATING: generate,
    Stage.CURATING: curate,
    Stage.TRAINING: train,
    Stage.EVALUATING: evaluate,
}
_TIMED: Final = {JobStatus.RUNNING, JobStatus.PAUSED}  # a queued job is taken first, and fails then
_TOLD_AT_PERCENT: Final = 80
_DAY_MS: Final = 86_400_000
_MESSAGES: Final = {
    JobStatus.SUCCEEDED: "The job has succeeded.",
    JobStatus.CANCELLED: "The job is cancelled.",
    JobStatus.RUNNING: "A worker has taken the job.",
}


class SpentOut(Exception):
    """What was to be reserved is more than the tenant may spend today."""

    def __init__(self, needs_nano: int) -> None:
        super().__init__()
        self.needs_nano = needs_nano


class StatusChanged(Exception):
    """The job's owner has moved it meanwhile (cancel, pause); what was decided before no longer fits."""


class Engine:
    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._jobs = tools.store.jobs
        self._settings = tools.settings
        self._notices = Notices(tools.store)

    async def advance(self, job_id: JobId) -> None:
        """Move the job as far as it goes now: until it waits, ends, or is another's."""
        await self._advance(job_id)
        if await self._bell_was_missed(job_id):
            await self._advance(job_id)

    async def _bell_was_missed(self, job_id: JobId) -> bool:
        """Whether a pass ended, or a provider told of a change, while this worker decided to wait for it: the bell
        found the lease held."""
        try:
            job = await self._jobs.load(job_id)
            if job is None or job.status not in _TIMED or job.stage_attempts:
                return False
            if job.stage in {Stage.TRAINING, Stage.EVALUATING} and is_told(job):
                return job.status is JobStatus.RUNNING
            if job.stage is Stage.TRAINING or (job.stage is Stage.GENERATING and job.batches):
                return await self._tools.store.followed.is_hinted(job_id)
            if job.status is not JobStatus.RUNNING:
                return False
            for phase in reversed(phases(job)):
                states = [await self._tools.store.passes.state(PassId(job_id, plan.name)) for plan in phase]
                if any(states):
                    return any(s and s.halt for s in states) or all(s and s.complete for s in states)
        except StoreError:
            pass
        return False

    async def _advance(self, job_id: JobId) -> None:
        lease = await self._jobs.claim(job_id, lease_seconds=self._settings.lease_seconds)
        if lease is None:
            return
        with structlog.contextvars.bound_contextvars(job_id=job_id, fence=lease.fence):
            async with self._kept(lease):
                if lease.takeovers:
                    # Whoever held it may still be handing in answers: what is stored is read after they had time to.
                    await asyncio.sleep(self._settings.takeover_grace_seconds)
                try:
                    await self._move(lease)
                except LeaseLost:
                    _log.warning("lease_lost")
                except StoreError:
                    _log.warning("store_unavailable_while_advancing")  # the lease runs out, and the due clock calls

    async def _move(self, lease: Lease) -> None:
        try:
            while await self._step(lease):
                pass
        except NewerVersion:  # left to a worker that knows it, for which it must not count as a vanished one
            await self._jobs.give_back(lease, due_in_seconds=self._settings.lease_seconds)

    @asynccontextmanager
    async def _kept(self, lease: Lease) -> AsyncIterator[None]:
        """Renews the lease while the block runs."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(self._settings.lease_seconds / 6)
                try:
                    if not await self._jobs.renew(lease, lease_seconds=self._settings.lease_seconds):
                        return
                except StoreError:
                    continue

        heartbeat = asyncio.create_task(renew())
        try:
            yield
        finally:
            heartbeat.cancel()

    async def _step(self, lease: Lease) -> bool:
        """One outcome, carried out.  Whether there is more to do at once."""
        job = await self._jobs.load(lease.job_id)
        if job is None or job.status in TERMINAL:  # cancelled or deleted while this worker took it
            return False
        try:
            return await self._carry_out(job, lease, await self._outcome(job, lease))
        except StatusChanged:
            return True

    async def _outcome(self, job: Job, lease: Lease) -> Outcome:
        try:
            outcome = await self._decide(job, lease)
        except SpentOut as reached:
            return Pause(PausedReason.DAILY_SPEND, needs_nano=reached.needs_nano)
        if isinstance(outcome, Pause) and outcome.reason is PausedReason.DAILY_SPEND:
            outcome = self._unless_never(job, outcome)
        if isinstance(outcome, Fail):
            return await self._leaving_nothing_behind(job, lease, outcome)
        return outcome

    def _unless_never(self, job: Job, pause: Pause) -> Pause | Fail:
        """No other day brings a call that is more than the limit of a whole one.

        A training, which comes last, waits for an operator who allows more: all before it is paid."""
        limit = self._tools.store.day_limit(job.tenant)
        if limit is None or pause.needs_nano <= limit:
            return pause
        error = JobFailed(
            f"The next step may cost up to {usd(pause.needs_nano)} dollars, more than the {usd(limit)} dollars that "
            "your jobs may spend a day.  Set max_completion_tokens, or ask your operator for more.",
            code="cost_above_limit",
        )
        return Fail(job_error(error, job.stage), pause.events)

    def _saving(self, job: Job, lease: Lease) -> Save:
        async def save(
            fields: Mapping[str, Any],
            add: Mapping[str, int] = MappingProxyType({}),
            events: Sequence[Event] = (),
            notices: Sequence[str] = (),
        ) -> None:
            deliveries = [delivery for kind in notices for delivery in await self._notices.of(job, kind)]
            await self._write(job, lease, Change(set=fields, add=add, events=events, deliveries=deliveries))

        return save

    async def _decide(self, job: Job, lease: Lease) -> Outcome:
        save = self._saving(job, lease)
        try:
            if job.status is JobStatus.QUEUED:
                return Done()  # whatever is wrong with it, it fails as a running job
            if job.status is JobStatus.CANCELLING:
                return await self._stop(job, save)
            if lease.takeovers > self._settings.takeovers_max:
                raise JobFailed(
                    "Workers took this job over and vanished, again and again.  The operator's logs say why.",
                    code="attempts_exhausted",
                )
            if job.deadline_at_ms is not None and _now_ms() > job.deadline_at_ms and job.status in _TIMED:
                return await self._end_late(job, save)
            if job.failing is not None and job.status in _TIMED:
                return await self._end_with(job, save, job.failing)
            if job.status is JobStatus.PAUSED:
                return await self._while_paused(job, save)
            assert job.stage is not None
            return await STEPS[job.stage](job, self._tools, save)
        except JobFailed as error:
            return Fail(job_error(error, job.stage))
        except ProviderError as error:
            if job.status is JobStatus.CANCELLING:
                return await self._after_failed_stop(job, save, error)
            if isinstance(error, ProviderQuotaExhausted):
                return Pause(PausedReason.PROVIDER_QUOTA)
            return self._after_provider_error(job, error)
        except (StoreError, LeaseLost, StatusChanged, SpentOut):
            raise
        except Exception as error:  # noqa: BLE001  # the edge: a defect of ours must not leave the job hanging
            _log.exception("stage_failed", stage=job.stage)
            return self._after_defect(job, error)

    async def _end_late(self, job: Job, save: Save) -> Fail | Wait:
        late = JobFailed(
            "The job did not finish before its deadline.  What is paid is kept: a retry reuses it and has as long "
            "again; a new job whose source is this one may have more time.",
            code="deadline_exceeded",
            param="deadline_seconds",
        )
        return await self._end_with(job, save, job.failing or job_error(late, job.stage))

    async def _end_with(self, job: Job, save: Save, error: JobError) -> Fail | Wait:
        """Fail once what the job had running elsewhere is stopped."""
        try:
            stopped = await self._stop(job, save)
        except ProviderError as away:
            stopped = await self._after_failed_stop(job, save, away)
        if isinstance(stopped, Wait):
            return replace(stopped, is_late=True)
        return Fail(error, stopped.events, set=stopped.set, add=stopped.add)

    async def _while_paused(self, job: Job, save: Save) -> Resume | Wait:
        """What trains is looked after.

        Only what the tenant may spend a day comes back by itself: the next day, when the operator allows more, or when
        other jobs have let go of what they had reserved.  A twentieth of the limit must be free, so that a job does not
        go on for one call and pause again."""
        trains = await train_while_paused(job, self._tools, save) if job.stage is Stage.TRAINING else None
        nothing = Wait(self._until_deadline(job))
        if job.paused_reason is not PausedReason.DAILY_SPEND:
            return trains or nothing
        standing = await self._tools.store.spending.standing(job.tenant)
        left, limit = standing.left_nano, standing.limit_nano
        if left is None or limit is None or left >= max(job.money.needs_nano, limit // 20):
            return Resume()
        looks = [standing.seconds_left, self._settings.poll_max_seconds, (trains or nothing).seconds]
        return Wait(min(looks), events=(trains or nothing).events)

    def _after_defect(self, job: Job, error: Exception) -> Outcome:
        """A defect of ours: it may pass, it must not loop, and the job must not hang on it."""
        failed = job.stage_attempts + 1
        if failed >= self._settings.stage_attempts_max:
            return Fail(
                JobError(
                    code="attempts_exhausted",
                    message="The service failed at this stage again and again.  The operator's logs say why "
                    f"({type(error).__name__}).  What is paid is kept.",
                    stage=job.stage,
                    retryable=True,
                )
            )
        return Wait(self._backoff(failed), set={"stage_attempts": failed}, progress=False)

    def _backoff(self, failed: int) -> float:
        longest: float = min(self._settings.retry_cap_seconds, self._settings.retry_base_seconds * 2**failed)
        return longest * random.uniform(0.5, 1.0)

    def _after_provider_error(self, job: Job, error: ProviderError) -> Outcome:
        """Files, fine-tuning jobs and models: tried again a bounded number of times, unless the answer was final."""
        failed = job.stage_attempts + 1
        _log.warning(
            "provider_failed", stage=job.stage, code=error.code, provider_code=error.provider_code, attempts=failed
        )
        if not error.retryable or failed >= self._settings.stage_attempts_max:
            return Fail(job_error(error, job.stage))
        wait = max(error.retry_after_seconds or 0.0, self._backoff(failed))
        return Wait(wait, set={"stage_attempts": failed}, progress=False)

    async def _after_failed_stop(self, job: Job, save: Save, error: ProviderError) -> Stopped | Wait:
        """The job is to end: the provider is asked a few times to end its part, then it ends here."""
        failed = job.stage_attempts + 1
        if failed < self._settings.stage_attempts_max:
            return Wait(self._backoff(failed), set={"stage_attempts": failed}, progress=False)
        _log.error("provider_work_left_running", stage=job.stage, code=error.code, provider_code=error.provider_code)
        return await self._leave(await self._jobs.load(job.id) or job, save)

    async def _leave(self, job: Job, save: Save) -> Stopped:
        await leave_batches(job, self._tools, save)
        return await leave_training(job, self._tools)

    async def _leaving_nothing_behind(self, job: Job, lease: Lease, fail: Fail) -> Outcome:
        """What is still out for a failed job, batches or the trainings of other students, would be billed for nothing.

        That it fails is kept before anything is stopped: nothing is submitted after that, whoever takes the job
        over."""
        latest = await self._jobs.load(job.id)
        if latest is None or "fine_tunes" in fail.set:
            return fail
        is_training = any(tune.step not in {"new", "ended"} for tune in latest.fine_tunes)
        if not is_training and all(run.step == "ended" for run in latest.batches):
            return replace(fail, error=latest.failing or fail.error)
        if latest.failing is None:
            decided = {**fail.set, "failing": fail.error, "stage_attempts": 0}
            return Wait(0.0, decided, fail.events, is_late=True)
        # Stopping it meets a defect of ours, or kills its worker, again and again.
        stopped = await self._leave(latest, self._saving(job, lease))
        events = [*fail.events, *stopped.events]
        return Fail(latest.failing, events, set={**stopped.set, **fail.set}, add=stopped.add)

    async def _stop(self, job: Job, save: Save) -> Stopped | Wait:
        """Wait while the provider still ends what was started there and hands over what it has done."""
        await self._tools.store.passes.close(job.tenant, *(PassId(job.id, plan.name) for plan in plans(job)))
        if (wait := await stop_batches(job, self._tools, save)) is not None:
            return wait
        return await cancel_training(job, self._tools, save)

    async def _carry_out(self, job: Job, lease: Lease, outcome: Outcome) -> bool:
        match outcome:
            case Done():
                return await self._go_on(job, lease, outcome)
            case Wait(seconds, fields, events, progress, is_late):
                longest = seconds if is_late or job.status is JobStatus.CANCELLING else self._until_deadline(job)
                more = {} if "stage_attempts" in fields or not job.stage_attempts else {"stage_attempts": 0}
                told, notices, tale = await self._budget_notice(job)
                change = Change(
                    set={**fields, **more, **told},
                    events=[*events, *tale],
                    deliveries=notices,
                    due_in_seconds=min(seconds, longest),
                    release=True,
                    progress=progress,
                )
                await self._write(job, lease, change)
            case Pause(reason, events, needs_nano):
                pauses = {"paused_reason": reason, "needs_nano": needs_nano or None}
                await self._end_run(job, lease, JobStatus.PAUSED, pauses, "job.paused", events)
            case Resume():
                event = self._status_event(job, JobStatus.RUNNING, job.stage, "The job goes on.")
                notices = await self._notices.of(job, "job.running", status=JobStatus.RUNNING)
                goes_on = {"paused_reason": None, "needs_nano": None}
                change = Change(
                    set=goes_on,
                    status=JobStatus.RUNNING,
                    only_with={"paused_reason": PausedReason.DAILY_SPEND},  # its owner may have paused it meanwhile
                    events=[event],
                    deliveries=notices,
                    progress=True,
                )
                await self._write(job, lease, change)
                return True
            case Fail(error, events, fields, add):
                ends = {**fields, "error": error}
                await self._end_run(job, lease, JobStatus.FAILED, ends, "job.failed", events, add=add)
            case Stopped(fields, add, events):
                await self._end_run(job, lease, JobStatus.CANCELLED, fields, "job.cancelled", events, add=add)
        return False

    async def _go_on(self, job: Job, lease: Lease, done: Done) -> bool:
        """To the next stage, or to success after the last."""
        if job.status is JobStatus.QUEUED:
            first = Stage.GENERATING
            fields = {"stage": first, "started_at_ms": _now_ms(), "stage_attempts": 0}
            event = self._status_event(job, JobStatus.RUNNING, first)
            notices = await self._notices.of(job, "job.running", status=JobStatus.RUNNING)
            change = Change(
                set=fields,
                status=JobStatus.RUNNING,
                only_from=JobStatus.QUEUED,  # its owner may have paused it meanwhile
                events=[event],
                deliveries=notices,
                progress=True,
            )
            await self._write(job, lease, change)
            return True
        assert job.stage is not None
        following = job.stage.following
        if following is None:
            await self._end_run(
                job, lease, JobStatus.SUCCEEDED, done.set, "job.succeeded", done.events, results=done.results
            )
            return False
        event = self._status_event(job, JobStatus.RUNNING, following, f"The job is {following}.")
        told, notices, tale = await self._budget_notice(job)
        change = Change(
            set={**done.set, **told, "stage": following, "stage_attempts": 0},
            events=[*done.events, *tale, event],
            deliveries=[*notices, *await self._notices.of(job, "job.stage_changed", status=JobStatus.RUNNING)],
            progress=True,
        )
        await self._write(job, lease, change)
        return True

    async def _end_run(
        self,
        job: Job,
        lease: Lease,
        status: JobStatus,
        fields: Mapping[str, Any],
        event_type: str,
        events: Any = (),
        *,
        results: Any = None,
        add: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """The job stops running: for good, or until its owner resumes it."""
        error: JobError | None = fields.get("error")
        now = _now_ms()
        data: dict[str, Any] = {}
        if status is JobStatus.PAUSED:
            ends: dict[str, Any] = {}
            due = self._until_deadline(job)
            if fields["paused_reason"] is PausedReason.DAILY_SPEND or job.stage is Stage.TRAINING:
                due = min(due, self._settings.poll_max_seconds)
            message = f"The job is paused: {fields['paused_reason']}."
            limit = self._tools.store.day_limit(job.tenant)
            if needs := fields.get("needs_nano"):
                message += f"  The next step may cost up to {usd(needs)} dollars."
                data["needs_usd"] = usd(needs)
            if needs and limit is not None and fields["paused_reason"] is PausedReason.DAILY_SPEND:
                data["day_limit_usd"] = usd(limit)
                if needs > limit:
                    message += (
                        f"  Your jobs may spend {usd(limit)} dollars a day, so it goes on only when your operator"
                        " allows more."
                    )
                else:
                    standing = await self._tools.store.spending.standing(job.tenant)
                    left, tomorrow = standing.left_nano or 0, standing.today.day + timedelta(days=1)
                    message += (
                        f"  Of the {usd(limit)} dollars that your jobs may spend a day, {usd(left)} are left today."
                        f"  It goes on by itself at {tomorrow} 00:00 UTC, or sooner when enough of what other jobs have"
                        " reserved is free again."
                    )
                    data["left_usd"] = usd(left)
            if needs and fields["paused_reason"] is PausedReason.BUDGET:
                # What this look has spent or reserved itself counts, too.
                money = (await self._jobs.load(job.id) or job).money
                message += f"  Resume it with a budget of {usd(money.used_nano + needs)} dollars or more."
        else:
            ends = {"finished_at_ms": now, "expires_at_ms": now + job.spec.retention_days * _DAY_MS}
            ends |= {"paused_reason": None, "needs_nano": None}
            due = -1
            message = error.message if error else _MESSAGES[status]
        if error is not None:
            data["code"] = error.code
        event = self._status_event(job, status, job.stage, message, data=data)
        change = Change(
            set={**fields, **ends, "stage_attempts": 0},
            add=add,
            status=status,
            events=[*events, event],
            deliveries=await self._notices.of(job, event_type, status=status),
            due_in_seconds=due,
            release=True,
            progress=True,
            results=results,
        )
        await self._write(job, lease, change)
        _log.info("job_moved", status=status, stage=job.stage, code=error.code if error else None)

    async def _budget_notice(self, job: Job) -> tuple[dict[str, int], list[Delivery], list[Event]]:
        """(fields, deliveries, events) that tell the owner, once, that most of the budget is used.

        Calls in flight do not count: each reserves its upper bound, of which it spends a small part."""
        limit, share = job.money.limit_nano, job.money.told_share
        training = sum(tune.reserved_nano for tune in job.fine_tunes)
        used = job.money.spent_nano + job.money.unconfirmed_nano + training
        if not limit or share >= _TOLD_AT_PERCENT or used * 100 < limit * _TOLD_AT_PERCENT:
            return {}, [], []
        event = Event(
            id=new_event_id(),
            level="warn",
            type="message",
            message=f"{_TOLD_AT_PERCENT} % of the job's budget is used.",
            created_at_ms=_now_ms(),
            stage=job.stage,
            data={"threshold_percent": _TOLD_AT_PERCENT, "spent_usd": usd(job.money.spent_nano)},
        )
        return (
            {"told_share": _TOLD_AT_PERCENT},
            await self._notices.of(job, "budget.threshold_reached"),
            [event],
        )

    async def _write(self, job: Job, lease: Lease, change: Change) -> None:
        """Raises LeaseLost, StatusChanged or SpentOut; then nothing of the change is written."""
        answer = await self._jobs.change(job, change, lease=lease)
        if isinstance(answer, Refused):
            if answer.spent_out:
                raise SpentOut(change.add["reserved_nano"])
            raise LeaseLost if answer.stale else StatusChanged

    def _status_event(
        self,
        job: Job,
        status: JobStatus,
        stage: Stage | None,
        message: str | None = None,
        *,
        data: Mapping[str, Any] = MappingProxyType({}),
    ) -> Event:
        return Event(
            id=new_event_id(),
            level="error" if status is JobStatus.FAILED else "info",
            type="status",
            message=message or _MESSAGES[status],
            created_at_ms=_now_ms(),
            stage=stage,
            data={"status": status, **data},
        )

    def _until_deadline(self, job: Job) -> float:
        if job.deadline_at_ms is None:
            return _DAY_MS / 1000
        return max(1.0, (job.deadline_at_ms - _now_ms()) / 1000)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
