"""Following a submitted batch until it has ended, or stopping it."""

from __future__ import annotations

import random
import time
from typing import Final

import structlog
from msgspec.structs import replace

from shared.errors import ProviderError
from shared.models import BatchRun
from shared.ports import Batch
from worker.stages.batches.collecting import Collecting
from worker.stages.batches.step import BatchStep, now_ms
from worker.stages.batches.submission import Submission, refusal

_CANCELLING_SECONDS: Final = 1800  # the provider promises ten minutes; after this it is not waited for
#: The file is good, and the model's queue is full for now.
_CROWDED: Final = frozenset({"token_limit_exceeded"})
_log: Final = structlog.get_logger()


class Following(BatchStep):
    """One look at a batch that is submitted: seconds until the next one, None when it has ended."""

    async def poll(self, *, patient: bool) -> float | None:
        """patient: what is out is paid for, so troubles of the provider are waited out, to the job's deadline."""
        try:
            return await self._read()
        except ProviderError as error:
            if not (patient and error.retryable):
                raise
            _log.warning("batch_not_read", number=self._number, status=error.status, code=error.provider_code)
            return max(self._settings.poll_max_seconds, error.retry_after_seconds or 0.0)

    async def _read(self) -> float | None:
        run = self.run
        assert run.batch_id is not None
        others = await self._others()
        await self._look.followed.expect(self._look.provider, run.batch_id, self._job.id)
        batch = await self._batcher.poll(run.batch_id)
        collecting = Collecting(self._look, self._number)
        is_over = batch is None or batch.state in {"over", "failed"}
        await collecting.count_others([other for other in others if is_over or other.state == "over"])
        run = self.run
        if batch is None:
            await collecting.collect(replace(run, status="deleted", output_file=None, error_file=None))
            return None
        run = replace(
            run,
            status=batch.status,
            completed=batch.completed,
            failed=batch.failed,
            output_file=batch.output_file,
            error_file=batch.error_file,
        )
        if run != self.run:
            await self._keep(run)
        match batch.state:
            case "over":
                await collecting.collect(run)
                return None
            case "failed":
                await self._refused(run, batch)
                return None
            case _:
                return self._interval(run)

    async def _others(self) -> list[Batch]:
        """What earlier submissions have started, if they have shown themselves after all."""
        if self.run.submissions < 2:
            return []
        found = await Submission(self._look, self._number).found()
        return [batch for batch in found if batch.id != self.run.batch_id]

    def _interval(self, run: BatchRun) -> float:
        """The longer it has run, the longer until the next look; jittered, so that jobs spread out."""
        elapsed = time.time() - (run.intent_at_ms or 0) / 1000
        shortest, longest = self._settings.poll_min_seconds, self._settings.poll_max_seconds
        return min(longest, max(shortest, elapsed / 5)) * random.uniform(0.9, 1.1)

    async def _refused(self, run: BatchRun, batch: Batch) -> None:
        """The file did not pass the provider's check: for good, or because too much is queued already."""
        await self._let_go(lost=False)
        codes = {fault.code for fault in batch.faults}
        if codes & _CROWDED:
            self._say("found no room in the model's queue; its prompts are asked later.")
            await self._end(replace(run, crowded_out=True, more=False))
            return
        faults = [{"code": fault.code, "line": fault.line, "param": fault.param} for fault in batch.faults]
        code = next((fault.code for fault in batch.faults if fault.code), None)
        self._say("was refused by the provider.", {"faults": faults}, level="error")
        await self._end(replace(run, error=refusal(None, code)))

    async def cancel(self) -> float | None:
        wait = await self.poll(patient=False)
        run = self.run
        if wait is None:
            return None
        assert run.batch_id is not None
        if run.cancelled_at_ms is None:
            await self._batcher.cancel(run.batch_id)
            await self._keep(replace(run, cancelled_at_ms=now_ms()))
            return self._settings.poll_min_seconds
        if now_ms() > run.cancelled_at_ms + _CANCELLING_SECONDS * 1000:
            _log.error("batch_not_cancelled", job_id=self._job.id, batch=run.batch_id)
            await Collecting(self._look, self._number).count_others(await self._others())
            await self.leave()
            return None
        return min(wait, self._settings.poll_max_seconds)

    async def leave(self) -> None:
        """The provider does not end it, or does not say so; a deletion will ask it again."""
        self._say(
            "may go on there: the provider did not end it, or did not say so.  What it may bill for its "
            f"{self.run.requests} requests stays unconfirmed.",
            {"requests": self.run.requests},
            level="error",
        )
        await self._let_go(lost=True)
        await self._end(replace(self.run, status="left"))
