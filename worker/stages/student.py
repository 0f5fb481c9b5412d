"""What every step of one student's training shares: its record, its trainer, its events."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, Literal

import structlog
from msgspec.structs import replace

from shared.ids import new_event_id
from shared.lifecycle import Stage
from shared.models import Event, FineTune, Job, JobError, JsonObject, ProviderAnswer
from shared.ports import TrainingJob
from worker.stages import Tools

_log: Final = structlog.get_logger()
_CLOCK_SKEW_SECONDS: Final = 600  # between the provider's clock and ours, when old jobs are told from new ones


class StudentStep:
    """One student of one job.  keep: writes the student into the row, under the lease, with the events so far."""

    def __init__(
        self,
        job: Job,
        number: int,
        tools: Tools,
        keep: Callable[[FineTune], Awaitable[None]],
        events: list[Event],
    ) -> None:
        self._job = job
        self._number = number
        self._student = job.spec.students[number]
        self._tools = tools
        self._settings = tools.settings
        self._trainer = tools.providers.trainer(self._student.provider)
        self._keep = keep
        self._events = events

    @property
    def _not_before(self) -> int:
        """Unix time before which nothing at the provider is this job's."""
        return self._job.created_at_ms // 1000 - _CLOCK_SKEW_SECONDS

    def _price_list(self) -> str | None:
        return self._tools.providers.settings(self._student.provider).prices

    async def _found(self, tune: FineTune) -> list[TrainingJob]:
        """This student's fine-tuning jobs at the provider, the one to keep first: the one that is followed, else the
        oldest.  All others are cancelled."""
        assert tune.training_file is not None
        assert tune.intent_at_ms is not None
        mine = metadata(self._job, self._number)
        jobs = [
            job
            for job in await self._trainer.find(mine, tune.training_file, not_before=self._not_before)
            if job.metadata.get("student", mine["student"]) == mine["student"]
        ]
        jobs.sort(key=lambda job: job.id != tune.fine_tuning_job_id)
        for extra in jobs[1:]:
            _log.error("fine_tune_submitted_twice", job_id=self._job.id, kept=jobs[0].id, cancelled=extra.id)
            await self._trainer.cancel(extra.id)
        return jobs

    async def _end(self, tune: FineTune, *, status: str, error: JobError | None) -> FineTune:
        ended = replace(tune, step="ended", status=status, error=error, ended_at_ms=now_ms(), reserved_nano=0)
        await self._keep(ended)
        if error is not None:
            self._say("error", error.message, {"code": error.code})
        return ended

    def _failure(self, what: str, job: TrainingJob | None) -> JobError:
        return JobError(
            code="provider_rejected_training",
            message=f"The fine-tuning job {what}.  Look at the job's events for the reason.  A retry trains on "
            "the same; what is to be changed takes a new job, whose source of type job reuses the completions.  The "
            "dataset can be exported.",
            param=f"students.{self._number}",
            stage=Stage.TRAINING,
            provider=ProviderAnswer(code=job.error_code) if job else None,
        )

    def _say(self, level: Literal["info", "warn", "error"], message: str, data: JsonObject | None = None) -> None:
        self._events.append(
            Event(
                id=new_event_id(),
                level=level,
                type="message",
                message=message,
                created_at_ms=now_ms(),
                stage=Stage.TRAINING,
                data={"student": self._number, **(data or {})},
            )
        )


def given_up(tune: FineTune, tools: Tools) -> bool:
    """Whether a submission that does not show by now was never received."""
    return now_ms() >= (tune.intent_at_ms or 0) + tools.settings.unknown_outcome_wait_seconds * 1000


def metadata(job: Job, number: int) -> dict[str, str]:
    return {"distillation_job_id": job.id, "student": str(number)}


def now_ms() -> int:
    return time.time_ns() // 1_000_000
