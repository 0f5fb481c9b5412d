"""Many completions at once: the worker draws prompts from all open passes and keeps its slots full.

One pump per process.  It draws from a window of open passes in which every tenant has its part, begins calls only after
the store has granted them (lease, ledger, trial, budget), and hands every answer to the store as it arrives.  A freed
slot goes to the tenant, then the job, with the fewest calls in flight here (`slots`), so a job of ten prompts is not
kept waiting by one of a hundred thousand, nor by a thousand jobs.  A call has its slot, of the process and of its
provider, before it is granted: nothing is reserved, timed or leased for a call that waits.  Any number of pumps work on
one pass; none of them holds a job's lease."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from shared.errors import JobFailed, NewerVersion, ProviderError, ProviderRateLimited, ProviderUnavailable, StoreError
from shared.ids import JobId, TenantId
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
from worker.slots import Slots
from worker.supply import Leases, Supply, insist
from worker.trial import tried

_log: Final = structlog.get_logger()

_PASSES_MAX: Final = 512  # passes one process draws from at once; more wait for their turn
_JOINS_AT_ONCE: Final = 16  # passes looked up at the same time
_BLOCKED_SECONDS: Final = 0.25  # before the budget or the trial is asked again
_TWIN_SECONDS: Final = 0.5  # before the ledger is asked again about a completion that somebody else is buying
_BEAT_SECONDS: Final = 0.004  # what a run has to say between two beats is one script call, all the runs' one exchange
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
        self._call_numbers = itertools.count(1)
        self._runs: dict[PassId, Run] = {}
        self._slots = Slots(limits.in_flight)
        self._allowances: dict[tuple[str, str], Allowance] = {}
        self._unpermitted: dict[Allowance, dict[Run, None]] = {}  # runs that wait for a permit of theirs
        self._recovery = Recovery(seconds=limits.recovery_seconds)
        self._supply = Supply(
            store,
            Leases(limits.chunk_lease_seconds, limits.takeover_grace_seconds, limits.stall_seconds),
            self._recovery,
            self._runs,
            in_flight=limits.in_flight,
            offer=self._offer,
            spawn=self._spawn,
        )
        self._bell = asyncio.Event()
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        return self._slots.in_flight

    def wake(self) -> None:
        self._bell.set()

    async def run(self) -> None:
        """Draw from open passes until `stop`."""
        self._spawn(self._supply.keep_leases())
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
        self._supply.stop()
        self._bell.set()
        for run in self._runs.values():
            run.queue.clear()
            run.delayed.clear()
        deadline = time.monotonic() + self._limits.shutdown_grace_seconds
        while any(run.has_answers_out for run in self._runs.values()):
            if time.monotonic() > deadline:
                _log.warning("pump_stopped_with_calls_in_flight", calls=self.in_flight)
                break
            await asyncio.sleep(0.02)  # answers come from many tasks; the last of them is not told beforehand
        for run in self._runs.values():
            await self._supply.give_back(run)
        for task in self._tasks:
            task.cancel()

    # --- finding work -------------------------------------------------------------------------------------------------

    async def _discover(self) -> None:
        open_ = {pass_id: tenant for tenant, pass_id in await self._store.passes.open_passes(limit=_PASSES_MAX)}
        new = [pass_id for pass_id in open_ if pass_id not in self._runs]
        for start in range(0, len(new), _JOINS_AT_ONCE):
            some = new[start : start + _JOINS_AT_ONCE]
            for failed in await asyncio.gather(*(self._join(id_, open_[id_]) for id_ in some), return_exceptions=True):
                if failed is not None:
                    raise failed
        for run in list(self._runs.values()):
            # Not in the window: completed or halted by another worker, or other tenants have their turn.
            run.leaving = run.pass_id not in open_
            if run.leaving and not run.has_answers_out:
                run.stop()
            run.drained = False
            self._offer(run)

    async def _join(self, pass_id: PassId, tenant: TenantId) -> None:
        try:
            job = await self._store.jobs.load(pass_id.job_id)
        except NewerVersion:  # left to the pumps that know it
            return
        plan = next((plan for plan in plans(job) if plan.name == pass_id.name), None) if job else None
        if job is None or plan is None or job.status is not JobStatus.RUNNING:
            if job is None or job.status is not JobStatus.QUEUED:
                await self._store.passes.close(tenant, pass_id)
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
            max_in_flight=settings.max_in_flight,
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
        self._supply.top_up(run)

    def _allowance(self, plan: PassPlan, settings: ProviderSettings) -> Allowance:
        """One per model and endpoint, however many jobs ask it."""
        key = (plan.provider, plan.model)
        if key not in self._allowances:
            self._allowances[key] = Allowance(self._store, *key, settings, on_permit=lambda: self._permitted(key))
        return self._allowances[key]

    # --- filling the slots --------------------------------------------------------------------------------------------

    def _offer(self, run: Run) -> None:
        """Something of this run may be able to start, or to be fetched."""
        if run.ready(time.monotonic()):
            self._slots.offer(run)
        self._supply.top_up(run)
        self._fill()

    def _offer_in(self, run: Run, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds + 0.001, self._offer, run)

    def _permitted(self, key: tuple[str, str]) -> None:
        for run in self._unpermitted.pop(self._allowances[key], {}):
            if run.ready(time.monotonic()):
                self._slots.offer(run)
        self._fill()

    def _fill(self) -> None:
        """Give free slots to the runs that have the fewest.  What cannot start is offered again when it can."""
        if self._stopping:
            return
        now = time.monotonic()
        while (run := self._slots.next()) is not None:
            if not run.ready(now):
                self._slots.withdraw(run)
            elif not run.allowance.take():
                self._slots.withdraw(run)
                self._unpermitted.setdefault(run.allowance, {})[run] = None
            else:
                run.beginnings.append(run.queue.popleft())
                self._slots.take(run)
                run.bell.set()

    # --- begin and settle ---------------------------------------------------------------------------------------------

    async def _write(self, run: Run) -> None:
        """The run's only writer: hands ended and next calls to the store together, again and again until taken."""
        while not (run.stopped and run.idle):
            await run.bell.wait()
            await asyncio.sleep(_BEAT_SECONDS - time.monotonic() % _BEAT_SECONDS)
            run.bell.clear()
            while run.settlements or run.beginnings:
                await self._exchange(run)
        await self._supply.give_back(run)
        self._slots.withdraw(run)
        self._runs.pop(run.pass_id, None)

    async def _exchange(self, run: Run) -> None:
        """One script call: what ended for what may begin.  An answer in hand is offered until the store takes it."""
        settlements, run.settlements = run.settlements, []
        calls, run.beginnings = run.beginnings, []
        run.offering = True
        for call in calls:
            call.id = f"{self._supply.token}.{next(self._call_numbers)}"
        beginnings = [Beginning(c.chunk, c.index, c.id, c.reserve_nano, c.fingerprint) for c in calls]
        result = await insist(
            lambda: self._store.passes.tick(run.pass_id, run.job.tenant, self._supply.token, settlements, beginnings)
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
        self._offer(run)

    def _refused(self, run: Run, call: Call, answer: Answer) -> None:
        self._slots.release(run)
        match answer:
            case "budget" | "day" | "smoke":
                run.put_back(call)
                run.blocked_until = time.monotonic() + _BLOCKED_SECONDS
                self._offer_in(run, _BLOCKED_SECONDS)
            case "paid":
                self._spawn(self._supply.enqueue(run, [call]))
            case "twin":
                run.delay(call, _TWIN_SECONDS)
                self._offer_in(run, _TWIN_SECONDS)
            case "stopped":
                run.stop()
            case _:  # settled by another worker, or no longer ours
                run.forget(call.chunk, call.index)

    async def _judge(self, run: Run, calls: list[Call], result: TickResult) -> None:
        """The decisions that need the pass's totals: the trial, and a limit that nothing in flight will free."""
        smoke = self._limits.smoke_completions
        if "smoke" in result.answers and result.settled >= smoke:
            error = await self._trial_failure(run, result)
            if error is None:
                await insist(lambda: self._store.passes.smoke_passed(run.pass_id))
                run.blocked_until = 0.0
            else:
                await self._halt(run, Halt("fail", error.code, error))
        if result.reserved_nano:
            return

        def needs(short: Answer) -> int:
            refused = (call for call, answer in zip(calls, result.answers, strict=True) if answer == short)
            return min(call.reserve_nano or 0 for call in refused)

        if "budget" in result.answers:
            if run.job.spec.budget.on_limit == "fail":
                error = run.scribe.budget_failure(needs("budget"))
                await self._halt(run, Halt("fail", error.code, error))
            else:
                await self._halt(run, Halt("pause", "budget", needs_nano=needs("budget")))
        elif "day" in result.answers:
            await self._halt(run, Halt("pause", "daily_spend", needs_nano=needs("day")))

    async def _trial_failure(self, run: Run, result: TickResult) -> JobError | None:
        if 2 * result.accepted < result.settled:
            return run.scribe.smoke_failure(settled=result.settled, accepted=result.accepted, failed=result.failed)
        if run.plan.role != "teacher":
            return None
        smoke = self._limits.smoke_completions
        trial = await insist(lambda: tried(run.job, run.plan, self._store, completions=smoke))
        if trial.passed:
            return None
        return run.scribe.smoke_failure(
            settled=trial.settled, accepted=trial.usable, failed=result.failed, reasons=trial.reasons
        )

    async def _halt(self, run: Run, halt: Halt) -> None:
        run.stop()
        await insist(lambda: self._store.passes.halt(run.pass_id, halt))
        await self._on_complete(run.pass_id.job_id)

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
        self._slots.release(run)
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
                    self._spawn(self._supply.recover(run, call))
                else:
                    self._again(run, call, after_seconds=after_seconds, lost=lost)
            case GiveUp(_, lost):
                cost = run.scribe.ceiling_nano(call.prompt, call.index) if lost else None
                run.settle(run.scribe.failed(call.chunk, call.index, call.id, error, call.fingerprint, lost_nano=cost))
                self._slots.release(run)
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
            self._offer_in(run, after_seconds)

    def _end_call(self, run: Run, call: Call, *, lost: bool) -> None:
        """The call is over without settling its prompt: its hold on the budget ends, or stays if it may be billed."""
        cost = run.scribe.ceiling_nano(call.prompt, call.index) if lost else None
        run.settle(Settlement(call.chunk, call.index, call.id, b"", cost, "failed", lost, fingerprint=call.fingerprint))
        self._slots.release(run)

    # --- what runs beside ---------------------------------------------------------------------------------------------

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
