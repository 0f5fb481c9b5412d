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
        earlier = self.run  # uploaded; or intent, when a submission before this one was lost
        input_file = earlier.input_file
        assert input_file is not None
        run = replace(earlier, step="intent", intent_at_ms=now_ms(), submissions=earlier.submissions + 1)
        await self._keep(run)
        try:
            batch = await self._batcher.submit(input_file, self._metadata())
        except ProviderUnavailable as error:
            _log.warning("batch_submission_unanswered", status=error.status, code=error.provider_code)
            if error.billed_maybe:
                return LOOK_FOR_LOST_SECONDS
            await self._keep(earlier)
            return max(self._settings.poll_max_seconds, error.retry_after_seconds or 0.0)
        except (ProviderRateLimited, ProviderQuotaExhausted):
            await self._keep(earlier)
            raise
        except ProviderError as error:
            refused = isinstance(error, ProviderAuthFailed | ProviderModelMissing)
            failure = job_error(error, Stage.GENERATING) if refused else refusal(error.status, error.provider_code)
            await self._let_go(lost=earlier.step == "intent")
            await self._end(replace(run, status="refused", error=failure))
            return None
        return await self.submitted(batch)

    async def find_lost(self) -> float | None:
        """A submission whose outcome nobody wrote down: adopt it, wait for it to show, or submit again."""
        found = await self.found()
        if found:
            self._say("was found at the provider after a crash, and adopted.")
            return await self.submitted(found[0])
        if self.may_yet_show():
            return LOOK_FOR_LOST_SECONDS
        if self.run.submissions >= self._settings.stage_attempts_max:
            unanswered = ProviderUnavailable("The provider has answered no submission.")
            await self.miss(job_error(unanswered, Stage.GENERATING))
            return None
        return await self.submit()

    def may_yet_show(self) -> bool:
        """Whether an answer to the submission could still be on its way."""
        return now_ms() < (self.run.intent_at_ms or 0) + self._settings.unknown_outcome_wait_seconds * 1000

    async def withdraw(self) -> None:
        """It was never sent, and will not be."""
        await self._let_go(lost=False)
        await self._end(replace(self.run, status="not_submitted"))

    async def miss(self, error: JobError | None) -> None:
        """It does not show at the provider, which may have received it all the same."""
        self._say(
            f"does not show at the provider.  What it may bill for its {self.run.requests} requests stays unconfirmed.",
            {"requests": self.run.requests},
            level="warn",
        )
        await self._let_go(lost=True)
        await self._end(replace(self.run, status="not_shown", error=error))

    async def found(self) -> list[Batch]:
        """This batch at the provider: first the one that is followed, else the oldest.  The others are cancelled."""
        run = self.run
        assert run.input_file is not None
        not_before = self._job.created_at_ms // 1000 - _CLOCK_SKEW_SECONDS
        batches = await self._batcher.find(self._metadata(), run.input_file, not_before=not_before)
        batches.sort(key=lambda batch: batch.id != run.batch_id)
        kept = run.batch_id or next((batch.id for batch in batches), None)
        for extra in batches:
            if extra.id != kept and extra.state in {"waiting", "running"}:
                _log.error("batch_submitted_twice", job_id=self._job.id, kept=kept, cancelled=extra.id)
                await self._batcher.cancel(extra.id)
        return batches

    async def submitted(self, batch: Batch) -> float:
        run = replace(self.run, step="submitted", batch_id=batch.id, status=batch.status)
        self._say(f"is submitted with {run.requests} requests.", {"batch_id": batch.id, "requests": run.requests})
        await self._keep(run)
        await self._look.followed.expect(self._look.provider, batch.id, self._job.id)
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
