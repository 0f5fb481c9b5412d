"""Submitting a fine-tune exactly once.

Every step is written into the row before it is taken, so whoever finds the row after a crash knows what may have
happened: an upload is looked for by its name before it is made again, a submission by its metadata and training file,
for as long as an answer could still be on its way.  Found again means adopted; two found means all but the oldest are
cancelled.  (Measured: docs/decisions/0002.)"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from shared.curation import Sample
from shared.errors import (
    ProviderAuthFailed,
    ProviderError,
    ProviderModelMissing,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTrainingClosed,
    ProviderUnavailable,
)
from shared.exports import lines_of, split_of_all
from shared.lifecycle import Stage
from shared.models import FineTune, JobError
from shared.plan import teacher_plans
from shared.ports import TrainingJob, TrainingRequest
from worker.completions import job_error
from worker.scratch import scratch_folder
from worker.stages.student import LOOK_FOR_LOST_SECONDS, StudentStep, given_up, metadata, now_ms


class BudgetReached(Exception):
    """The training could cost more than is left of the job's budget.  needs_nano: beside what it holds already."""

    def __init__(self, needs_nano: int) -> None:
        super().__init__()
        self.needs_nano = needs_nano


class FileRefused(Exception):
    """The provider does not take a training file, and said so for good."""

    def __init__(self, tune: FineTune, split: str, cause: ProviderRejected) -> None:
        super().__init__(split)
        self.tune = tune
        self.split = split
        self.cause = cause


class Submission(StudentStep):
    """From the dataset to a fine-tuning job at the provider."""

    async def advance(self, tune: FineTune) -> float | None:
        """Seconds until the next look, None when the student has ended."""
        if tune.step in {"new", "uploading"}:
            try:
                tune = await self._upload(tune)
            except FileRefused as refused:
                await self._end(refused.tune, status="refused", error=self._refused_file(refused))
                return None
        return await (self._submit(tune) if tune.step == "uploaded" else self._find_lost(tune))

    async def _upload(self, tune: FineTune) -> FineTune:
        """Both files, each looked for first: a crash may have come between the upload and the note of it."""
        assert self._job.manifest is not None
        if tune.step == "new":
            tune = replace(tune, step="uploading")
            await self._keep(tune)
        if tune.training_file is None:
            tune = replace(tune, training_file=await self._file(tune, "train"))
            await self._keep(tune)
        if tune.validation_file is None and self._lines("validation"):
            tune = replace(tune, validation_file=await self._file(tune, "validation"))
        tune = replace(tune, step="uploaded")
        await self._keep(tune)
        return tune

    async def _file(self, tune: FineTune, split: str) -> str:
        assert self._job.manifest is not None
        # A file of its own for each student: by it a submission is told from those of the other students.
        filename = f"distill-{self._job.id}-{self._job.manifest.sha256[:12]}-{self._number}-{split}.jsonl"
        if found := await self._trainer.find_files(filename, not_before=self._not_before):
            for file_id in found[1:]:  # uploaded again before the first one showed
                with suppress(ProviderError):
                    await self._trainer.delete_file(file_id)
            return found[0]
        with scratch_folder() as folder:
            path = folder / filename
            await self._write(path, split)
            try:
                return await self._trainer.upload(path, filename)
            except ProviderRejected as error:
                raise FileRefused(tune, split, error) from None

    async def _write(self, path: Path, split: str) -> None:
        with path.open("wb") as lines:
            samples = [plan.name for plan in teacher_plans(self._job)]
            async for prompt, answers, decisions in self._tools.store.content.curated(self._job.id, samples):
                if split_of_all(decisions) == split:
                    messages = [Sample.of(answer).message for answer in answers]
                    lines.write(lines_of(self._job.spec, self._format, prompt, messages, decisions))

    async def _submit(self, tune: FineTune) -> float | None:
        """Write the intent, then submit.  Whatever happens between the two, the row says that it may have happened."""
        expected = self._ceiling_nano()
        limit = self._job.money.limit_nano
        if limit is not None and self._job.money.used_nano - tune.reserved_nano + expected > limit:
            raise BudgetReached(expected - tune.reserved_nano)
        tune = replace(
            tune,
            step="intent",
            intent_at_ms=now_ms(),
            submissions=tune.submissions + 1,
            reserved_nano=0 if limit is None and self._tools.store.day_limit(self._job.tenant) is None else expected,
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
            metadata=metadata(self._job, self._number),
            integrations=self._student.integrations,
        )
        try:
            return await self._submitted(tune, await self._trainer.submit(request))
        except ProviderUnavailable as error:
            if not error.billed_maybe:
                await self._keep(replace(tune, step="uploaded"))
                raise
            return LOOK_FOR_LOST_SECONDS
        except (ProviderRateLimited, ProviderQuotaExhausted):
            await self._keep(replace(tune, step="uploaded"))
            raise
        except ProviderError as error:
            await self._end(tune, status="refused", error=self._refusal(error))
            return None

    async def _find_lost(self, tune: FineTune) -> float | None:
        """A submission whose outcome nobody wrote down: adopt it, wait for it to show, or submit again."""
        assert tune.intent_at_ms is not None
        found = await self._found(tune)
        if found:
            self._say("info", "Found the fine-tuning job of an earlier submission and adopted it.")
            return await self._submitted(tune, found[0])
        if not given_up(tune, self._tools):
            return LOOK_FOR_LOST_SECONDS
        if tune.submissions >= self._settings.stage_attempts_max:
            unanswered = ProviderUnavailable("The provider has answered no submission.")
            await self._end(self._settled(tune, None), status="refused", error=job_error(unanswered, Stage.TRAINING))
            return None
        return await self._submit(tune)

    async def _submitted(self, tune: FineTune, job: TrainingJob) -> float | None:
        tune = replace(tune, step="submitted", fine_tuning_job_id=job.id, status=job.status)
        await self._keep(tune)
        self._say("info", f"Student {self._number} is submitted for fine-tuning.", {"fine_tuning_job_id": job.id})
        return self._settings.poll_min_seconds

    def _refused_file(self, refused: FileRefused) -> JobError:
        return replace(
            job_error(refused.cause, Stage.TRAINING),
            code="provider_rejected_training",
            message=f"The provider refused the {refused.split} file, perhaps for its size.  The dataset is kept and "
            "can be exported; submit a job with fewer prompts, or with a student at another provider.",
            param=f"students.{self._number}",
        )

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
