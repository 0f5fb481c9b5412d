"""Following a fine-tuning job until it has ended."""

from __future__ import annotations

import random
import time
from typing import Final

from msgspec.structs import replace

from shared.models import FineTune
from shared.ports import TrainingJob
from worker.noticeboard import ENDED, Noticeboard
from worker.stages.deployments import AWAITING_SECONDS
from worker.stages.landing import Landing
from worker.stages.recording import Recording
from worker.stages.student import StudentStep, now_ms

_EVENT_READS_PER_INTERVAL: Final = 20  # of all fine-tuning jobs at one provider together, while they run
_LATER_SECONDS: Final = 1.0
_SLOWER: Final = 10.0  # than the longest wait between two looks, while the owner has paused the job
_SLOW_SECONDS_MAX: Final = 600.0
_CLOCK_SKEW_SECONDS: Final = 600  # between the provider's clock and ours


class Following(StudentStep):
    """One look at a fine-tuning job that is submitted."""

    @property
    def _recording(self) -> Recording:
        return Recording(self._job, self._number, self._tools, self._keep, self._events)

    async def look(self, tune: FineTune, *, hinted: bool = False, slowly: bool = False) -> float | None:
        """Seconds until the next look, None when the student has ended.

        hinted: the provider says that it changed.  slowly: nobody waits for it."""
        assert tune.fine_tuning_job_id is not None
        before, interval = tune, self._interval(tune, slowly=slowly)
        board = Noticeboard(
            self._tools.store.followed,
            self._student.provider,
            self._trainer,
            self._job.id,
            list_from=self._settings.poll_list_from,
        )
        seen = await board.look(
            tune.fine_tuning_job_id,
            since=(tune.intent_at_ms or 0) // 1000 - _CLOCK_SKEW_SECONDS,
            every_seconds=interval,
            hinted=hinted,
        )
        if seen.later:
            return min(_LATER_SECONDS, interval) * _jitter()
        job = seen.job
        if job is None:
            error = self._failure("was deleted at the provider", None)
            await self._end(await self._all_settled(tune, None), status="deleted", error=error)
            return None
        if self._events_due(tune, job, interval, followed=seen.followed):
            tune = await self._recording.read(tune)
        tune = replace(
            tune,
            status=job.status,
            trained_tokens=job.trained_tokens,
            estimated_finish_at=job.estimated_finish_at,
        )
        match job.state:
            case "succeeded":
                landing = Landing(self._job, self._number, self._tools, self._keep, self._events)
                landed = await landing.land(tune, job)
                if landed is not None:
                    return None if landed.step == "ended" else AWAITING_SECONDS
            case "failed":
                error = self._failure("failed at the provider", job)
                await self._end(await self._all_settled(tune, job), status=job.status, error=error)
                return None
            case "cancelled":
                error = self._failure("was cancelled at the provider", job)
                await self._end(await self._all_settled(tune, job), status=job.status, error=error)
                return None
        if tune != before:
            await self._keep(tune)
        return interval * _jitter()

    async def _all_settled(self, tune: FineTune, job: TrainingJob | None) -> FineTune:
        others = await self._others_ended(tune) if tune.submissions > 1 else []
        return self._settled(tune, job, *others)

    def _events_due(self, tune: FineTune, job: TrainingJob, interval: float, *, followed: int) -> bool:
        """At every look while few jobs are in training; of many, each has its turn, or has something to tell."""
        if job.status != tune.status or job.state in ENDED:
            return True
        turns = max(1.0, followed / _EVENT_READS_PER_INTERVAL)
        # Looks are jittered, and every look is somebody's turn when there are few.
        return turns == 1.0 or now_ms() - (tune.events_at_ms or 0) >= interval * 1000 * turns

    def _interval(self, tune: FineTune, *, slowly: bool) -> float:
        """The longer it has run, or has yet to run, the longer until the next look."""
        if slowly:
            return min(_SLOW_SECONDS_MAX, _SLOWER * self._settings.poll_max_seconds)
        now = time.time()
        elapsed = now - (tune.intent_at_ms or 0) / 1000
        ahead = (tune.estimated_finish_at - now) if tune.estimated_finish_at else elapsed
        shortest, longest = self._settings.poll_min_seconds, self._settings.poll_max_seconds
        return min(longest, max(shortest, ahead / 5))


def _jitter() -> float:
    """So that the looks at many jobs spread out."""
    return random.uniform(0.9, 1.1)
