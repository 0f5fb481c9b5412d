"""What comes next of a job's batches.

Prompts are looked at in rounds.  A round goes through all that is not settled, as one batch after the other; the next
round begins when all of them have ended, with what they left: expired lines, passing errors, twins of prompts that
were out, and what the budget did not allow before."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Final

import structlog

from shared.errors import JobFailed, ProviderError, ProviderUnavailable, StoreError
from shared.lifecycle import PausedReason
from shared.models import BatchRun, Job, JobError
from worker.outcomes import Done, Fail, Outcome, Pause, Wait
from worker.stages import LeaseLost, Save, Tools
from worker.stages.batches.filling import Filling
from worker.stages.batches.following import Following
from worker.stages.batches.lines import BatchLimits
from worker.stages.batches.step import Look
from worker.stages.batches.submission import LOOK_FOR_LOST_SECONDS, Submission
from worker.stages.waits import wait_told

_log: Final = structlog.get_logger()
_TWIN_SECONDS: Final = 5.0  # before the ledger is asked again about a completion that another job is buying


async def generate_by_batches(job: Job, tools: Tools, save: Save, limits: BatchLimits | None = None) -> Outcome:
    """One look at the batches of the teacher's pass."""
    await tools.store.followed.take_hint(job.id)  # we look now
    price_list = tools.providers.settings(job.spec.teacher.provider).prices
    return await _Rounds(Look(job, tools, save, limits or BatchLimits(), price_list=price_list)).advance()


async def stop_batches(job: Job, tools: Tools, save: Save) -> Wait | None:
    """Cancel what is out and keep what was answered.  None once nothing is out.

    Raises ProviderError once every batch was tried."""
    if all(run.step == "ended" for run in job.batches):
        return None
    wait = await _Rounds(_last_look(job, tools, save)).stop()
    return None if wait is None else Wait(wait)


async def leave_batches(job: Job, tools: Tools, save: Save) -> None:
    """A provider would not stop what is out, or not tell of it.  The job ends all the same, with what that may cost in
    its books."""
    if all(run.step == "ended" for run in job.batches):
        return
    look = _last_look(job, tools, save)
    for number, run in enumerate(look.runs):
        try:
            if run.step == "ended":
                continue
            if not _is_sent(run):
                await Submission(look, number).withdraw()
            else:
                await Following(look, number).leave()
        except (StoreError, LeaseLost):
            raise
        except Exception:  # noqa: BLE001  # a defect of ours: the job ends
            _log.exception("batch_not_left", job_id=job.id, number=number)


def _last_look(job: Job, tools: Tools, save: Save) -> Look:
    """Also where the provider is no longer configured, and so has no prices either."""
    price_list: str | None = None
    with suppress(JobFailed):
        price_list = tools.providers.settings(job.spec.teacher.provider).prices
    return Look(job, tools, save, BatchLimits(), price_list=price_list)


def _is_sent(run: BatchRun) -> bool:
    """Whether the provider may have received it.

    Told by the step: what it turned away, versions before this one have counted as a submission, too."""
    return run.step in {"intent", "submitted"}


class _Rounds:
    def __init__(self, look: Look) -> None:
        self._look = look
        self._job = look.job
        self._runs = look.runs

    async def advance(self) -> Outcome:
        opening = await self._look.passes.open(
            self._look.pass_id,
            prompts=self._job.counters.prompts_total,
            chunk_size=self._job.chunk_size,
            smoke=0,
            for_pumps=False,
        )
        waits: list[float] = []
        for number, run in enumerate(self._runs):
            if run.step != "ended" and self._error is None:
                wait = await self._step(number)
                waits += [] if wait is None else [wait]
        if self._error is not None:
            return Fail(self._error)
        if self._look.quota_exhausted:
            return Pause(PausedReason.PROVIDER_QUOTA)
        if any(run.step == "new" for run in self._runs):
            return Wait(0.0)  # the owner has stopped the job while calls were begun
        if waits and not self._runs[-1].more:
            return Wait(min(waits))
        if opening == "complete" and not waits:
            return Done()
        return await self._next(waits)

    @property
    def _error(self) -> JobError | None:
        return next((run.error for run in self._runs if run.error is not None), None)

    async def _next(self, waits: list[float]) -> Outcome:
        """One batch more: the round's next, or the first of another round."""
        last = self._runs[-1] if self._runs else BatchRun()
        if not waits and last.crowded_out and (quiet := self._until_less_crowded(last)) > 0:
            return Wait(quiet)
        if last.more:
            run = BatchRun(first=last.end, attempt=last.attempt)
        else:
            retried = [run.attempt + 1 for run in self._runs if run.released]
            run = BatchRun(attempt=max([1, *retried, *(run.attempt for run in self._runs)]))
        number = len(self._runs)
        self._runs.append(run)
        await self._look.save({"batches": self._runs})
        wait = await self._step(number)
        if len(self._runs) == number:
            return await self._nothing_begun(waits)
        if wait is None or self._runs[number].more:
            return Wait(0.0)
        return Wait(min([wait, *waits]))

    async def _nothing_begun(self, waits: list[float]) -> Outcome:
        """No prompt could be begun: all are settled or out, others buy the same, or the budget is used up."""
        if waits:
            return Wait(min(waits))
        state = await self._look.passes.state(self._look.pass_id)
        if state is not None and state.complete:
            return Done()
        shortage = self._look.shortage
        if shortage is None:
            return Wait(_TWIN_SECONDS, events=await wait_told(self._job, self._look.pass_id, self._look.passes))
        if shortage.of_day:
            return Pause(PausedReason.DAILY_SPEND, needs_nano=shortage.needs_nano)
        if self._job.spec.budget.on_limit == "fail":
            return Fail(self._look.scribe.budget_failure(shortage.needs_nano))
        return Pause(PausedReason.BUDGET, needs_nano=shortage.needs_nano)

    def _until_less_crowded(self, run: BatchRun) -> float:
        return (run.ended_at_ms or 0) / 1000 + 10 * self._look.settings.poll_max_seconds - time.time()

    async def _step(self, number: int) -> float | None:
        """Seconds to wait before the next look at this batch, None when it has ended."""
        if self._runs[number].step == "new" and not await Filling(self._look, number).fill():
            return 0.0
        submission = Submission(self._look, number)
        match self._runs[number].step:
            case "uploading" | "uploaded":
                await submission.upload()
                return await submission.submit()
            case "intent":
                return await submission.find_lost()
            case "submitted":
                return await Following(self._look, number).poll(patient=True)
            case _:
                return None

    async def stop(self) -> float | None:
        """Seconds until the next look, None once nothing is out.  Trouble with one batch keeps no other from being
        stopped."""
        waits, failed = list[float](), list[ProviderError]()
        for number, run in enumerate(self._runs):
            if run.step == "ended":
                continue
            try:
                wait = await self._stop(number, run)
            except ProviderError as error:
                failed.append(error)
            except JobFailed as error:  # its provider is no longer configured: an operator may yet mend that
                failed.append(ProviderUnavailable(str(error)))
            else:
                waits += [] if wait is None else [wait]
        if failed:
            raise failed[0]
        return min(waits, default=None)

    async def _stop(self, number: int, run: BatchRun) -> float | None:
        submission = Submission(self._look, number)
        if not _is_sent(run):
            await submission.withdraw()
            return None
        if run.step != "submitted":
            found = await submission.found()
            if not found and submission.may_yet_show():
                return LOOK_FOR_LOST_SECONDS
            if not found:
                await submission.miss(None)
                return None
            await submission.submitted(found[0])
        return await Following(self._look, number).cancel()
