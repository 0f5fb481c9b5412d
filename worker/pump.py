"""Many completions at once: the worker draws prompts from all open passes and keeps its slots full.

One pump per process.  It leases chunks of prompts, begins calls only after the store has granted them (lease, budget,
trial), and hands every answer to the store as it arrives.  A freed slot goes to the tenant, then the job, with the
fewest calls in flight here, so a job of ten prompts is not kept waiting by one of a hundred thousand.  Any number of
pumps work on one pass; none of them holds a job's lease."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from shared.errors import JobFailed, ProviderError, ProviderRateLimited, StoreError
from shared.ids import JobId
from shared.lifecycle import JobStatus
from shared.models import Job, JobError, Prompt
from shared.plan import PassPlan, our_metadata, plans
from shared.ports import CompletionArchive, CompletionRequest, TeacherPort
from shared.pricing import Prices
from shared.retries import GiveUp, Retry, RetryPolicy, Stop, after_failure
from shared.settings import ProviderSettings
from shared.store import Store
from shared.store.passes import Beginning, Halt, PassId, Settlement, TickResult
from worker.completions import Scribe
from worker.governor import Allowance
from worker.providers import Providers

_log: Final = structlog.get_logger()

_PASSES_MAX: Final = 64  # passes one process draws from at once; more wait for their turn
_FETCHES_MAX: Final = 4  # chunks of one pass asked for at the same time
_BLOCKED_SECONDS: Final = 0.25  # before the budget or the trial is asked again
_TWIN_SECONDS: Final = 0.5  # before the ledger is asked again about a completion that somebody else is buying
_RECOVERY_LOOK_SECONDS: Final = 1.0  # between two looks at the provider's stored completions
_RECOVERIES_MAX: Final = 8  # looks at the same time
_BATCH_SECONDS: Final = 0.002  # answers arriving within this time share one script call
_STALE_GRANT_SECONDS: Final = 5.0  # a call granted longer ago than this is not made: the process was frozen


@dataclass(frozen=True)
class PumpLimits:
    """in_flight: calls at once in this process.  stall_seconds: without an answer for so long, leases are let go."""

    in_flight: int
    chunk_lease_seconds: float
    takeover_grace_seconds: float
    shutdown_grace_seconds: float
    smoke_completions: int
    retry: RetryPolicy
    discover_seconds: float = 1.0
    stall_seconds: float = 600.0
    recovery_seconds: float = 10.0


@dataclass(eq=False, slots=True)
class _Call:
    """One prompt on its way.  id: of the call being made, new for each attempt.  attempts: failures that count."""

    chunk: int
    index: int
    prompt: Prompt
    ceiling_nano: int
    fingerprint: str
    id: str = ""
    attempts: int = 0
    failures: int = 0


@dataclass(eq=False)
class _Run:
    """What this process holds of one pass."""

    pass_id: PassId
    plan: PassPlan
    job: Job
    teacher: TeacherPort
    timeout_seconds: float
    allowance: Allowance
    archive: CompletionArchive | None
    scribe: Scribe
    chunks: dict[int, set[int]] = field(default_factory=dict)  # chunk → indexes not yet settled here
    queue: deque[_Call] = field(default_factory=deque)
    delayed: list[tuple[float, int, _Call]] = field(default_factory=list)
    beginnings: list[_Call] = field(default_factory=list)
    settlements: list[Settlement] = field(default_factory=list)
    in_flight: int = 0
    fetching: int = 0  # chunks being leased
    looking: int = 0  # prompts looked up in the ledger or at the provider
    drained: bool = False  # no chunk was free when last asked
    blocked_until: float = 0.0
    stopped: bool = False
    last_answer_at: float = field(default_factory=time.monotonic)
    opened_at: float = field(default_factory=time.monotonic)
    bell: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def idle(self) -> bool:
        return not (
            self.queue
            or self.delayed
            or self.beginnings
            or self.settlements
            or self.in_flight
            or self.fetching
            or self.looking
        )


class Pump:
    """run() until stop(); wake() when a pass may have opened."""

    def __init__(
        self,
        store: Store,
        providers: Providers,
        prices: Prices,
        limits: PumpLimits,
        *,
        secret: bytes,
        on_complete: Callable[[JobId], Awaitable[None]],
    ) -> None:
        self._store = store
        self._providers = providers
        self._prices = prices
        self._limits = limits
        self._secret = secret
        self._on_complete = on_complete
        self._token = uuid.uuid4().hex
        self._call_numbers = itertools.count(1)
        self._runs: dict[PassId, _Run] = {}
        self._allowances: dict[tuple[str, str], Allowance] = {}
        self._recoveries = asyncio.Semaphore(_RECOVERIES_MAX)
        self._in_flight = 0
        self._bell = asyncio.Event()
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def wake(self) -> None:
        self._bell.set()

    async def run(self) -> None:
        """Draw from open passes until `stop`."""
        self._spawn(self._keep_leases())
        while not self._stopping:
            try:
                await self._discover()
            except StoreError:
                _log.warning("pump_waits_for_store")
            self._bell.clear()
            try:
                async with asyncio.timeout(self._limits.discover_seconds):
                    await self._bell.wait()
            except TimeoutError:
                continue

    async def stop(self) -> None:
        """Start nothing new, wait for the answers in flight, store them, and free what is left for other workers."""
        self._stopping = True
        self._bell.set()
        for run in self._runs.values():
            run.queue.clear()
            run.delayed.clear()
        deadline = time.monotonic() + self._limits.shutdown_grace_seconds
        while any(run.in_flight or run.beginnings or run.settlements for run in self._runs.values()):
            if time.monotonic() > deadline:
                _log.warning("pump_stopped_with_calls_in_flight", calls=self._in_flight)
                break
            await asyncio.sleep(0.02)
        for run in self._runs.values():
            if run.chunks:
                await self._store.passes.give_back(run.pass_id, self._token, list(run.chunks))
        for task in self._tasks:
            task.cancel()

    # --- finding work -------------------------------------------------------------------------------------------------

    async def _discover(self) -> None:
        for pass_id in await self._store.passes.open_passes(limit=_PASSES_MAX):
            if pass_id not in self._runs:
                await self._join(pass_id)
        for run in self._runs.values():
            run.drained = False
        self._fill()

    async def _join(self, pass_id: PassId) -> None:
        job = await self._store.jobs.load(pass_id.job_id)
        plan = next((plan for plan in plans(job) if plan.name == pass_id.name), None) if job else None
        if job is None or plan is None or job.status is not JobStatus.RUNNING:
            if job is None or job.status is not JobStatus.QUEUED:
                await self._store.passes.close(pass_id)
            return
        try:
            settings = self._providers.settings(plan.provider)
        except JobFailed as error:
            await self._store.passes.halt(pass_id, Halt("fail", error.code, _job_error(error, job)))
            return
        scribe = Scribe(job, plan, self._prices, settings.prices, secret=self._secret)
        teacher = self._providers.teacher(plan.provider)
        allowance = self._allowance(plan, settings)
        archive = self._providers.archive(plan.provider) if plan.store else None
        run = _Run(pass_id, plan, job, teacher, settings.timeout_seconds, allowance, archive, scribe)
        self._runs[pass_id] = run
        self._spawn(self._flush(run))

    def _allowance(self, plan: PassPlan, settings: ProviderSettings) -> Allowance:
        """One per model and endpoint, however many jobs ask it."""
        key = (plan.provider, plan.model)
        if key not in self._allowances:
            self._allowances[key] = Allowance(self._store, *key, settings, on_permit=self._fill)
        return self._allowances[key]

    async def _fetch(self, run: _Run) -> None:
        """Lease one more chunk and queue what is not settled of it."""
        try:
            claimed = await self._store.passes.claim_chunk(
                run.pass_id, self._token, lease_seconds=self._limits.chunk_lease_seconds
            )
            if claimed is None:
                run.drained = True
                return
            await self._take_up(run, *claimed)
        except StoreError:
            _log.warning("pump_waits_for_store", job_id=run.pass_id.job_id)
            await asyncio.sleep(_BLOCKED_SECONDS)
        finally:
            run.fetching -= 1
            run.bell.set()
            self._fill()

    async def _take_up(self, run: _Run, chunk: int, takeover: bool) -> None:
        """takeover: its last holder vanished, and may still be handing in answers or have lost some."""
        first = chunk * run.job.chunk_size
        run.chunks[chunk] = set()
        if takeover:
            await asyncio.sleep(self._limits.takeover_grace_seconds)
        prompts = await self._store.content.prompt_chunk(run.pass_id.job_id, run.plan.prompt_set, chunk)
        settled = await self._store.passes.settled_indexes(run.pass_id, chunk)
        open_ = {index: prompt for index, prompt in enumerate(prompts, start=first) if index not in settled}
        lost = await self._store.passes.lost_calls(run.pass_id, list(open_)) if takeover else {}
        run.chunks[chunk] = set(open_)
        if not open_:
            del run.chunks[chunk]  # its last answer came late, from the worker that had lost it
        calls: list[_Call] = []
        for index, prompt in open_.items():
            if run.plan.role == "teacher" and prompt.completion is not None:
                run.settlements.append(run.scribe.supplied(chunk, index, prompt))
                continue
            call = _Call(chunk, index, prompt, run.scribe.ceiling_nano(prompt, index), run.scribe.fingerprint(prompt))
            if index in lost and self._recoverable(run, call):
                call.id = lost[index]
                self._spawn(self._recover(run, call))
            else:
                calls.append(call)
        await self._enqueue(run, calls)

    async def _enqueue(self, run: _Run, calls: list[_Call]) -> None:
        """Queue what has to be bought; what the tenant has paid for before is settled from the ledger."""
        run.looking += 1
        try:
            paid = await self._store.passes.paid_before(run.job.tenant, [call.fingerprint for call in calls])
        except StoreError:
            paid = {}  # the tick asks the ledger again before anything is bought
        finally:
            run.looking -= 1
        for call in calls:
            if call.fingerprint in paid:
                run.settlements.append(run.scribe.reused(call.chunk, call.index, paid[call.fingerprint]))
            elif not run.stopped:
                run.queue.append(call)
        run.bell.set()
        self._fill()

    # --- answers that were lost on the way ----------------------------------------------------------------------------

    def _recoverable(self, run: _Run, call: _Call) -> bool:
        """Whether the provider was asked to keep the answer under a name we can look it up by."""
        return run.archive is not None and our_metadata(run.job, run.plan, call.index) is not None

    async def _recover(self, run: _Run, call: _Call) -> None:
        """Look a lost answer up among the provider's stored completions, for as long as it may take to show there.

        Found, it settles the call that was lost; else the prompt is asked again."""
        metadata = our_metadata(run.job, run.plan, call.index)
        assert run.archive is not None
        assert metadata is not None
        deadline = time.monotonic() + self._limits.recovery_seconds
        run.looking += 1
        try:
            while True:
                completion = None
                try:
                    async with self._recoveries:
                        completion = await run.archive.find(run.plan.model, metadata)
                except ProviderError as error:
                    _log.info("stored_completion_not_read", job_id=run.pass_id.job_id, code=error.code)
                if completion is not None:
                    run.settlements.append(
                        run.scribe.answered(call.chunk, call.index, call.id, completion, call.fingerprint)
                    )
                    return
                if time.monotonic() > deadline or run.stopped or self._stopping:
                    break
                await asyncio.sleep(_RECOVERY_LOOK_SECONDS)
        finally:
            run.looking -= 1
            run.bell.set()
        if not (run.stopped or self._stopping):
            run.queue.append(call)
            self._fill()

    # --- filling the slots --------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Give free slots to the runs that have the fewest, and fetch ahead where queues run low."""
        if self._stopping:
            return
        now = time.monotonic()
        for run in self._runs.values():
            while run.delayed and run.delayed[0][0] <= now:
                run.queue.appendleft(heapq.heappop(run.delayed)[2])
        waiting = [run for run in self._runs.values() if run.queue and not run.stopped and run.blocked_until <= now]
        by_tenant: dict[str, int] = {}
        for run in self._runs.values():
            by_tenant[run.job.tenant] = by_tenant.get(run.job.tenant, 0) + run.in_flight
        while waiting and self._in_flight < self._limits.in_flight:
            run = min(waiting, key=lambda r: (by_tenant[r.job.tenant], r.in_flight))
            if not run.allowance.take():
                waiting.remove(run)
                continue
            run.beginnings.append(run.queue.popleft())
            run.in_flight += 1
            by_tenant[run.job.tenant] += 1
            self._in_flight += 1
            run.bell.set()
            if not run.queue:
                waiting.remove(run)
        share = max(1, self._limits.in_flight // max(1, len(self._runs)))
        for run in self._runs.values():
            if run.stopped or run.drained or run.blocked_until > now:
                continue
            missing = share // 2 + share - run.in_flight - len(run.queue)
            wanted = min(_FETCHES_MAX, -(-missing // run.job.chunk_size)) - run.fetching
            while wanted > 0:
                wanted -= 1
                run.fetching += 1
                self._spawn(self._fetch(run))

    # --- begin and settle ---------------------------------------------------------------------------------------------

    async def _flush(self, run: _Run) -> None:
        """The run's only writer: hands ended and next calls to the store together, again and again until taken."""
        while True:
            await run.bell.wait()
            await asyncio.sleep(_BATCH_SECONDS)
            run.bell.clear()
            while run.settlements or run.beginnings:
                settlements, run.settlements = run.settlements, []
                calls, run.beginnings = run.beginnings, []
                for call in calls:
                    call.id = f"{self._token}.{next(self._call_numbers)}"
                beginnings = [Beginning(c.chunk, c.index, c.id, c.ceiling_nano, c.fingerprint) for c in calls]
                result = await self._tick(run, settlements, beginnings)
                granted_at = time.monotonic()
                for ended in settlements:
                    if ended.blob:
                        self._forget(run, ended.chunk, ended.index)
                for call, answer in zip(calls, result.answers, strict=True):
                    if answer == "go":
                        self._spawn(self._ask(run, call, granted_at))
                    else:
                        self._refused(run, call, answer)
                await self._judge(run, result)
                if result.state != "open" and not run.stopped:
                    self._stop_run(run)
                    await self._on_complete(run.pass_id.job_id)
                self._fill()
            if run.stopped and run.idle:
                if run.chunks:
                    await self._store.passes.give_back(run.pass_id, self._token, list(run.chunks))
                self._runs.pop(run.pass_id, None)
                return

    async def _tick(self, run: _Run, settlements: list[Settlement], beginnings: list[Beginning]) -> TickResult:
        """An answer in hand is offered to the store until it is taken; nothing else of this run moves meanwhile."""
        wait = 0.1
        while True:
            try:
                return await self._store.passes.tick(run.pass_id, run.job.tenant, self._token, settlements, beginnings)
            except StoreError:
                _log.warning("pump_holds_answers", job_id=run.pass_id.job_id, answers=len(settlements))
                await asyncio.sleep(wait)
                wait = min(wait * 2, 2.0)

    def _refused(self, run: _Run, call: _Call, answer: str) -> None:
        self._release_slot(run)
        if answer in {"budget", "smoke"}:
            run.queue.appendleft(call)
            run.blocked_until = time.monotonic() + _BLOCKED_SECONDS
            asyncio.get_running_loop().call_later(_BLOCKED_SECONDS + 0.01, self._fill)
        elif answer == "paid":
            self._spawn(self._enqueue(run, [call]))
        elif answer == "twin":
            self._delay(run, call, _TWIN_SECONDS)
        elif answer == "stopped":
            self._stop_run(run)
        else:  # settled by another worker, or no longer ours
            self._forget(run, call.chunk, call.index)

    def _forget(self, run: _Run, chunk: int, index: int) -> None:
        left = run.chunks.get(chunk)
        if left is not None:
            left.discard(index)
            if not left:
                del run.chunks[chunk]

    async def _judge(self, run: _Run, result: TickResult) -> None:
        """The decisions that need the pass's totals: the trial, and a budget that nothing in flight will free."""
        smoke = self._limits.smoke_completions
        if "smoke" in result.answers and result.settled >= smoke:
            if 2 * result.accepted >= result.settled:
                await self._store.passes.smoke_passed(run.pass_id)
                run.blocked_until = 0.0
            else:
                error = run.scribe.smoke_failure(settled=result.settled, accepted=result.accepted)
                await self._halt(run, Halt("fail", error.code, error))
        if "budget" in result.answers and result.reserved_nano == 0:
            if run.job.spec.budget.on_limit == "fail":
                await self._halt(run, Halt("fail", "cost_above_limit", run.scribe.budget_failure()))
            else:
                await self._halt(run, Halt("pause", "budget"))

    async def _halt(self, run: _Run, halt: Halt) -> None:
        self._stop_run(run)
        await self._store.passes.halt(run.pass_id, halt)
        await self._on_complete(run.pass_id.job_id)

    def _stop_run(self, run: _Run) -> None:
        """Nothing more of this run starts here; what is in flight is still stored."""
        run.stopped = True
        run.queue.clear()
        run.delayed.clear()
        run.bell.set()

    # --- one call -----------------------------------------------------------------------------------------------------

    async def _ask(self, run: _Run, call: _Call, granted_at: float) -> None:
        if time.monotonic() - granted_at > _STALE_GRANT_SECONDS:
            self._again(run, call, after_seconds=0.0, lost=False)
            return
        request = CompletionRequest(run.scribe.body(call.prompt, call.index), run.timeout_seconds)
        try:
            completion = await run.teacher.complete(request)
        except ProviderError as error:
            await self._failed(run, call, error)
            return
        run.last_answer_at = time.monotonic()
        run.allowance.learn(completion.limits, completion.usage.prompt_tokens + completion.usage.completion_tokens)
        run.settlements.append(run.scribe.answered(call.chunk, call.index, call.id, completion, call.fingerprint))
        self._release_slot(run)
        run.bell.set()
        self._fill()

    async def _failed(self, run: _Run, call: _Call, error: ProviderError) -> None:
        if isinstance(error, ProviderRateLimited):
            await run.allowance.refused(error.retry_after_seconds)
        fresh_for = time.monotonic() - run.opened_at if run.plan.fresh else None
        decision = after_failure(
            error,
            attempts=call.attempts + 1,
            failures=call.failures + 1,
            fresh_for_seconds=fresh_for,
            policy=self._limits.retry,
            jitter=random.random(),
        )
        call.failures += 1
        _log.log(
            logging.DEBUG if isinstance(decision, Retry) else logging.WARNING,
            "completion_failed",
            job_id=run.pass_id.job_id,
            model=run.plan.model,
            code=error.code,
            status=error.status,
            provider_code=error.provider_code,
            decision=type(decision).__name__,
        )
        match decision:
            case Retry(after_seconds, lost, counted):
                call.attempts += counted
                if lost and self._recoverable(run, call):
                    self._end_call(run, call, lost=True)
                    self._spawn(self._recover(run, call))
                else:
                    self._again(run, call, after_seconds=after_seconds, lost=lost)
            case GiveUp(_, lost):
                run.settlements.append(
                    run.scribe.failed(call.chunk, call.index, call.id, error, call.fingerprint, lost=lost)
                )
                self._release_slot(run)
                run.bell.set()
                self._fill()
            case Stop(kind, code):
                self._end_call(run, call, lost=False)
                if kind == "pause":
                    await self._halt(run, Halt("pause", "provider_quota"))
                else:
                    await self._halt(run, Halt("fail", code, run.scribe.stop_error(error)))

    def _again(self, run: _Run, call: _Call, *, after_seconds: float, lost: bool) -> None:
        self._end_call(run, call, lost=lost)
        if not (run.stopped or self._stopping):
            self._delay(run, call, after_seconds)

    def _delay(self, run: _Run, call: _Call, seconds: float) -> None:
        heapq.heappush(run.delayed, (time.monotonic() + seconds, call.index, call))
        asyncio.get_running_loop().call_later(seconds + 0.001, self._fill)

    def _end_call(self, run: _Run, call: _Call, *, lost: bool) -> None:
        """The call is over without settling its prompt: its hold on the budget ends, or stays if it may be billed."""
        run.settlements.append(
            Settlement(call.chunk, call.index, call.id, b"", None, "failed", lost, fingerprint=call.fingerprint)
        )
        self._release_slot(run)
        run.bell.set()

    def _release_slot(self, run: _Run) -> None:
        run.in_flight -= 1
        self._in_flight -= 1

    # --- leases -------------------------------------------------------------------------------------------------------

    async def _keep_leases(self) -> None:
        """Renew chunks while answers come; a run that stands still lets its chunks go to another worker."""
        while True:
            await asyncio.sleep(self._limits.chunk_lease_seconds / 4)
            for run in list(self._runs.values()):
                if not run.chunks or time.monotonic() - run.last_answer_at > self._limits.stall_seconds:
                    continue
                try:
                    open_, held = await self._store.passes.renew_chunks(
                        run.pass_id, self._token, list(run.chunks), lease_seconds=self._limits.chunk_lease_seconds
                    )
                except StoreError:
                    continue
                for chunk in set(run.chunks) - held:
                    del run.chunks[chunk]
                    run.queue = deque(call for call in run.queue if call.chunk != chunk)
                if not open_:
                    self._stop_run(run)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("pump_task_failed", error=type(error).__name__, exc_info=error)


def _job_error(error: JobFailed, job: Job) -> JobError:
    return JobError(code=error.code, message=str(error), stage=job.stage, retryable=error.worth_a_retry)
