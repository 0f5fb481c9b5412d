"""Beginning the calls of one batch, as many as the file, the model's queue and the budget take."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from shared.models import Prompt
from shared.ports import BATCH_WINDOW_SECONDS
from shared.store.passes import Beginning, Settlement
from worker.stages.batches.lines import BatchLimits, Room, request_line
from worker.stages.batches.step import TOKEN, BatchStep, Shortage

_CLAIM_SECONDS: Final = 2 * BATCH_WINDOW_SECONDS
#: A round may take a day.  After the first, one that the budget cuts to a smaller share of what is left is not begun.
_WORTH_A_ROUND: Final = 0.1


class Filling(BatchStep):
    """From a new batch to one whose prompts are known."""

    async def fill(self) -> bool:
        """Begin the calls of one batch; whether it has any and can go on.

        Done again after a crash it begins the same calls: what counts for the room is every open prompt, whether the
        budget grants it or not, and a call begun before is granted again.  A batch without calls is taken back."""
        run = self.run
        await self._claim_all()
        room = Room(self._uncrowded())
        total = self._job.counters.prompts_total
        end, more, granted, self._look.shortage = total, False, 0, None
        async for chunk, open_ in self._open_prompts(run.first, total):
            settlements, beginnings = await self._to_begin(chunk, open_)
            fitting: list[Beginning] = []
            for beginning in beginnings:
                body = self._scribe.body(open_[beginning.index], beginning.index)
                if not room.take(len(request_line(beginning.index, body))):
                    end, more = beginning.index, True
                    break
                fitting.append(beginning)
            if not (settlements or fitting):
                break
            result = await self._tick(settlements, fitting)
            granted += result.answers.count("go")
            if "stopped" in result.answers:
                return False
            short = next((answer for answer in ("budget", "day") if answer in result.answers), None)
            if short is not None:
                needs_nano = fitting[result.answers.index(short)].reserve_nano or 0
                self._look.shortage = Shortage(short == "day", needs_nano)
                end, more = min(end, (chunk + 1) * self._job.chunk_size), False
            if more or self._look.shortage is not None:
                break
        left = total - self._job.counters.settled
        cut = self._look.shortage is not None and run.first == 0
        if cut and self._number and granted < _WORTH_A_ROUND * left:
            await self._let_go(lost=False)
            granted = 0
        if granted:
            await self._keep(replace(run, step="uploading", end=end, more=more, requests=granted))
            return True
        runs = self._look.runs
        runs.pop()
        if runs and runs[-1].more:
            runs[-1] = replace(runs[-1], more=False)
        await self._look.save({"batches": runs})
        return False

    async def _to_begin(self, chunk: int, open_: dict[int, Prompt]) -> tuple[list[Settlement], list[Beginning]]:
        """What costs nothing is settled at once: the caller's own completions, and those the tenant has paid for."""
        settlements: list[Settlement] = []
        asked: dict[int, str] = {}
        for index, prompt in open_.items():
            if prompt.completion is not None:
                settlements.append(self._scribe.supplied(chunk, index, prompt))
            else:
                asked[index] = self._scribe.fingerprint(prompt)
        paid = await self._look.passes.paid_before(self._job.tenant, list(asked.values()))
        beginnings: list[Beginning] = []
        for index, fingerprint in asked.items():
            if fingerprint in paid:
                settlements.append(self._scribe.reused(chunk, index, paid[fingerprint]))
            else:
                reserve = self._scribe.reserve_nano(open_[index], index)
                beginnings.append(Beginning(chunk, index, self._call(index), reserve, fingerprint))
        return settlements, beginnings

    def _uncrowded(self) -> BatchLimits:
        """Half of what the model's queue had no room for, until it had room again."""
        requests = self._look.limits.requests
        for run in reversed(self._look.runs[:-1]):
            if not run.crowded_out:
                break
            requests = min(requests, max(1, run.requests // 2))
        return BatchLimits(requests, self._look.limits.file_bytes)

    async def _claim_all(self) -> None:
        while await self._look.passes.claim_chunk(self._look.pass_id, TOKEN, lease_seconds=_CLAIM_SECONDS) is not None:
            pass
