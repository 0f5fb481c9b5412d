"""Submitting a batch exactly once, in the way of worker/stages/submission.py."""

from __future__ import annotations

from typing import Final

import structlog
from msgspec.structs import replace

from shared.errors import (
    ProviderAuthFailed,
    ProviderError,
    ProviderModelMissing,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderUnavailable,
)
from shared.lifecycle import Stage
from shared.models import JobError, ProviderAnswer
from shared.ports import Batch
from worker.completions import job_error
from worker.scratch import scratch_folder
from worker.stages.batches.lines import request_line
from worker.stages.batches.step import BatchStep, now_ms

LOOK_FOR_LOST_SECONDS: Final = 5.0
_CLOCK_SKEW_SECONDS: Final = 600  # between the provider's clock and ours, when old batches are told from new ones
_log: Final = structlog.get_logger()


class Submission(BatchStep):
    """From the calls begun to a batch at the provider."""

    async def upload(self) -> None:
        """The file is looked for first: a crash may have come between its upload and the note of it."""
        run = self.run
        if run.step == "uploaded":
            return
        filename = f"distill-{self._job.id}-batch-{self._number}.jsonl"
        file_id = await self._batcher.find_file(filename)
        if file_id is None:
            with scratch_folder() as folder:
                path = folder / filename
                with path.open("wb") as lines:
                    async for index, prompt in self._begun():
                        lines.write(request_line(index, self._scribe.body(prompt, index)))
                file_id = await self._batcher.upload(path, filename)
        await self._keep(replace(run, step="uploaded", input_file=file_id))

    async def submit(self) -> float | None:
        """Write the intent, then submit.  Whatever happens between the two, the row says that it may have happened."""
        run = self.run
        input_file = run.input_file
        assert input_file is not None
        run = replace(run, step="intent", intent_at_ms=now_ms(), submissions=run.submissions + 1)
        await self._keep(run)
        try:
            batch = await self._batcher.submit(input_file, self._metadata())
        except ProviderUnavailable as error:
            _log.warning("batch_submission_unanswered", status=error.status, code=error.provider_code)
            return LOOK_FOR_LOST_SECONDS
        except (ProviderRateLimited, ProviderQuotaExhausted):
            await self._keep(replace(run, step="uploaded"))
            raise
        except ProviderError as error:
            refused = isinstance(error, ProviderAuthFailed | ProviderModelMissing)
            failure = job_error(error, Stage.GENERATING) if refused else refusal(error.status, error.provider_code)
            await self._let_go(lost=False)
            await self._end(replace(run, status="refused", error=failure))
            return None
        return await self.submitted(batch)

    async def find_lost(self) -> float | None:
        """A submission whose outcome nobody wrote down: adopt it, wait for it to show, or submit again."""
        found = await self.found()
        if found is not None:
            self._say("was found at the provider after a crash, and adopted.")
            return await self.submitted(found)
        if self.may_yet_show():
            return LOOK_FOR_LOST_SECONDS
        return await self.submit()

    def may_yet_show(self) -> bool:
        """Whether an answer to the submission could still be on its way."""
        return now_ms() < (self.run.intent_at_ms or 0) + self._settings.unknown_outcome_wait_seconds * 1000

    async def withdraw(self) -> None:
        """It was never received, and will not be sent."""
        await self._let_go(lost=False)
        await self._end(replace(self.run, status="not_submitted"))

    async def found(self) -> Batch | None:
        """This batch at the provider: the one we know, else the oldest.  All others of its name are cancelled."""
        run = self.run
        assert run.input_file is not None
        not_before = self._job.created_at_ms // 1000 - _CLOCK_SKEW_SECONDS
        batches = await self._batcher.find(self._metadata(), run.input_file, not_before=not_before)
        kept = next((batch for batch in batches if batch.id == run.batch_id), batches[0] if batches else None)
        for extra in batches:
            if kept is not None and extra.id != kept.id and extra.state in {"waiting", "running"}:
                _log.error("batch_submitted_twice", job_id=self._job.id, kept=kept.id, cancelled=extra.id)
                await self._batcher.cancel(extra.id)
        return kept

    async def submitted(self, batch: Batch) -> float:
        run = replace(self.run, step="submitted", batch_id=batch.id, status=batch.status)
        await self._keep(run)
        await self._look.followed.expect(self._look.provider, batch.id, self._job.id)
        self._say(f"is submitted with {run.requests} requests.", {"requests": run.requests})
        return self._settings.poll_min_seconds

    def _metadata(self) -> dict[str, str]:
        return {"distillation_job_id": self._job.id, "batch": str(self._number)}


def refusal(status: int | None, code: str | None) -> JobError:
    return JobError(
        code="provider_rejected_batch",
        message="The provider refused a batch of prompts; the job's events name the lines.  Send a new job "
        "with these mended, or with `teacher.mode` live; what is paid is kept and will not be bought again.",
        param="teacher",
        stage=Stage.GENERATING,
        provider=ProviderAnswer(status=status, code=code),
    )
