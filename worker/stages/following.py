"""Following a fine-tuning job until it has ended."""

from __future__ import annotations

import random
import time
from typing import Final

from msgspec.structs import replace

from shared.ids import new_event_id
from shared.lifecycle import Stage
from shared.models import Event, FineTune
from shared.ports import TrainingEvent, TrainingJob
from worker.noticeboard import ENDED, Noticeboard
from worker.stages.landing import AWAITING_SECONDS, Landing
from worker.stages.student import StudentStep, now_ms

_EVENTS_PER_LOOK: Final = 200
_EVENT_READS_PER_INTERVAL: Final = 20  # of all fine-tuning jobs at one provider together, while they run
_LATER_SECONDS: Final = 1.0
_SLOWER: Final = 10.0  # than the longest wait between two looks, while the owner has paused the job
_SLOW_SECONDS_MAX: Final = 600.0
_CLOCK_SKEW_SECONDS: Final = 600  # between the provider's clock and ours
_MESSAGE_CHARS: Final = 500


class Following(StudentStep):
    """One look at a fine-tuning job that is submitted."""

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
            await self._end(tune, status="deleted", error=self._failure("was deleted at the provider", None))
            return None
        if self._events_due(tune, job, interval, followed=seen.followed):
            tune = await self._read_events(tune)
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
                await self._end(tune, status=job.status, error=self._failure("failed at the provider", job))
                return None
            case "cancelled":
                error = self._failure("was cancelled at the provider", job)
                await self._end(tune, status=job.status, error=error)
                return None
        if tune != before:
            await self._keep(tune)
        return interval * _jitter()

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

    async def _read_events(self, tune: FineTune) -> FineTune:
        assert tune.fine_tuning_job_id is not None
        known_until = tune.last_event_at
        fresh = (
            await self._trainer.events(tune.fine_tuning_job_id, after=tune.last_event_id, known_until=known_until)
        )[:_EVENTS_PER_LOOK]
        for event in fresh:
            self._events.append(self._own(event))
            step, total = event.data.get("step"), event.data.get("total_steps")
            if isinstance(step, int):
                tune = replace(tune, step_number=step, total_steps=total if isinstance(total, int) else None)
        if fresh:
            tune = replace(tune, last_event_id=fresh[-1].id, last_event_at=fresh[-1].created_at)
        return replace(tune, events_at_ms=now_ms())

    def _own(self, event: TrainingEvent) -> Event:
        level = event.level if event.level in {"info", "warn", "error"} else "info"
        return Event(
            id=new_event_id(),
            level=level,  # type: ignore[arg-type]  # one of the three by the line above
            type="metrics" if event.type == "metrics" else "message",
            message=event.message[:_MESSAGE_CHARS],
            created_at_ms=event.created_at * 1000,
            stage=Stage.TRAINING,
            data={"student": self._number, **event.data},
        )


def _jitter() -> float:
    """So that the looks at many jobs spread out."""
    return random.uniform(0.9, 1.1)
