"""What comes next of a job's batches.

Prompts are looked at in rounds.  A round goes through all that is not settled, as one batch after the other; the next
round begins when all of them have ended, with what they left: expired lines, passing errors, twins of prompts that
were out, and what the budget did not allow before."""

from __future__ import annotations

import time
from typing import Final

from shared.lifecycle import PausedReason
from shared.models import BatchRun, Job, JobError
from worker.outcomes import Done, Fail, Outcome, Pause, Wait
from worker.stages import Save, Tools
from worker.stages.batches.filling import Filling
from worker.stages.batches.following import Following
from worker.stages.batches.lines import BatchLimits
from worker.stages.batches.step import Look
from worker.stages.batches.submission import LOOK_FOR_LOST_SECONDS, Submission
from worker.stages.waits import wait_told

_TWIN_SECONDS: Final = 5.0  # before the ledger is asked again about a completion that another job is buying


async def generate_by_batches(job: Job, tools: Tools, save: Save, limits: BatchLimits | None = None) -> Outcome:
    """One look at the batches of the teacher's pass."""
    await tools.store.followed.take_hint(job.id)  # we look now
    return await _Rounds(Look(job, tools, save, limits or BatchLimits())).advance()


async def stop_batches(job: Job, tools: Tools, save: Save) -> Wait | None:
    """Cancel what is out and keep what was answered.  None once nothing is out."""
    if all(run.step == "ended" for run in job.batches):
        return None
    look = Look(job, tools, save, BatchLimits())
    wait = await _Rounds(look).stop()
    return None if wait is None else Wait(wait, events=look.events)


class _Rounds:
    def __init__(self, look: Look) -> None:
        self._look = look
        self._job = look.job
        self._runs = look.runs
        self._events = look.events

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
            wait = await self.stop()
            return Fail(self._error, self._events) if wait is None else Wait(wait, events=self._events)
        if self._look.quota_exhausted:
            return Pause(PausedReason.PROVIDER_QUOTA, self._events)
        if any(run.step == "new" for run in self._runs):
            return Wait(0.0, events=self._events)  # the owner has stopped the job while calls were begun
        if waits and not self._runs[-1].more:
            return Wait(min(waits), events=self._events)
        if opening == "complete" and not waits:
            return Done(events=self._events)
        return await self._next(waits)

    @property
    def _error(self) -> JobError | None:
        return next((run.error for run in self._runs if run.error is not None), None)

    async def _next(self, waits: list[float]) -> Outcome:
        """One batch more: the round's next, or the first of another round."""
        last = self._runs[-1] if self._runs else BatchRun()
        if not waits and last.crowded_out and (quiet := self._until_less_crowded(last)) > 0:
            return Wait(quiet, events=self._events)
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
            return Wait(0.0, events=self._events)
        return Wait(min([wait, *waits]), events=self._events)

    async def _nothing_begun(self, waits: list[float]) -> Outcome:
        """No prompt could be begun: all are settled or out, others buy the same, or the budget is used up."""
        if waits:
            return Wait(min(waits), events=self._events)
        state = await self._look.passes.state(self._look.pass_id)
        if state is not None and state.complete:
            return Done(events=self._events)
        shortage = self._look.shortage
        if shortage is None:
            told = await wait_told(self._job, self._look.pass_id, self._look.passes)
            return Wait(_TWIN_SECONDS, events=[*self._events, *told])
        if shortage.of_day:
            return Pause(PausedReason.DAILY_SPEND, self._events, needs_nano=shortage.needs_nano)
        if self._job.spec.budget.on_limit == "fail":
            return Fail(self._look.scribe.budget_failure(shortage.needs_nano), self._events)
        return Pause(PausedReason.BUDGET, self._events, needs_nano=shortage.needs_nano)

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
        """Seconds until the next look, None once nothing is out."""
        waits: list[float] = []
        for number, run in enumerate(self._runs):
            submission = Submission(self._look, number)
            match run.step:
                case "ended":
                    continue
                case "new" | "uploading" | "uploaded":
                    await submission.withdraw()
                    continue
                case "intent":
                    found = await submission.found()
                    if found is None and submission.may_yet_show():
                        waits.append(LOOK_FOR_LOST_SECONDS)
                        continue
                    if found is None:
                        await submission.withdraw()
                        continue
                    await submission.submitted(found)
            wait = await Following(self._look, number).cancel()
            waits += [] if wait is None else [wait]
        return min(waits, default=None)
