"""Joining the answers of a batch with their prompts, and deciding on those that have none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import structlog
from msgspec.structs import replace

from shared.errors import ProviderError, ProviderModelMissing, ProviderQuotaExhausted, ProviderUnavailable
from shared.models import BatchRun, Prompt
from shared.store.passes import Settlement
from worker.providers.answers import parse_completion
from worker.stages.batches.lines import after_line, failure_of, read_line
from worker.stages.batches.step import SETTLED_TOGETHER, BatchStep

_log: Final = structlog.get_logger()


@dataclass
class _Tally:
    answered: int = 0
    failed: int = 0
    again: int = 0
    ignored: int = 0
    stop: ProviderError | None = None
    settlements: list[Settlement] = field(default_factory=list)


class Collecting(BatchStep):
    """The end of a batch that the provider has worked on."""

    _read: tuple[int, list[Prompt]] | None = None  # a chunk and its prompts

    async def collect(self, run: BatchRun) -> None:
        """Settle every line of both files, in whatever order they come; done again after a crash, it adds nothing.

        What is in neither file was not asked; where the batch was completed or a file is gone, it may have been."""
        asked = {index: self._scribe.fingerprint(prompt) async for index, prompt in self._begun()}
        tally = _Tally()
        lost = run.status in {"completed", "deleted"}
        for file in filter(None, (run.output_file, run.error_file)):
            try:
                async for line in self._batcher.lines(file):
                    await self._judge(line, asked, tally)
                    if len(tally.settlements) >= SETTLED_TOGETHER:
                        await self._settle(tally)
            except ProviderModelMissing:
                _log.error("batch_file_gone", job_id=self._job.id, file=file)
                lost = True
        missing = ProviderUnavailable("The batch has no answer to this prompt.", provider_code="batch_line_missing")
        for index, fingerprint in asked.items():
            await self._fail(index, fingerprint, missing, tally, lost=lost)
            if len(tally.settlements) >= SETTLED_TOGETHER:
                await self._settle(tally)
        await self._settle(tally)
        if tally.ignored:
            _log.warning("batch_lines_ignored", job_id=self._job.id, number=self._number, lines=tally.ignored)
        if tally.stop is not None and not isinstance(tally.stop, ProviderQuotaExhausted):
            run = replace(run, error=self._scribe.stop_error(tally.stop))
        self._look.quota_exhausted |= isinstance(tally.stop, ProviderQuotaExhausted)
        await self._end(replace(run, released=tally.again))
        self._say(
            f"has {run.status}: {tally.answered} answered, {tally.failed} failed, {tally.again} to be asked again.",
            {"answered": tally.answered, "failed": tally.failed, "asked_again": tally.again},
        )

    async def _judge(self, line: bytes, asked: dict[int, str], tally: _Tally) -> None:
        """One line; one that is no answer to a prompt still open is ignored, so the first of two counts."""
        answer = read_line(line)
        index = answer.index if answer is not None else None
        fingerprint = asked.pop(index, None) if index is not None else None
        if answer is None or index is None or fingerprint is None:
            tally.ignored += 1
            return
        response = answer.response
        if response is None or response.status_code != 200:
            await self._fail(index, fingerprint, failure_of(answer), tally, lost=False)
            return
        try:
            completion = parse_completion(
                bytes(response.body),
                lambda name: response.request_id if name == "x-request-id" else None,
                latency_ms=None,
            )
        except ProviderError as error:
            await self._fail(index, fingerprint, error, tally, lost=True)
            return
        tally.answered += 1
        tally.settlements.append(
            self._scribe.answered(self._chunk(index), index, self._call(index), completion, fingerprint)
        )

    async def _fail(self, index: int, fingerprint: str, error: ProviderError, tally: _Tally, *, lost: bool) -> None:
        chunk, call = self._chunk(index), self._call(index)
        cost = await self._ceiling_nano(index) if lost else None
        attempts_max = self._settings.completion_attempts_max
        decision = after_line(error, attempt=self.run.attempt, attempts_max=attempts_max)
        if decision == "failed":
            tally.failed += 1
            tally.settlements.append(self._scribe.failed(chunk, index, call, error, fingerprint, lost_nano=cost))
            return
        if decision == "again":
            tally.again += 1
        else:
            tally.stop = error
        tally.settlements.append(self._without_answer(index, fingerprint, lost_nano=cost))

    async def _ceiling_nano(self, index: int) -> int:
        """The most that the call for this prompt can cost.  Lost ones come in order, so the last chunk is kept."""
        chunk, first = self._chunk(index), self._chunk(index) * self._job.chunk_size
        if self._read is None or self._read[0] != chunk:
            self._read = chunk, await self._look.content.prompt_chunk(self._job.id, "source", chunk)
        return self._scribe.ceiling_nano(self._read[1][index - first], index)

    async def _settle(self, tally: _Tally) -> None:
        settlements, tally.settlements = tally.settlements, []
        if settlements:
            await self._tick(settlements, [])
