"""What every step of one student's training shares: its record, its trainer, its events."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal

import structlog
from msgspec.structs import replace

from shared.errors import ProviderError
from shared.estimate import reserved_tokens
from shared.exports import Format
from shared.ids import new_event_id
from shared.lifecycle import Stage
from shared.models import DatasetFile, Event, FineTune, Job, JobError, JsonObject, ProviderAnswer
from shared.ports import TrainingJob
from worker.noticeboard import ENDED
from worker.stages import Tools

LOOK_FOR_LOST_SECONDS: Final = 5.0  # between two looks for a submission whose answer was lost
FORMATS: Final[Mapping[str, Format]] = {"supervised": "openai_chat", "dpo": "openai_dpo"}
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
        """As `_looked_up`; all but the first are cancelled."""
        jobs = await self._looked_up(tune)
        for extra in jobs[1:]:
            _log.error("fine_tune_submitted_twice", job_id=self._job.id, kept=jobs[0].id, cancelled=extra.id)
            await self._trainer.cancel(extra.id)
        return jobs

    async def _looked_up(self, tune: FineTune) -> list[TrainingJob]:
        """This student's fine-tuning jobs at the provider, the one to keep first: the one that is followed, else the
        oldest."""
        assert tune.training_file is not None
        mine = metadata(self._job, self._number)
        jobs = [
            job
            for job in await self._trainer.find(mine, tune.training_file, not_before=self._not_before)
            if job.metadata.get("student", mine["student"]) == mine["student"]
        ]
        jobs.sort(key=lambda job: job.id != tune.fine_tuning_job_id)
        return jobs

    async def _others_ended(self, tune: FineTune) -> list[TrainingJob | None]:
        """What submissions that seemed lost have started beside the training that is followed: all that may be
        billed, as it is once it is stopped."""
        others = [job.id for job in await self._looked_up(tune) if job.id != tune.fine_tuning_job_id]
        for extra in others:
            _log.error("fine_tune_submitted_twice", job_id=self._job.id, kept=tune.fine_tuning_job_id, cancelled=extra)
        ends = [await self._ended(extra) for extra in others]
        return [training for training, had_begun in ends if had_begun]

    async def _ended(self, fine_tuning_job_id: str) -> tuple[TrainingJob | None, bool]:
        """(the training as it is now, None when it is gone; whether it may have begun).

        Raises ProviderError when it cannot be cancelled or read."""
        try:
            before = await self._trainer.poll(fine_tuning_job_id)
        except ProviderError:
            before = None  # it is to end all the same
        if before is not None and before.state in ENDED:
            return before, True
        await self._trainer.cancel(fine_tuning_job_id)
        after = await self._trainer.poll(fine_tuning_job_id)
        has_waited = before is not None and before.state == "waiting"
        is_blank = after is not None and after.state == "cancelled" and after.trained_tokens is None
        return after, not (has_waited and is_blank)

    async def _end(self, tune: FineTune, *, status: str, error: JobError | None) -> FineTune:
        """What is still reserved is let go of: whoever may be billed for it settles the student first."""
        ended = replace(tune, step="ended", status=status, error=error, ended_at_ms=now_ms(), reserved_nano=0)
        await self._keep(ended)
        if error is not None:
            self._say("error", error.message, {"code": error.code})
        return ended

    def _settled(self, tune: FineTune, *trainings: TrainingJob | None) -> FineTune:
        """The student with its trainings, which are over, accounted for.

        trainings: as last seen; None for one that cannot be seen.  Billed are the tokens that the provider counts.  One
        that failed without a count is not billed; of any other it may bill what was trained until then, and up to what
        was reserved stays unconfirmed."""
        known = [training.trained_tokens for training in trainings if training is not None and training.state in ENDED]
        costs = [self._cost_nano(tokens) for tokens in known if tokens is not None]
        paid = [cost for cost in costs if cost is not None]
        free = sum(job is not None and job.state == "failed" and job.trained_tokens is None for job in trainings)
        unknown = len(trainings) - len(paid) - free
        return replace(
            tune,
            cost_nano=sum(paid) if paid else None,
            unconfirmed_nano=unknown * (tune.reserved_nano or self._ceiling_nano()),
            reserved_nano=0,
        )

    def _cost_nano(self, trained_tokens: int) -> int | None:
        return self._tools.prices.training_nano(self._price_list(), self._student.model, trained_tokens)

    def _ceiling_nano(self) -> int:
        """What the training will cost at most, as far as can be known before it: 0 when unpriced."""
        file = self._file_of("train")
        train_bytes = (file.bytes or 0) if file is not None else 0
        return self._cost_nano(reserved_tokens(self._student, train_bytes, examples=self._lines("train"))) or 0

    @property
    def _format(self) -> Format:
        return FORMATS[self._student.method]

    def _file_of(self, split: str) -> DatasetFile | None:
        return None if self._job.manifest is None else self._job.manifest.file(split, self._format)

    def _lines(self, split: str) -> int:
        file = self._file_of(split)
        return 0 if file is None else file.lines

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
