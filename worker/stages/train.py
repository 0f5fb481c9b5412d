"""training: each student becomes a fine-tuned model, submitted exactly once.

Every step is written into the row before it is taken, so whoever finds the row after a crash knows what may have
happened: an upload is looked for by its name before it is made again, a submission by its metadata and training file,
for as long as an answer could still be on its way.  Found again means adopted; two found means all but the oldest are
cancelled.  (Measured: docs/decisions/0002.)"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Literal

import structlog
from msgspec.structs import replace

from shared.curation import assistant_message
from shared.dataset import example_line
from shared.errors import (
    ProviderAuthFailed,
    ProviderError,
    ProviderModelMissing,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderTrainingClosed,
    ProviderUnavailable,
)
from shared.ids import new_event_id
from shared.lifecycle import PausedReason, Stage
from shared.models import Event, FineTune, Job, JobError, JsonObject, ProviderAnswer
from shared.ports import TrainingEvent, TrainingJob, TrainingRequest
from shared.store.jobs import TEACHER
from worker.completions import job_error
from worker.outcomes import Done, Fail, Outcome, Pause, Stopped, Wait
from worker.stages import Save, Tools

_log: Final = structlog.get_logger()

_CLOCK_SKEW_SECONDS: Final = 600  # between the provider's clock and ours, when old jobs are told from new ones
_LOOK_FOR_LOST_SECONDS: Final = 5.0
_EVENTS_PER_LOOK: Final = 200
_MESSAGE_CHARS: Final = 500


async def train(job: Job, tools: Tools, save: Save) -> Outcome:
    """One step for every student that has not ended; done when all have."""
    tunes = list(job.fine_tunes)
    events: list[Event] = []
    waits: list[float] = []
    for number, tune in enumerate(tunes):

        async def keep(changed: FineTune, number: int = number) -> None:
            # Money moves in the same step as the record of it, so a crash neither loses nor doubles it.
            before, tunes[number] = tunes[number], changed
            spent = (changed.cost_nano or 0) - (before.cost_nano or 0)
            reserved = changed.reserved_nano - before.reserved_nano
            told, events[:] = list(events), []
            await save({"fine_tunes": tunes}, add={"spent_nano": spent, "reserved_nano": reserved}, events=told)

        step = _Step(job, number, tools, keep, events)
        try:
            wait = await step.advance(tune)
        except BudgetReached:
            return _budget_reached(job)
        if wait is not None:
            waits.append(wait)
    if waits:
        return Wait(min(waits), events=events)
    if any(tune.status == "succeeded" for tune in tunes):
        return Done(events=events)
    return Fail(next(tune.error for tune in tunes if tune.error is not None), events=events)


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
            found = await trainer.find(_metadata(job, number), tune.training_file, not_before=0)
            ids = [training.id for training in found]
            if not ids and not _given_up(tune, tools):
                return Wait(_LOOK_FOR_LOST_SECONDS, progress=False)
        for fine_tuning_job_id in ids:
            await trainer.cancel(fine_tuning_job_id)
        tunes[number] = replace(tune, step="ended", status="cancelled", ended_at_ms=_now_ms(), reserved_nano=0)
    freed = sum(after.reserved_nano - before.reserved_nano for before, after in zip(job.fine_tunes, tunes, strict=True))
    return Stopped(set={"fine_tunes": tunes}, add={"reserved_nano": freed})


class BudgetReached(Exception):
    """The training could cost more than is left of the job's budget."""


class _Step:
    """One student's next step.  keep: writes the student into the row, under the lease, with the events so far.

    Each method returns the seconds to wait before the next look, or None when the student has ended."""

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

    async def advance(self, tune: FineTune) -> float | None:
        if tune.step in {"new", "uploading"}:
            tune = await self._upload(tune)
        match tune.step:
            case "uploaded":
                return await self._submit(tune)
            case "intent":
                return await self._find_lost(tune)
            case "submitted":
                return await self._poll(tune)
            case _:
                return None

    async def _upload(self, tune: FineTune) -> FineTune:
        """Both files, each looked for first: a crash may have come between the upload and the note of it."""
        assert self._job.manifest is not None
        if tune.step == "new":
            tune = replace(tune, step="uploading")
            await self._keep(tune)
        if tune.training_file is None:
            tune = replace(tune, training_file=await self._file("train"))
            await self._keep(tune)
        if tune.validation_file is None and self._job.manifest.validation:
            tune = replace(tune, validation_file=await self._file("validation"))
        tune = replace(tune, step="uploaded")
        await self._keep(tune)
        return tune

    async def _file(self, split: str) -> str:
        assert self._job.manifest is not None
        # A file of its own for each student: by it a submission is told from those of the other students.
        filename = f"distill-{self._job.id}-{self._job.manifest.sha256[:12]}-{self._number}-{split}.jsonl"
        if (found := await self._trainer.find_file(filename)) is not None:
            return found
        with tempfile.TemporaryDirectory(prefix="distill-") as folder:
            path = Path(folder) / filename
            await self._write(path, split)
            return await self._trainer.upload(path, filename)

    async def _write(self, path: Path, split: str) -> None:
        with path.open("wb") as lines:
            async for _, prompt, completion, decision in self._tools.store.content.curated(self._job.id, TEACHER):
                if decision is None or decision.status != "accepted" or decision.split != split:
                    continue
                assert completion is not None
                lines.write(example_line(self._job.spec, prompt, assistant_message(completion.raw)[0]))

    async def _submit(self, tune: FineTune) -> float | None:
        """Write the intent, then submit.  Whatever happens between the two, the row says that it may have happened."""
        expected = self._expected_cost_nano()
        limit = self._job.money.limit_nano
        if limit is not None and self._job.money.used_nano - tune.reserved_nano + expected > limit:
            raise BudgetReached
        tune = replace(
            tune,
            step="intent",
            intent_at_ms=_now_ms(),
            submissions=tune.submissions + 1,
            reserved_nano=expected if limit is not None else 0,
        )
        await self._keep(tune)
        assert tune.training_file is not None
        request = TrainingRequest(
            model=self._student.model,
            training_file=tune.training_file,
            validation_file=tune.validation_file,
            method=self._student.method,
            hyperparameters=self._student.hyperparameters,
            suffix=self._student.suffix,
            seed=self._student.seed,
            metadata=_metadata(self._job, self._number),
        )
        try:
            return await self._submitted(tune, await self._trainer.submit(request))
        except ProviderUnavailable as error:
            if not error.billed_maybe:
                await self._keep(replace(tune, step="uploaded"))
                raise
            return _LOOK_FOR_LOST_SECONDS
        except (ProviderRateLimited, ProviderQuotaExhausted):
            await self._keep(replace(tune, step="uploaded"))
            raise
        except ProviderError as error:
            await self._end(tune, status="refused", error=self._refusal(error))
            return None

    def _price_list(self) -> str | None:
        return self._tools.providers.settings(self._student.provider).prices

    def _expected_cost_nano(self) -> int:
        """What the training will cost at most, as far as can be known before it: 0 when unpriced.

        Two bytes a token are fewer than any language takes; "auto" epochs are what OpenAI's cookbook says they are."""
        assert self._job.manifest is not None
        examples = max(1, self._job.manifest.train)
        epochs = self._student.hyperparameters.get("n_epochs", "auto")
        if not isinstance(epochs, int):
            epochs = min(25, 100 // examples) if examples * 3 < 100 else max(1, min(3, 25_000 // examples))
        tokens = self._job.manifest.train_bytes // 2 * epochs
        return self._tools.prices.training_nano(self._price_list(), self._student.model, tokens) or 0

    def _cost_nano(self, job: TrainingJob) -> int | None:
        if job.trained_tokens is None:
            return None
        return self._tools.prices.training_nano(self._price_list(), self._student.model, job.trained_tokens)

    async def _find_lost(self, tune: FineTune) -> float | None:
        """A submission whose outcome nobody wrote down: adopt it, wait for it to show, or submit again."""
        assert tune.intent_at_ms is not None
        found = await self._found(tune)
        if found:
            self._say("info", "Found the fine-tuning job of an earlier submission and adopted it.")
            return await self._submitted(tune, found[0])
        if not _given_up(tune, self._tools):
            return _LOOK_FOR_LOST_SECONDS
        return await self._submit(tune)

    async def _found(self, tune: FineTune) -> list[TrainingJob]:
        """This student's fine-tuning jobs at the provider, the one to keep first: the one that is followed, else the
        oldest.  All others are cancelled."""
        assert tune.training_file is not None
        assert tune.intent_at_ms is not None
        not_before = self._job.created_at_ms // 1000 - _CLOCK_SKEW_SECONDS
        mine = _metadata(self._job, self._number)
        jobs = [
            job
            for job in await self._trainer.find(mine, tune.training_file, not_before=not_before)
            if job.metadata.get("student", mine["student"]) == mine["student"]
        ]
        jobs.sort(key=lambda job: job.id != tune.fine_tuning_job_id)
        for extra in jobs[1:]:
            _log.error("fine_tune_submitted_twice", job_id=self._job.id, kept=jobs[0].id, cancelled=extra.id)
            await self._trainer.cancel(extra.id)
        return jobs

    async def _submitted(self, tune: FineTune, job: TrainingJob) -> float | None:
        tune = replace(tune, step="submitted", fine_tuning_job_id=job.id, status=job.status)
        await self._keep(tune)
        self._say("info", f"Student {self._number} is submitted for fine-tuning.", {"fine_tuning_job_id": job.id})
        return self._settings.poll_min_seconds

    async def _poll(self, tune: FineTune) -> float | None:
        assert tune.fine_tuning_job_id is not None
        job = await self._trainer.poll(tune.fine_tuning_job_id)
        if job is None:
            await self._end(tune, status="deleted", error=self._failure("was deleted at the provider", None))
            return None
        tune = await self._read_events(tune)
        tune = replace(
            tune,
            status=job.status,
            trained_tokens=job.trained_tokens,
            estimated_finish_at=job.estimated_finish_at,
        )
        match job.state:
            case "succeeded" if job.fine_tuned_model is not None:
                await self._found(tune)
                tune = replace(tune, fine_tuned_model=job.fine_tuned_model, cost_nano=self._cost_nano(job))
                self._say("info", f"Student {self._number} is trained.", {"fine_tuned_model": job.fine_tuned_model})
                await self._end(tune, status=job.status, error=None)
                return None
            case "failed":
                await self._end(tune, status=job.status, error=self._failure("failed at the provider", job))
                return None
            case "cancelled":
                error = self._failure("was cancelled at the provider", job)
                await self._end(tune, status=job.status, error=error)
                return None
        await self._keep(tune)
        return self._interval(tune)

    def _interval(self, tune: FineTune) -> float:
        """The longer it has run, or has yet to run, the longer until the next look; jittered, so jobs spread out."""
        now = time.time()
        elapsed = now - (tune.intent_at_ms or 0) / 1000
        ahead = (tune.estimated_finish_at - now) if tune.estimated_finish_at else elapsed
        shortest, longest = self._settings.poll_min_seconds, self._settings.poll_max_seconds
        return min(longest, max(shortest, ahead / 5)) * random.uniform(0.9, 1.1)

    async def _read_events(self, tune: FineTune) -> FineTune:
        assert tune.fine_tuning_job_id is not None
        fresh = (await self._trainer.events(tune.fine_tuning_job_id, after=tune.last_event_id))[:_EVENTS_PER_LOOK]
        for event in fresh:
            self._events.append(self._own(event))
            step, total = event.data.get("step"), event.data.get("total_steps")
            if isinstance(step, int):
                tune = replace(tune, step_number=step, total_steps=total if isinstance(total, int) else None)
        return replace(tune, last_event_id=fresh[-1].id) if fresh else tune

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

    async def _end(self, tune: FineTune, *, status: str, error: JobError | None) -> None:
        ended = replace(tune, step="ended", status=status, error=error, ended_at_ms=_now_ms(), reserved_nano=0)
        await self._keep(ended)
        if error is not None:
            self._say("error", error.message, {"code": error.code})

    def _refusal(self, error: ProviderError) -> JobError:
        if isinstance(error, ProviderTrainingClosed):
            message = (
                "The provider takes no new fine-tuning jobs from this account.  The dataset is kept: export it with "
                "GET /v1/jobs/{id}/dataset, or submit a job whose student is at another provider."
            )
        elif isinstance(error, ProviderAuthFailed | ProviderModelMissing):
            return job_error(error, Stage.TRAINING, param=f"students.{self._number}.model")
        else:
            message = (
                "The provider refused the fine-tuning job.  Check the student's model and hyperparameters; the dataset "
                "is kept and can be exported."
            )
        code = "provider_training_closed" if isinstance(error, ProviderTrainingClosed) else "provider_rejected_training"
        return replace(
            job_error(error, Stage.TRAINING),
            code=code,
            message=message,
            param=f"students.{self._number}",
            retryable=False,
        )

    def _failure(self, what: str, job: TrainingJob | None) -> JobError:
        return JobError(
            code="provider_rejected_training",
            message=f"The fine-tuning job {what}.  Look at the job's events for the reason, mend it and retry; the "
            "completions are kept and will not be bought again, and the dataset can be exported.",
            param=f"students.{self._number}",
            stage=Stage.TRAINING,
            provider=ProviderAnswer(code=job.error_code) if job else None,
        )

    def _say(self, level: Literal["info", "error"], message: str, data: JsonObject | None = None) -> None:
        self._events.append(
            Event(
                id=new_event_id(),
                level=level,
                type="message",
                message=message,
                created_at_ms=_now_ms(),
                stage=Stage.TRAINING,
                data={"student": self._number, **(data or {})},
            )
        )


def _given_up(tune: FineTune, tools: Tools) -> bool:
    """Whether a submission that does not show by now was never received."""
    return _now_ms() >= (tune.intent_at_ms or 0) + tools.settings.unknown_outcome_wait_seconds * 1000


def _metadata(job: Job, number: int) -> dict[str, str]:
    return {"distillation_job_id": job.id, "student": str(number)}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
