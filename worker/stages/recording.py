"""What a provider reports of a training: its events, the points of its curve, its checkpoints."""

from __future__ import annotations

from typing import Final

import structlog
from msgspec.structs import replace

from shared.errors import ProviderError, ProviderModelMissing, ProviderRejected
from shared.ids import new_event_id
from shared.lifecycle import Stage
from shared.models import Event, FineTune
from shared.ports import TrainingEvent, TrainingJob
from shared.training_metrics import has_gaps, point_of, read_result_file, worth_keeping
from worker.stages.student import StudentStep, now_ms

_log: Final = structlog.get_logger()
_EVENTS_TOGETHER: Final = 200  # written into the row at once
_MESSAGE_CHARS: Final = 500
_CHECKPOINTS_MAX: Final = 10
_RESULT_FILES_MAX: Final = 3
_TRIES: Final = 3


class Recording(StudentStep):
    """The report of one student's training, as far as it has been written."""

    async def read(self, tune: FineTune) -> FineTune:
        """Take over all events that are new, piece by piece: each piece is noted with how far it came."""
        assert tune.fine_tuning_job_id is not None
        fresh = await self._trainer.events(
            tune.fine_tuning_job_id, after=tune.last_event_id, known_until=tune.last_event_at
        )
        for start in range(0, len(fresh), _EVENTS_TOGETHER):
            if start:
                await self._keep(tune)
            some, points = fresh[start : start + _EVENTS_TOGETHER], []
            for event in some:
                step, total = event.data.get("step"), event.data.get("total_steps")
                if isinstance(step, int):
                    tune = replace(tune, step_number=step, total_steps=total if isinstance(total, int) else None)
                point = point_of(event.data) if event.type == "metrics" else None
                if point is not None and not worth_keeping(point.step, tune.total_steps):
                    continue
                points += [] if point is None else [point]
                self._events.append(self._own(event))
            await self._tools.store.metrics.add(self._job.id, self._number, points)
            tune = replace(tune, last_event_id=some[-1].id, last_event_at=some[-1].created_at)
        if any("checkpoint" in event.message.lower() for event in fresh):
            tune = await self._checkpoints(tune)
        return replace(tune, events_at_ms=now_ms())

    async def complete(self, tune: FineTune, job: TrainingJob) -> FineTune:
        """What there is to learn once the training has succeeded.  It is worth a few tries, and not the job."""
        try:
            tune = await self._checkpoints(tune)
            await self._fill_gaps(tune, job)
        except ProviderError as error:
            if error.retryable and self._job.stage_attempts < min(_TRIES, self._settings.stage_attempts_max - 1):
                raise
            _log.warning("training_report_incomplete", code=error.code, provider_code=error.provider_code)
        return tune

    async def _checkpoints(self, tune: FineTune) -> FineTune:
        assert tune.fine_tuning_job_id is not None
        try:
            found = await self._trainer.checkpoints(tune.fine_tuning_job_id)
        except (ProviderModelMissing, ProviderRejected):
            return tune  # not every server keeps checkpoints
        return replace(tune, checkpoints=sorted(found, key=lambda kept: kept.step)[-_CHECKPOINTS_MAX:])

    async def _fill_gaps(self, tune: FineTune, job: TrainingJob) -> None:
        """From the result file, where the events do not tell of every step."""
        metrics = self._tools.store.metrics
        known = await metrics.steps(self._job.id, self._number)
        if not has_gaps(known, tune.total_steps):
            return
        reported = set(known)
        for file_id in job.result_files[:_RESULT_FILES_MAX]:
            content = await self._trainer.result_file(file_id)
            points = [
                point
                for point in read_result_file(content)
                if point.step not in reported and worth_keeping(point.step, tune.total_steps)
            ]
            reported |= {point.step for point in points}
            await metrics.add(self._job.id, self._number, points)

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
