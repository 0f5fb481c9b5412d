"""Many completions at once: the worker draws prompts from all open passes and keeps its slots full.

One pump per process.  It leases chunks of prompts, begins calls only after the store has granted them (lease, ledger,
trial, budget), and hands every answer to the store as it arrives.  A freed slot goes to the tenant, then the job, with
the fewest calls in flight here, so a job of ten prompts is not kept waiting by one of a hundred thousand.  Any number
of pumps work on one pass; none of them holds a job's lease."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from shared.errors import JobFailed, ProviderError, ProviderRateLimited, ProviderUnavailable, StoreError
from shared.ids import JobId
from shared.lifecycle import JobStatus
from shared.models import Job, JobError
from shared.plan import PassPlan, plans
from shared.ports import CompletionRequest
from shared.pricing import Prices
from shared.retries import GiveUp, Retry, RetryPolicy, Stop, after_failure
from shared.settings import ProviderSettings
from shared.store import Store
from shared.store.passes import Answer, Beginning, Halt, PassId, Settlement, TickResult
from worker.completions import Scribe
from worker.governor import Allowance
from worker.providers import Providers
from worker.recovery import Recovery
from worker.runs import Call, Run

T = TypeVar("T")
_log: Final = structlog.get_logger()

_PASSES_MAX: Final = 512  # passes one process draws from at once; more wait for their turn
_FETCHES_MAX: Final = 4  # chunks of one pass asked for at the same time
_BLOCKED_SECONDS: Final = 0.25  # before the budget or the trial is asked again
_TWIN_SECONDS: Final = 0.5  # before the ledger is asked again about a completion that somebody else is buying
_BATCH_SECONDS: Final = 0.002  # answers arriving within this time share one script call
_STALE_GRANT_SECONDS: Final = 5.0  # a call granted longer ago than this is not made: the process was frozen


@dataclass(frozen=True)
class PumpLimits:
    """in_flight: calls at once in this process.  stall_seconds: without a sign of life for so long, leases are let go.
    recovery_seconds: how long a lost answer is looked for at the provider before it is bought again."""

    in_flight: int
    chunk_lease_seconds: float
    takeover_grace_seconds: float
    shutdown_grace_seconds: float
    smoke_completions: int
    retry: RetryPolicy
    discover_seconds: float = 1.0
    stall_seconds: float = 600.0
    recovery_seconds: float = 10.0


class Pump:
    """run() until stop(); wake() when a pass may have opened.  on_complete: a pass is complete or halted."""

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
        self._runs: dict[PassId, Run] = {}
        self._allowances: dict[tuple[str, str], Allowance] = {}
        self._recovery = Recovery(seconds=limits.recovery_seconds)
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
            except Exception:  # noqa: BLE001  # the edge of the pump: a defect in one pass must not end the others
                _log.exception("pump_discovery_failed")
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
        while any(run.has_answers_out for run in self._runs.values()):
            if time.monotonic() > deadline:
                _log.warning("pump_stopped_with_calls_in_flight", calls=self._in_flight)
                break
            await asyncio.sleep(0.02)
        for run in self._runs.values():
            await self._give_back(run)
        for task in self._tasks:
            task.cancel()

    # --- finding work -------------------------------------------------------------------------------------------------

    async def _discover(self) -> None:
        open_ = await self._store.passes.open_passes(limit=_PASSES_MAX)
        for pass_id in open_:
            if pass_id not in self._runs:
                await self._join(pass_id)
        for run in self._runs.values():
            run.drained = False
            if run.idle and run.pass_id not in open_:
                run.stop()  # completed or halted by another worker
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
        run = Run(
            pass_id,
            plan,
            job,
            teacher=self._providers.teacher(plan.provider),
            timeout_seconds=settings.timeout_seconds,
            allowance=self._allowance(plan, settings),
            archive=self._providers.archive(plan.provider) if plan.store else None,
            scribe=Scribe(
                job,
                plan,
                self._prices,
                settings.prices,
                secret=self._secret,
                day_limited=self._store.day_limit(job.tenant) is not None,
            ),
        )
        self._runs[pass_id] = run
        self._spawn(self._write(run))

    def _allowance(self, plan: PassPlan, settings: ProviderSettings) -> Allowance:
        """One per model and endpoint, however many jobs ask it."""
        key = (plan.provider, plan.model)
        if key not in self._allowances:
            self._allowances[key] = Allowance(self._store, *key, settings, on_permit=self._fill)
        return self._allowances[key]

    async def _fetch(self, run: Run) -> None:
        """Lease one more chunk and queue what is not settled of it."""
        try:
            claimed = await self._store.passes.claim_chunk(
                run.pass_id, self._token, lease_seconds=self._limits.chunk_lease_seconds
            )
            if claimed is None:
                run.drained = True
            elif claimed[0] not in run.chunks:  # else: our own lease had run out, and is ours again
                await self._take_up(run, *claimed)
        except StoreError:
            _log.warning("pump_waits_for_store", job_id=run.pass_id.job_id)
            await asyncio.sleep(_BLOCKED_SECONDS)
        finally:
            run.fetching -= 1
            run.bell.set()
            self._fill()

    async def _take_up(self, run: Run, chunk: int, takeover: bool) -> None:
        """takeover: its last holder vanished, and may still be handing in answers or have lost some."""
        first = chunk * run.job.chunk_size
        run.chunks[chunk] = set()
        if takeover:
            await asyncio.sleep(self._limits.takeover_grace_seconds)
        try:
            prompts = await self._store.content.prompt_chunk(run.pass_id.job_id, run.plan.prompt_set, chunk)
            settled = await self._store.passes.settled_indexes(run.pass_id, chunk)
            open_ = {index: prompt for index, prompt in enumerate(prompts, start=first) if index not in settled}
            lost = await self._store.passes.lost_calls(run.pass_id, list(open_)) if takeover else {}
        except StoreError:
            del run.chunks[chunk]
            await self._insist(lambda: self._store.passes.give_back(run.pass_id, self._token, [chunk]))
            return
        run.chunks[chunk] = set(open_)
        if not open_:
            del run.chunks[chunk]  # its last answer came late, from the worker that had lost it
        calls: list[Call] = []
        for index, prompt in open_.items():
            if index in run.mine:
                continue
            if run.plan.role == "teacher" and prompt.completion is not None:
                run.settle(run.scribe.supplied(chunk, index, prompt))
                continue
            call = Call(chunk, index, prompt, run.scribe.ceiling_nano(prompt, index), run.scribe.fingerprint(prompt))
            run.mine.add(index)
            if index in lost and self._recovery.possible(run, call):
                call.id = lost[index]
                self._spawn(self._recover(run, call))
            else:
                calls.append(call)
        await self._enqueue(run, calls)

    async def _enqueue(self, run: Run, calls: list[Call]) -> None:
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
                run.settle(run.scribe.reused(call.chunk, call.index, paid[call.fingerprint]))
            elif not (run.stopped or self._stopping):
                run.queue.append(call)
        run.bell.set()
        self._fill()

    async def _recover(self, run: Run, call: Call) -> None:
        """An answer lost on the way: found at the provider it settles the call, else the prompt is asked again."""
        run.looking += 1
        try:
            completion = await self._recovery.find(run, call)
        finally:
            run.looking -= 1
            run.bell.set()
        if completion is not None:
            run.settle(run.scribe.answered(call.chunk, call.index, call.id, completion, call.fingerprint))
        elif not (run.stopped or self._stopping):
            run.queue.append(call)
            self._fill()

    # --- filling the slots --------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Give free slots to the runs that have the fewest, and fetch ahead where they run low."""
        if self._stopping:
            return
        now = time.monotonic()
        waiting = [run for run in self._runs.values() if run.ready(now)]
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
            missing = share + share // 2 - len(run.mine)
            wanted = min(_FETCHES_MAX, -(-missing // run.job.chunk_size)) - run.fetching
            while wanted > 0:
                wanted -= 1
                run.fetching += 1
                self._spawn(self._fetch(run))

    def _fill_in(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds + 0.001, self._fill)

    # --- begin and settle ---------------------------------------------------------------------------------------------

    async def _write(self, run: Run) -> None:
        """The run's only writer: hands ended and next calls to the store together, again and again until taken."""
        while not (run.stopped and run.idle):
            await run.bell.wait()
            await asyncio.sleep(_BATCH_SECONDS)
            run.bell.clear()
            while run.settlements or run.beginnings:
                await self._exchange(run)
        await self._give_back(run)
        self._runs.pop(run.pass_id, None)

    async def _exchange(self, run: Run) -> None:
        """One script call: what ended for what may begin.  An answer in hand is offered until the store takes it."""
        settlements, run.settlements = run.settlements, []
        calls, run.beginnings = run.beginnings, []
        run.offering = True
        for call in calls:
            call.id = f"{self._token}.{next(self._call_numbers)}"
        beginnings = [Beginning(c.chunk, c.index, c.id, c.ceiling_nano, c.fingerprint) for c in calls]
        result = await self._insist(
            lambda: self._store.passes.tick(run.pass_id, run.job.tenant, self._token, settlements, beginnings)
        )
        run.offering = False
        granted_at = time.monotonic()
        for ended in settlements:
            if ended.blob:
                run.forget(ended.chunk, ended.index)
        for call, answer in zip(calls, result.answers, strict=True):
            if answer == "go":
                self._spawn(self._ask(run, call, granted_at))
            else:
                self._refused(run, call, answer)
        await self._judge(run, calls, result)
        if result.state != "open" and not run.stopped:
            run.stop()
            await self._on_complete(run.pass_id.job_id)
        self._fill()

    def _refused(self, run: Run, call: Call, answer: Answer) -> None:
        self._release_slot(run)
        match answer:
            case "budget" | "day" | "smoke":
                run.put_back(call)
                run.blocked_until = time.monotonic() + _BLOCKED_SECONDS
                self._fill_in(_BLOCKED_SECONDS)
            case "paid":
                self._spawn(self._enqueue(run, [call]))
            case "twin":
                run.delay(call, _TWIN_SECONDS)
                self._fill_in(_TWIN_SECONDS)
            case "stopped":
                run.stop()
            case _:  # settled by another worker, or no longer ours
                run.forget(call.chunk, call.index)

    async def _judge(self, run: Run, calls: list[Call], result: TickResult) -> None:
        """The decisions that need the pass's totals: the trial, and a limit that nothing in flight will free."""
        smoke = self._limits.smoke_completions
        if "smoke" in result.answers and result.settled >= smoke:
            if 2 * result.accepted >= result.settled:
                await self._insist(lambda: self._store.passes.smoke_passed(run.pass_id))
                run.blocked_until = 0.0
            else:
                error = run.scribe.smoke_failure(settled=result.settled, accepted=result.accepted)
                await self._halt(run, Halt("fail", error.code, error))
        if "budget" in result.answers and result.reserved_nano == 0:
            if run.job.spec.budget.on_limit == "fail":
                await self._halt(run, Halt("fail", "cost_above_limit", run.scribe.budget_failure()))
            else:
                await self._halt(run, Halt("pause", "budget"))
        elif "day" in result.answers and result.reserved_nano == 0:
            needs = min(
                call.ceiling_nano for call, answer in zip(calls, result.answers, strict=True) if answer == "day"
            )
            await self._halt(run, Halt("pause", "daily_spend", needs_nano=needs))

    async def _halt(self, run: Run, halt: Halt) -> None:
        run.stop()
        await self._insist(lambda: self._store.passes.halt(run.pass_id, halt))
        await self._on_complete(run.pass_id.job_id)

    async def _insist(self, make: Callable[[], Awaitable[T]]) -> T:
        """Do something in the store, however long it is away; every script may be sent again."""
        wait = 0.1
        while True:
            try:
                return await make()
            except StoreError:
                _log.warning("pump_waits_for_store", holding=sum(len(run.settlements) for run in self._runs.values()))
                await asyncio.sleep(wait)
                wait = min(wait * 2, 2.0)

    # --- one call -----------------------------------------------------------------------------------------------------

    async def _ask(self, run: Run, call: Call, granted_at: float) -> None:
        if time.monotonic() - granted_at > _STALE_GRANT_SECONDS:
            self._again(run, call, after_seconds=0.0, lost=False)
            return
        request = CompletionRequest(run.scribe.body(call.prompt, call.index), run.timeout_seconds)
        try:
            completion = await run.teacher.complete(request)
            settlement = run.scribe.answered(call.chunk, call.index, call.id, completion, call.fingerprint)
        except ProviderError as error:
            await self._failed(run, call, error)
            return
        except Exception:  # noqa: BLE001  # the edge of one call: a defect must not cost its slot and its prompt
            _log.exception("call_failed", job_id=run.pass_id.job_id, model=run.plan.model)
            defect = ProviderUnavailable("The service failed at this call.", provider_code="internal")
            await self._failed(run, call, defect)
            return
        run.last_answer_at = time.monotonic()
        run.allowance.learn(completion.limits, completion.usage.prompt_tokens + completion.usage.completion_tokens)
        run.settle(settlement)
        self._release_slot(run)
        self._fill()

    async def _failed(self, run: Run, call: Call, error: ProviderError) -> None:
        if error.status is not None:
            run.last_answer_at = time.monotonic()  # a refusal is a sign of life
        if isinstance(error, ProviderRateLimited):
            await run.allowance.refused(error.retry_after_seconds)
        call.failures += 1
        decision = after_failure(
            error,
            attempts=call.attempts + 1,
            failures=call.failures,
            fresh_for_seconds=time.monotonic() - run.opened_at if run.plan.fresh else None,
            policy=self._limits.retry,
            jitter=random.random(),
        )
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
                if lost and self._recovery.possible(run, call):
                    self._end_call(run, call, lost=True)
                    self._spawn(self._recover(run, call))
                else:
                    self._again(run, call, after_seconds=after_seconds, lost=lost)
            case GiveUp(_, lost):
                run.settle(run.scribe.failed(call.chunk, call.index, call.id, error, call.fingerprint, lost=lost))
                self._release_slot(run)
                self._fill()
            case Stop(kind, code):
                self._end_call(run, call, lost=False)
                if kind == "pause":
                    await self._halt(run, Halt("pause", "provider_quota"))
                else:
                    await self._halt(run, Halt("fail", code, run.scribe.stop_error(error)))

    def _again(self, run: Run, call: Call, *, after_seconds: float, lost: bool) -> None:
        self._end_call(run, call, lost=lost)
        if not (run.stopped or self._stopping):
            run.delay(call, after_seconds)
            self._fill_in(after_seconds)

    def _end_call(self, run: Run, call: Call, *, lost: bool) -> None:
        """The call is over without settling its prompt: its hold on the budget ends, or stays if it may be billed."""
        run.settle(Settlement(call.chunk, call.index, call.id, b"", None, "failed", lost, fingerprint=call.fingerprint))
        self._release_slot(run)

    def _release_slot(self, run: Run) -> None:
        run.in_flight -= 1
        self._in_flight -= 1

    # --- leases -------------------------------------------------------------------------------------------------------

    async def _keep_leases(self) -> None:
        """Renew chunks while there are signs of life; a run without any lets its chunks go to another worker."""
        while True:
            await asyncio.sleep(self._limits.chunk_lease_seconds / 4)
            for run in list(self._runs.values()):
                if not run.chunks:
                    continue
                held, more = list(run.chunks), True
                if time.monotonic() - run.last_answer_at > self._limits.stall_seconds:
                    _log.warning("run_stalls", job_id=run.pass_id.job_id, model=run.plan.model, chunks=len(held))
                    run.let_go(held)
                    run.last_answer_at = time.monotonic()
                    continue
                try:
                    more, kept = await self._store.passes.renew_chunks(
                        run.pass_id, self._token, held, lease_seconds=self._limits.chunk_lease_seconds
                    )
                except StoreError:
                    continue
                run.let_go(chunk for chunk in held if chunk not in kept and chunk in run.chunks)
                if not more:
                    run.stop()

    async def _give_back(self, run: Run) -> None:
        if run.chunks:
            chunks = list(run.chunks)
            await self._insist(lambda: self._store.passes.give_back(run.pass_id, self._token, chunks))

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
