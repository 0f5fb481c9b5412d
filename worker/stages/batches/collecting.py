"""Joining the answers of a batch with their prompts, and deciding on those that have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
from msgspec.structs import replace

from shared.errors import ProviderError, ProviderModelMissing, ProviderQuotaExhausted, ProviderUnavailable
from shared.models import BatchRun, Prompt, usd
from shared.ports import Batch
from shared.store.passes import Settlement
from worker.stages.batches.lines import after_line, completion_of, failure_of, read_line
from worker.stages.batches.step import SETTLED_TOGETHER, BatchStep

_log: Final = structlog.get_logger()


@dataclass
class _Tally:
    answered: int = 0
    failed: int = 0
    again: int = 0
    ignored: int = 0
    handed_out: int = 0  # answers, those to prompts that are settled among them
    stop: ProviderError | None = None
    settlements: list[Settlement] = field(default_factory=list)


class Collecting(BatchStep):
    """The end of a batch that the provider has worked on."""

    _read: tuple[int, list[Prompt]] | None = None  # a chunk and its prompts

    async def collect(self, run: BatchRun) -> None:
        """Settle every line of both files, in whatever order they come; done again after a crash, it adds nothing.

        What is in neither file was not asked; where the batch was completed, a file is gone, or the provider counts
        more answers than there are, it may have been."""
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
        lost = lost or run.completed > tally.handed_out  # the provider counts, and bills, answers that are in no file
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
        self._say(
            f"has {run.status}: {tally.answered} answered, {tally.failed} failed, {tally.again} to be asked again.",
            {"answered": tally.answered, "failed": tally.failed, "asked_again": tally.again},
        )
        await self._end(replace(run, released=tally.again))

    async def count_others(self, others: Sequence[Batch]) -> None:
        """Book, once, what was answered of the same prompts by batches that submissions which seemed lost have started.
        Where nobody says, as of one that has not ended yet, it may be everything.

        Done before the answers of this batch are settled, while all that it asks is known; the money and the note of it
        are one write."""
        run = self.run
        fresh = [other for other in others if other.id not in run.others and other.state != "failed"]
        if not fresh:
            return
        known = [await self._cost_nano(other) for other in fresh]
        paid = sum(cost for cost in known if cost is not None)
        unconfirmed = 0
        if unknown := known.count(None):
            unconfirmed = unknown * sum([await self._ceiling_nano(index) async for index, _ in self._begun()])
        self._say(
            f"was submitted twice, for the answer to the first submission was lost.  The other one cost {usd(paid)} "
            f"dollars; up to {usd(unconfirmed)} more that the provider may bill for it stay unconfirmed.",
            {"cost_usd": usd(paid), "unconfirmed_usd": usd(unconfirmed)},
            level="warn",
        )
        booked = replace(run, others=[*run.others, *(other.id for other in fresh)], others_nano=run.others_nano + paid)
        await self._keep(booked, add={"spent_nano": paid, "unconfirmed_nano": unconfirmed})

    async def _cost_nano(self, other: Batch) -> int | None:
        """Of what a batch has answered; None where it has not ended, or its answers cannot be read."""
        if other.state != "over":
            return None
        if other.output_file is None:
            return None if other.completed else 0
        paid, read = 0, 0
        try:
            async for line in self._batcher.lines(other.output_file):
                answer = read_line(line)
                if answer is None or answer.index is None or not answer.is_answered:
                    continue
                try:
                    paid += self._scribe.cost_nano(completion_of(answer)) or 0
                except ProviderError:
                    return None
                read += 1
        except ProviderError as error:
            if error.retryable:
                raise
            return None
        return paid if read >= other.completed else None

    async def _judge(self, line: bytes, asked: dict[int, str], tally: _Tally) -> None:
        """One line; one that is no answer to a prompt still open is ignored, so the first of two counts."""
        answer = read_line(line)
        index = answer.index if answer is not None else None
        tally.handed_out += answer is not None and index is not None and answer.is_answered
        fingerprint = asked.pop(index, None) if index is not None else None
        if answer is None or index is None or fingerprint is None:
            tally.ignored += 1
            return
        if not answer.is_answered:
            await self._fail(index, fingerprint, failure_of(answer), tally, lost=False)
            return
        try:
            completion = completion_of(answer)
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
