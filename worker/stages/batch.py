"""generating by the file: the teacher's pass through the provider's Batch API, at half the price.

The pass is the one that pumps would work on, with the same ledger, budget and completions, but no pump sees it: this
stage claims all its chunks under one fixed name, so that after a crash the calls begun in that name are still its own.
A batch is a row of the job (`BatchRun`).  Which prompts it asks is told by the calls begun in its name, so its input
file can be written again, byte for byte; submitting is exactly-once in the way of worker/stages/submission.py.

Prompts are looked at in rounds.  A round goes through all that is not settled, as one batch after the other; the next
round begins when all of them have ended, with what they left: expired lines, passing errors, twins of prompts that
were out, and what the budget did not allow before."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import msgspec
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
from shared.ids import JobId, new_event_id
from shared.lifecycle import PausedReason, Stage
from shared.models import BatchRun, Event, Job, JobError, JsonObject, Prompt, ProviderAnswer
from shared.plan import teacher_plan
from shared.ports import BATCH_WINDOW_SECONDS, Batch
from shared.store.passes import Beginning, PassId, Settlement, TickResult
from worker.completions import Scribe, job_error
from worker.outcomes import Done, Fail, Outcome, Pause, Wait
from worker.providers.answers import error_of, parse_completion, word
from worker.stages import Save, Tools

_log: Final = structlog.get_logger()

TOKEN: Final = "batch"  # noqa: S105  (the name under which chunks are claimed)
_CLAIM_SECONDS: Final = 2 * BATCH_WINDOW_SECONDS
_CLOCK_SKEW_SECONDS: Final = 600  # between the provider's clock and ours, when old batches are told from new ones
_LOOK_FOR_LOST_SECONDS: Final = 5.0
_TWIN_SECONDS: Final = 5.0  # before the ledger is asked again about a completion that another job is buying
_CANCELLING_SECONDS: Final = 1800  # the provider promises ten minutes; after this it is not waited for
_SETTLED_TOGETHER: Final = 200
#: A round may take a day.  After the first, one that the budget cuts to a smaller share of what is left is not begun.
_WORTH_A_ROUND: Final = 0.1
#: The file is good, and the model's queue is full for now.
_CROWDED: Final = frozenset({"token_limit_exceeded"})
_ENDPOINT: Final = "/v1/chat/completions"


@dataclass(frozen=True)
class BatchLimits:
    """Of one input file, as the provider sets them."""

    requests: int = 50_000
    file_bytes: int = 200_000_000


async def generate_by_batches(job: Job, tools: Tools, save: Save, limits: BatchLimits | None = None) -> Outcome:
    """One look at the batches of the teacher's pass."""
    await tools.store.followed.take_hint(job.id)  # we look now
    return await _Batches(job, tools, save, limits or BatchLimits()).advance()


async def stop_batches(job: Job, tools: Tools, save: Save) -> Wait | None:
    """Cancel what is out and keep what was answered.  None once nothing is out."""
    if all(run.step == "ended" for run in job.batches):
        return None
    batches = _Batches(job, tools, save, BatchLimits())
    wait = await batches.stop()
    return None if wait is None else Wait(wait, events=batches.events)


# --- pure parts ------------------------------------------------------------------------------------------------------


@dataclass
class Room:
    """What one input file still takes.  The first line always fits: a file without one would be none."""

    limits: BatchLimits
    requests: int = 0
    file_bytes: int = 0

    def take(self, line_bytes: int) -> bool:
        fits = self.requests < self.limits.requests and self.file_bytes + line_bytes <= self.limits.file_bytes
        if not fits and self.requests:
            return False
        self.requests += 1
        self.file_bytes += line_bytes
        return True


def call_id(job_id: JobId, number: int, index: int) -> str:
    """Of the call that one line of a batch is: unique, and told again from the row alone."""
    return f"{TOKEN}.{job_id}.{number}.{index}"


def request_line(index: int, body: JsonObject) -> bytes:
    line = {"custom_id": str(index), "method": "POST", "url": _ENDPOINT, "body": body}
    return msgspec.json.encode(line) + b"\n"


class _Response(msgspec.Struct):
    status_code: int
    body: msgspec.Raw = msgspec.Raw()
    request_id: str | None = None


class _LineError(msgspec.Struct):
    code: str | None = None


class AnswerLine(msgspec.Struct):
    """One line of an output or error file."""

    custom_id: str
    response: _Response | None = None
    error: _LineError | None = None

    @property
    def index(self) -> int | None:
        """The prompt it answers; None for an id that was not ours."""
        text = self.custom_id
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


_lines: Final = msgspec.json.Decoder(AnswerLine)


def read_line(line: bytes) -> AnswerLine | None:
    """None for what is no such line."""
    try:
        return _lines.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def failure_of(line: AnswerLine) -> ProviderError:
    """Why a line has no completion.  The line was not billed: nothing failed in a batch is."""
    response = line.response
    if response is None:
        code = line.error.code if line.error is not None else None
        return ProviderUnavailable(
            "The batch ended before this prompt was asked.",
            billed_maybe=False,
            provider_code=word(code) or "batch_line_without_response",
        )
    request_id = response.request_id
    return error_of(
        response.status_code, bytes(response.body), lambda name: request_id if "request-id" in name else None
    )


def after_line(error: ProviderError, *, attempt: int, attempts_max: int) -> Literal["again", "failed", "pause", "stop"]:
    """What becomes of a prompt whose line failed.  again: in a further batch.  pause, stop: the job, and the prompt
    is asked again should it go on."""
    match error:
        case ProviderQuotaExhausted():
            return "pause"
        case ProviderAuthFailed() | ProviderModelMissing():
            return "stop"
        case _ if error.retryable and attempt < attempts_max:
            return "again"
        case _:
            return "failed"


# --- one look --------------------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    answered: int = 0
    failed: int = 0
    again: int = 0
    ignored: int = 0
    stop: ProviderError | None = None
    settlements: list[Settlement] = field(default_factory=list)


class _Batches:
    """Every step writes the row through `save`, under the job's lease, before it asks anything of the provider."""

    def __init__(self, job: Job, tools: Tools, save: Save, limits: BatchLimits) -> None:
        plan = teacher_plan(job)
        provider = tools.providers.settings(plan.provider)
        self._job = job
        self._followed = tools.store.followed
        self._provider = plan.provider
        self._pass_id = PassId(job.id, plan.name)
        self._passes = tools.store.passes
        self._content = tools.store.content
        self._settings = tools.settings
        self._batcher = tools.providers.batcher(plan.provider)
        self._scribe = Scribe(
            job,
            plan,
            tools.prices,
            provider.prices,
            secret=tools.settings.secret,
            day_limited=tools.store.day_limit(job.tenant) is not None,
        )
        self._save = save
        self._limits = limits
        self._runs = list(job.batches)
        self._pause = False
        self._short = False  # the budget, or what the tenant may spend today, did not allow the next call
        self._of_day = False  # it was the day
        self._needs_nano = 0  # of either, for the next call
        self.events: list[Event] = []

    async def advance(self) -> Outcome:
        complete = await self._passes.open(
            self._pass_id,
            prompts=self._job.counters.prompts_total,
            chunk_size=self._job.chunk_size,
            smoke=0,
            for_pumps=False,
        )
        waits: list[float] = []
        for number, run in enumerate(self._runs):
            if run.step != "ended" and self._error is None:
                wait = await self._step(number)
                waits += [] if wait is None else [wait]
        if self._error is not None:
            wait = await self.stop()
            return Fail(self._error, self.events) if wait is None else Wait(wait, events=self.events)
        if self._pause:
            return Pause(PausedReason.PROVIDER_QUOTA, self.events)
        if any(run.step == "new" for run in self._runs):
            return Wait(0.0, events=self.events)  # the owner has stopped the job while calls were begun
        if waits and not self._runs[-1].more:
            return Wait(min(waits), events=self.events)
        if complete and not waits:
            return Done(events=self.events)
        return await self._next(waits)

    @property
    def _error(self) -> JobError | None:
        return next((run.error for run in self._runs if run.error is not None), None)

    async def _next(self, waits: list[float]) -> Outcome:
        """One batch more: the round's next, or the first of another round."""
        last = self._runs[-1] if self._runs else BatchRun()
        if not waits and last.crowded_out and (quiet := self._until_less_crowded(last)) > 0:
            return Wait(quiet, events=self.events)
        if last.more:
            run = BatchRun(first=last.end, attempt=last.attempt)
        else:
            retried = [run.attempt + 1 for run in self._runs if run.released]
            run = BatchRun(attempt=max([1, *retried, *(run.attempt for run in self._runs)]))
        number = len(self._runs)
        self._runs.append(run)
        await self._keep(number, run)
        wait = await self._step(number)
        if len(self._runs) == number:
            return await self._nothing_begun(waits)
        if wait is None or self._runs[number].more:
            return Wait(0.0, events=self.events)
        return Wait(min([wait, *waits]), events=self.events)

    async def _nothing_begun(self, waits: list[float]) -> Outcome:
        """No prompt could be begun: all are settled or out, others buy the same, or the budget is used up."""
        if waits:
            return Wait(min(waits), events=self.events)
        state = await self._passes.state(self._pass_id)
        if state is not None and state.complete:
            return Done(events=self.events)
        if not self._short:
            return Wait(_TWIN_SECONDS, events=self.events)
        if self._of_day:
            return Pause(PausedReason.DAILY_SPEND, self.events, needs_nano=self._needs_nano)
        if self._job.spec.budget.on_limit == "fail":
            return Fail(self._scribe.budget_failure(self._needs_nano), self.events)
        return Pause(PausedReason.BUDGET, self.events, needs_nano=self._needs_nano)

    def _until_less_crowded(self, run: BatchRun) -> float:
        return (run.ended_at_ms or 0) / 1000 + 10 * self._settings.poll_max_seconds - time.time()

    async def _step(self, number: int) -> float | None:
        """Seconds to wait before the next look at this batch, None when it has ended."""
        if self._runs[number].step == "new" and not await self._fill(number):
            return 0.0
        match self._runs[number].step:
            case "uploading" | "uploaded":
                await self._upload(number)
                return await self._submit(number)
            case "intent":
                return await self._find_lost(number)
            case "submitted":
                return await self._poll(number, patient=True)
            case _:
                return None

    # --- what is asked ------------------------------------------------------------------------------------------------

    async def _fill(self, number: int) -> bool:
        """Begin the calls of one batch; whether it has any and can go on.

        Done again after a crash it begins the same calls: what counts for the room is every open prompt, whether the
        budget grants it or not, and a call begun before is granted again.  A batch without calls is taken back."""
        run = self._runs[number]
        await self._claim_all()
        room = Room(self._uncrowded())
        total = self._job.counters.prompts_total
        end, more, granted, self._short, self._needs_of_day = total, False, 0, False, 0
        async for chunk, open_ in self._open_prompts(run.first, total):
            settlements, beginnings = await self._to_begin(number, chunk, open_)
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
                self._of_day = short == "day"
                self._needs_nano = fitting[result.answers.index(short)].ceiling_nano
                end, more, self._short = min(end, (chunk + 1) * self._job.chunk_size), False, True
            if more or self._short:
                break
        left = total - self._job.counters.settled
        if self._short and run.first == 0 and number and granted < _WORTH_A_ROUND * left:
            await self._let_go(number, lost=False)
            granted = 0
        if granted:
            await self._keep(number, replace(run, step="uploading", end=end, more=more, requests=granted))
            return True
        self._runs.pop()
        if self._runs and self._runs[-1].more:
            self._runs[-1] = replace(self._runs[-1], more=False)
        await self._save({"batches": self._runs})
        return False

    async def _to_begin(
        self, number: int, chunk: int, open_: dict[int, Prompt]
    ) -> tuple[list[Settlement], list[Beginning]]:
        """What costs nothing is settled at once: the caller's own completions, and those the tenant has paid for."""
        settlements: list[Settlement] = []
        asked: dict[int, str] = {}
        for index, prompt in open_.items():
            if prompt.completion is not None:
                settlements.append(self._scribe.supplied(chunk, index, prompt))
            else:
                asked[index] = self._scribe.fingerprint(prompt)
        paid = await self._passes.paid_before(self._job.tenant, list(asked.values()))
        beginnings: list[Beginning] = []
        for index, fingerprint in asked.items():
            if fingerprint in paid:
                settlements.append(self._scribe.reused(chunk, index, paid[fingerprint]))
            else:
                ceiling = self._scribe.ceiling_nano(open_[index], index)
                beginnings.append(Beginning(chunk, index, self._call(number, index), ceiling, fingerprint))
        return settlements, beginnings

    def _uncrowded(self) -> BatchLimits:
        """Half of what the model's queue had no room for, until it had room again."""
        requests = self._limits.requests
        for run in reversed(self._runs[:-1]):
            if not run.crowded_out:
                break
            requests = min(requests, max(1, run.requests // 2))
        return BatchLimits(requests, self._limits.file_bytes)

    async def _claim_all(self) -> None:
        while await self._passes.claim_chunk(self._pass_id, TOKEN, lease_seconds=_CLAIM_SECONDS) is not None:
            pass

    async def _open_prompts(self, first: int, end: int) -> AsyncIterator[tuple[int, dict[int, Prompt]]]:
        """(chunk, those of its prompts that are not settled, by index), one chunk in memory at a time."""
        size = self._job.chunk_size
        for chunk in range(first // size, -(-end // size)):
            settled = await self._passes.settled_indexes(self._pass_id, chunk)
            if len(settled) == size:
                continue
            prompts = await self._content.prompt_chunk(self._job.id, "source", chunk)
            numbered = enumerate(prompts, start=chunk * size)
            open_ = {i: prompt for i, prompt in numbered if first <= i < end and i not in settled}
            if open_:
                yield chunk, open_

    async def _begun(self, number: int) -> AsyncIterator[tuple[int, Prompt]]:
        """The prompts of this batch that are not settled, in order of index."""
        run = self._runs[number]
        async for _, open_ in self._open_prompts(run.first, run.end or self._job.counters.prompts_total):
            calls = await self._passes.lost_calls(self._pass_id, list(open_))
            for index, prompt in open_.items():
                if calls.get(index) == self._call(number, index):
                    yield index, prompt

    # --- upload and submit --------------------------------------------------------------------------------------------

    async def _upload(self, number: int) -> None:
        """The file is looked for first: a crash may have come between its upload and the note of it."""
        run = self._runs[number]
        if run.step == "uploaded":
            return
        filename = f"distill-{self._job.id}-batch-{number}.jsonl"
        file_id = await self._batcher.find_file(filename)
        if file_id is None:
            with tempfile.TemporaryDirectory(prefix="distill-") as folder:
                path = Path(folder) / filename
                with path.open("wb") as lines:
                    async for index, prompt in self._begun(number):
                        lines.write(request_line(index, self._scribe.body(prompt, index)))
                file_id = await self._batcher.upload(path, filename)
        await self._keep(number, replace(run, step="uploaded", input_file=file_id))

    async def _submit(self, number: int) -> float | None:
        """Write the intent, then submit.  Whatever happens between the two, the row says that it may have happened."""
        run = self._runs[number]
        input_file = run.input_file
        assert input_file is not None
        run = replace(run, step="intent", intent_at_ms=_now_ms(), submissions=run.submissions + 1)
        await self._keep(number, run)
        try:
            batch = await self._batcher.submit(input_file, self._metadata(number))
        except ProviderUnavailable as error:
            _log.warning("batch_submission_unanswered", status=error.status, code=error.provider_code)
            return _LOOK_FOR_LOST_SECONDS
        except (ProviderRateLimited, ProviderQuotaExhausted):
            await self._keep(number, replace(run, step="uploaded"))
            raise
        except ProviderError as error:
            refused = isinstance(error, ProviderAuthFailed | ProviderModelMissing)
            failure = (
                job_error(error, Stage.GENERATING) if refused else self._refusal(error.status, error.provider_code)
            )
            await self._let_go(number, lost=False)
            await self._end(number, replace(run, status="refused", error=failure))
            return None
        return await self._submitted(number, batch)

    async def _find_lost(self, number: int) -> float | None:
        """A submission whose outcome nobody wrote down: adopt it, wait for it to show, or submit again."""
        run = self._runs[number]
        found = await self._found(number)
        if found is not None:
            self._say(number, "was found at the provider after a crash, and adopted.")
            return await self._submitted(number, found)
        if _now_ms() < self._may_show_until_ms(run):
            return _LOOK_FOR_LOST_SECONDS
        return await self._submit(number)

    def _may_show_until_ms(self, run: BatchRun) -> float:
        return (run.intent_at_ms or 0) + self._settings.unknown_outcome_wait_seconds * 1000

    async def _found(self, number: int) -> Batch | None:
        """This batch at the provider: the one we know, else the oldest.  All others of its name are cancelled."""
        run = self._runs[number]
        assert run.input_file is not None
        not_before = self._job.created_at_ms // 1000 - _CLOCK_SKEW_SECONDS
        batches = await self._batcher.find(self._metadata(number), run.input_file, not_before=not_before)
        kept = next((batch for batch in batches if batch.id == run.batch_id), batches[0] if batches else None)
        for extra in batches:
            if kept is not None and extra.id != kept.id and extra.state in {"waiting", "running"}:
                _log.error("batch_submitted_twice", job_id=self._job.id, kept=kept.id, cancelled=extra.id)
                await self._batcher.cancel(extra.id)
        return kept

    async def _submitted(self, number: int, batch: Batch) -> float:
        run = replace(self._runs[number], step="submitted", batch_id=batch.id, status=batch.status)
        await self._keep(number, run)
        await self._followed.expect(self._provider, batch.id, self._job.id)
        self._say(number, f"is submitted with {run.requests} requests.", {"requests": run.requests})
        return self._settings.poll_min_seconds

    def _metadata(self, number: int) -> dict[str, str]:
        return {"distillation_job_id": self._job.id, "batch": str(number)}

    # --- poll and collect ---------------------------------------------------------------------------------------------

    async def _poll(self, number: int, *, patient: bool) -> float | None:
        """patient: what is out is paid for, so troubles of the provider are waited out, to the job's deadline."""
        try:
            return await self._look(number)
        except ProviderError as error:
            if not (patient and error.retryable):
                raise
            _log.warning("batch_not_read", number=number, status=error.status, code=error.provider_code)
            return max(self._settings.poll_max_seconds, error.retry_after_seconds or 0.0)

    async def _look(self, number: int) -> float | None:
        run = self._runs[number]
        assert run.batch_id is not None
        if run.submissions > 1:
            await self._found(number)  # an earlier submission may have shown itself after all
        await self._followed.expect(self._provider, run.batch_id, self._job.id)
        batch = await self._batcher.poll(run.batch_id)
        if batch is None:
            await self._collect(number, replace(run, status="deleted", output_file=None, error_file=None))
            return None
        run = replace(
            run,
            status=batch.status,
            completed=batch.completed,
            failed=batch.failed,
            output_file=batch.output_file,
            error_file=batch.error_file,
        )
        if run != self._runs[number]:
            await self._keep(number, run)
        match batch.state:
            case "over":
                await self._collect(number, run)
                return None
            case "failed":
                await self._refused(number, run, batch)
                return None
            case _:
                return self._interval(run)

    def _interval(self, run: BatchRun) -> float:
        """The longer it has run, the longer until the next look; jittered, so that jobs spread out."""
        elapsed = time.time() - (run.intent_at_ms or 0) / 1000
        shortest, longest = self._settings.poll_min_seconds, self._settings.poll_max_seconds
        return min(longest, max(shortest, elapsed / 5)) * random.uniform(0.9, 1.1)

    async def _refused(self, number: int, run: BatchRun, batch: Batch) -> None:
        """The file did not pass the provider's check: for good, or because too much is queued already."""
        await self._let_go(number, lost=False)
        codes = {fault.code for fault in batch.faults}
        if codes & _CROWDED:
            self._say(number, "found no room in the model's queue; its prompts are asked later.")
            await self._end(number, replace(run, crowded_out=True, more=False))
            return
        faults = [{"code": fault.code, "line": fault.line, "param": fault.param} for fault in batch.faults]
        code = next((fault.code for fault in batch.faults if fault.code), None)
        self._say(number, "was refused by the provider.", {"faults": faults}, level="error")
        await self._end(number, replace(run, error=self._refusal(None, code)))

    def _refusal(self, status: int | None, code: str | None) -> JobError:
        return JobError(
            code="provider_rejected_batch",
            message="The provider refused a batch of prompts; the job's events name the lines.  Mend the job, or ask "
            "for `teacher.mode` live; what is paid is kept and will not be bought again.",
            param="teacher",
            stage=Stage.GENERATING,
            provider=ProviderAnswer(status=status, code=code),
        )

    async def _collect(self, number: int, run: BatchRun) -> None:
        """Settle every line of both files, in whatever order they come; done again after a crash, it adds nothing.

        What is in neither file was not asked; where the batch was completed or a file is gone, it may have been."""
        asked = {index: self._scribe.fingerprint(prompt) async for index, prompt in self._begun(number)}
        tally = _Tally()
        lost = run.status in {"completed", "deleted"}
        for file in filter(None, (run.output_file, run.error_file)):
            try:
                async for line in self._batcher.lines(file):
                    self._judge(number, line, asked, tally)
                    if len(tally.settlements) >= _SETTLED_TOGETHER:
                        await self._settle(tally)
            except ProviderModelMissing:
                _log.error("batch_file_gone", job_id=self._job.id, file=file)
                lost = True
        missing = ProviderUnavailable("The batch has no answer to this prompt.", provider_code="batch_line_missing")
        for index, fingerprint in asked.items():
            self._fail(number, index, fingerprint, missing, tally, lost=lost)
            if len(tally.settlements) >= _SETTLED_TOGETHER:
                await self._settle(tally)
        await self._settle(tally)
        if tally.ignored:
            _log.warning("batch_lines_ignored", job_id=self._job.id, number=number, lines=tally.ignored)
        if tally.stop is not None and not isinstance(tally.stop, ProviderQuotaExhausted):
            run = replace(run, error=self._scribe.stop_error(tally.stop))
        self._pause = self._pause or isinstance(tally.stop, ProviderQuotaExhausted)
        await self._end(number, replace(run, released=tally.again))
        self._say(
            number,
            f"has {run.status}: {tally.answered} answered, {tally.failed} failed, {tally.again} to be asked again.",
            {"answered": tally.answered, "failed": tally.failed, "asked_again": tally.again},
        )

    def _judge(self, number: int, line: bytes, asked: dict[int, str], tally: _Tally) -> None:
        """One line; one that is no answer to a prompt still open is ignored, so the first of two counts."""
        answer = read_line(line)
        index = answer.index if answer is not None else None
        fingerprint = asked.pop(index, None) if index is not None else None
        if answer is None or index is None or fingerprint is None:
            tally.ignored += 1
            return
        response = answer.response
        if response is None or response.status_code != 200:
            self._fail(number, index, fingerprint, failure_of(answer), tally, lost=False)
            return
        try:
            completion = parse_completion(
                bytes(response.body),
                lambda name: response.request_id if name == "x-request-id" else None,
                latency_ms=None,
            )
        except ProviderError as error:
            self._fail(number, index, fingerprint, error, tally, lost=True)
            return
        tally.answered += 1
        tally.settlements.append(
            self._scribe.answered(self._chunk(index), index, self._call(number, index), completion, fingerprint)
        )

    def _fail(
        self, number: int, index: int, fingerprint: str, error: ProviderError, tally: _Tally, *, lost: bool
    ) -> None:
        chunk, call = self._chunk(index), self._call(number, index)
        attempts_max = self._settings.completion_attempts_max
        decision = after_line(error, attempt=self._runs[number].attempt, attempts_max=attempts_max)
        if decision == "failed":
            tally.failed += 1
            tally.settlements.append(self._scribe.failed(chunk, index, call, error, fingerprint, lost=lost))
            return
        if decision == "again":
            tally.again += 1
        else:
            tally.stop = error
        tally.settlements.append(self._without_answer(number, index, fingerprint, lost=lost))

    def _without_answer(self, number: int, index: int, fingerprint: str, *, lost: bool) -> Settlement:
        call = self._call(number, index)
        return Settlement(self._chunk(index), index, call, b"", None, "failed", lost, fingerprint=fingerprint)

    async def _settle(self, tally: _Tally) -> None:
        settlements, tally.settlements = tally.settlements, []
        if settlements:
            await self._tick(settlements, [])

    # --- the end ------------------------------------------------------------------------------------------------------

    async def stop(self) -> float | None:
        """Seconds until the next look, None once nothing is out."""
        waits: list[float] = []
        for number, run in enumerate(self._runs):
            match run.step:
                case "ended":
                    continue
                case "new" | "uploading" | "uploaded":
                    await self._let_go(number, lost=False)
                    await self._end(number, replace(run, status="not_submitted"))
                    continue
                case "intent":
                    found = await self._found(number)
                    if found is None and _now_ms() < self._may_show_until_ms(run):
                        waits.append(_LOOK_FOR_LOST_SECONDS)
                        continue
                    if found is None:
                        await self._let_go(number, lost=False)
                        await self._end(number, replace(run, status="not_submitted"))
                        continue
                    await self._submitted(number, found)
            wait = await self._cancel(number)
            waits += [] if wait is None else [wait]
        return min(waits, default=None)

    async def _cancel(self, number: int) -> float | None:
        wait = await self._poll(number, patient=False)
        run = self._runs[number]
        if wait is None:
            return None
        assert run.batch_id is not None
        if run.cancelled_at_ms is None:
            await self._batcher.cancel(run.batch_id)
            await self._keep(number, replace(run, cancelled_at_ms=_now_ms()))
            return self._settings.poll_min_seconds
        if _now_ms() > run.cancelled_at_ms + _CANCELLING_SECONDS * 1000:
            _log.error("batch_not_cancelled", job_id=self._job.id, batch=run.batch_id)
            await self._let_go(number, lost=True)
            await self._end(number, run)
            return None
        return min(wait, self._settings.poll_max_seconds)

    async def _let_go(self, number: int, *, lost: bool) -> None:
        """End the calls of this batch that nothing came of.  lost: they may be billed."""
        ended: list[Settlement] = []
        async for index, prompt in self._begun(number):
            ended.append(self._without_answer(number, index, self._scribe.fingerprint(prompt), lost=lost))
            if len(ended) >= _SETTLED_TOGETHER:
                await self._tick(ended, [])
                ended = []
        if ended:
            await self._tick(ended, [])

    async def _end(self, number: int, run: BatchRun) -> None:
        await self._keep(number, replace(run, step="ended", ended_at_ms=_now_ms()))

    # --- small things -------------------------------------------------------------------------------------------------

    async def _keep(self, number: int, run: BatchRun) -> None:
        self._runs[number] = run
        await self._save({"batches": self._runs})

    async def _tick(self, settlements: list[Settlement], beginnings: list[Beginning]) -> TickResult:
        return await self._passes.tick(self._pass_id, self._job.tenant, TOKEN, settlements, beginnings)

    def _call(self, number: int, index: int) -> str:
        return call_id(self._job.id, number, index)

    def _chunk(self, index: int) -> int:
        return index // self._job.chunk_size

    def _say(
        self, number: int, what: str, data: JsonObject | None = None, *, level: Literal["info", "error"] = "info"
    ) -> None:
        self.events.append(
            Event(
                id=new_event_id(),
                level=level,
                type="message",
                message=f"Batch {number} {what}",
                created_at_ms=_now_ms(),
                stage=Stage.GENERATING,
                data={"batch": number, "batch_id": self._runs[number].batch_id, **(data or {})},
            )
        )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
